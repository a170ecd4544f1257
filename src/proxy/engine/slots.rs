//! Where the engine keeps its sessions. A slot is used again when its session has gone, with another generation: an event
//! or a command that means the old session finds nobody.

/// The address of a session within its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::proxy) struct Token {
    pub(in crate::proxy) slot: u32,
    /// Never 0.
    pub(in crate::proxy) generation: u32,
}

/// Which of a session's sockets an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Client,
    Upstream,
}

/// Slots are numbered below this, as a word that epoll carries has one bit for the [`Which`], and one for spares.
const MOST: usize = 1 << 30;

/// Set in the words of spares, and in no session's.
const SPARE: u64 = 1 << 31;

impl Token {
    /// The word that epoll gives back. Words below 2^32 are nobody's.
    pub(super) fn word(self, which: Which) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot) << 1 | u64::from(which == Which::Upstream)
    }

    /// The token and the end that a word means; `None` for words that are no session's.
    pub(super) fn from_word(word: u64) -> Option<(Self, Which)> {
        let token = Self::read(word).filter(|_| word & SPARE == 0)?;
        Some((token, if word & 1 == 0 { Which::Client } else { Which::Upstream }))
    }

    /// The word of a spare; never that of a session, a listener or the engine's own.
    pub(super) fn spare_word(self) -> u64 {
        self.word(Which::Upstream) | SPARE
    }

    /// The token of a spare that a word means; `None` for words that are no spare's.
    pub(super) fn from_spare_word(word: u64) -> Option<Self> {
        Self::read(word & !SPARE).filter(|_| word & SPARE != 0)
    }

    fn read(word: u64) -> Option<Self> {
        let generation = u32::try_from(word >> 32).ok().filter(|generation| *generation != 0)?;
        let slot = u32::try_from((word & u64::from(u32::MAX) & !SPARE) >> 1).ok()?;
        Some(Self { slot, generation })
    }
}

/// A slab of boxed things: empty slots cost 16 bytes.
#[derive(Debug)]
pub(in crate::proxy) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    /// What the generation of a slot that is made now begins with.
    first_generation: u32,
    taken: usize,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    content: Option<Box<T>>,
}

impl<T> Slots<T> {
    pub(in crate::proxy) const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), first_generation: 1, taken: 0 }
    }

    /// Puts a thing into a free slot; gives it back when there are 2^30 already.
    pub(in crate::proxy) fn insert(&mut self, content: Box<T>) -> Result<Token, Box<T>> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() >= MOST => return Err(content),
            None => {
                let slot = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
                self.slots.push(Slot { generation: self.first_generation, content: None });
                slot
            }
        };
        match self.slots.get_mut(slot as usize) {
            Some(place) => {
                self.taken += 1;
                place.content = Some(content);
                Ok(Token { slot, generation: place.generation })
            }
            None => Err(content),
        }
    }

    /// The thing at this address, unless it has gone.
    pub(in crate::proxy) fn get(&mut self, token: Token) -> Option<&mut T> {
        let slot = self.slots.get_mut(token.slot as usize)?;
        slot.content.as_deref_mut().filter(|_| slot.generation == token.generation)
    }

    /// The address of what is in this slot now.
    pub(in crate::proxy) fn token(&self, slot: u32) -> Option<Token> {
        let place = self.slots.get(slot as usize).filter(|place| place.content.is_some())?;
        Some(Token { slot, generation: place.generation })
    }

    /// Takes the thing at this address out.
    pub(in crate::proxy) fn take(&mut self, token: Token) -> Option<Box<T>> {
        let slot = self.slots.get_mut(token.slot as usize)?;
        let content = slot.content.take_if(|_| slot.generation == token.generation)?;
        slot.generation = slot.generation.wrapping_add(1).max(1);
        self.free.push(token.slot);
        self.taken -= 1;
        Some(content)
    }

    /// What is in at most `most` slots from this one on; `None` when there is no such slot.
    pub(in crate::proxy) fn stretch(
        &self,
        first: usize,
        most: usize,
    ) -> Option<impl Iterator<Item = (Token, &T)>> {
        let rest = self.slots.get(first..).filter(|rest| !rest.is_empty())?;
        Some((first..).zip(rest).take(most).filter_map(|(slot, place)| {
            let token = Token { slot: u32::try_from(slot).ok()?, generation: place.generation };
            Some((token, place.content.as_deref()?))
        }))
    }

    /// How many there are.
    pub(in crate::proxy) const fn len(&self) -> usize {
        self.taken
    }

    /// Gives back the memory of the slots, when all of them are free.
    pub(in crate::proxy) fn shrink(&mut self) {
        if self.taken == 0 && !self.slots.is_empty() {
            let last = self.slots.iter().map(|slot| slot.generation).max().unwrap_or_default();
            self.first_generation = last.wrapping_add(1).max(1);
            self.slots = Vec::new();
            self.free = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_a_session_that_has_gone_finds_nobody() {
        let mut slots = Slots::new();
        let old = slots.insert(Box::new("old")).unwrap();
        assert_eq!(slots.take(old).as_deref(), Some(&"old"));
        let new = slots.insert(Box::new("new")).unwrap();
        assert_eq!(old.slot, new.slot);
        assert!(slots.get(old).is_none());
        assert!(slots.take(old).is_none());
        assert_eq!(slots.get(new), Some(&mut "new"));
        assert_eq!(slots.len(), 1);
    }

    #[test]
    fn nor_does_it_after_the_slots_were_given_back() {
        let mut slots = Slots::new();
        let old = slots.insert(Box::new(1)).unwrap();
        slots.take(old).unwrap();
        slots.shrink();
        let new = slots.insert(Box::new(2)).unwrap();
        assert_eq!(old.slot, new.slot);
        assert!(slots.get(old).is_none());
    }

    #[test]
    fn a_stretch_has_what_is_there_and_an_end() {
        let mut slots = Slots::new();
        let tokens: Vec<_> = (0..5).map(|number| slots.insert(Box::new(number)).unwrap()).collect();
        slots.take(tokens[1]).unwrap();
        let read =
            |first| slots.stretch(first, 3).map(|some| some.map(|(_, number)| *number).collect::<Vec<_>>());
        assert_eq!(read(0), Some(vec![0, 2]));
        assert_eq!(read(3), Some(vec![3, 4]));
        assert_eq!(read(5), None);
        assert!(slots.stretch(0, 1).unwrap().all(|(token, _)| token == tokens[0]));
    }

    #[test]
    fn words_lead_back_to_tokens_and_small_ones_to_nobody() {
        let mut slots = Slots::new();
        for _ in 0..5 {
            let token = slots.insert(Box::new(())).unwrap();
            for which in [Which::Client, Which::Upstream] {
                assert_eq!(Token::from_word(token.word(which)), Some((token, which)));
            }
        }
        assert_eq!(Token::from_word(u64::from(u32::MAX)), None);
    }

    #[test]
    fn the_words_of_spares_are_no_session_s_and_the_other_way_round() {
        for slot in [0, 1, 77, u32::try_from(MOST - 1).unwrap()] {
            for generation in [1, 2, u32::MAX] {
                let token = Token { slot, generation };
                assert_eq!(Token::from_spare_word(token.spare_word()), Some(token));
                assert_eq!(Token::from_word(token.spare_word()), None);
                for which in [Which::Client, Which::Upstream] {
                    assert_eq!(Token::from_word(token.word(which)), Some((token, which)));
                    assert_eq!(Token::from_spare_word(token.word(which)), None);
                }
            }
        }
        assert_eq!(Token::from_spare_word(u64::from(u32::MAX)), None);
    }
}
