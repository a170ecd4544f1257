//! Maglev's consistent hash (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
//! section 3.4): a client address keeps its endpoint when another endpoint comes or goes.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Entries of the table: a prime well above 100 times the endpoints of one group, as the paper advises.
const SIZE: usize = 65_537;

const OFFSET_SEED: u64 = 0x6f66_6673;
const SKIP_SEED: u64 = 0x736b_6970;

/// A lookup table from hashes to members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maglev {
    table: Vec<u32>,
}

impl Maglev {
    /// Fills a table for members named by `key` with their weights. Names decide the places, so the same members give
    /// the same table on every proxy and after every restart.
    #[must_use]
    pub fn new(members: &[(Vec<u8>, u32)]) -> Self {
        const EMPTY: u32 = u32::MAX;
        if members.is_empty() {
            return Self { table: Vec::new() };
        }
        let size = SIZE as u64;
        let mut table = vec![EMPTY; SIZE];
        let heaviest = members.iter().map(|(_, weight)| *weight).max().unwrap_or(1).max(1);
        // Every member walks its own permutation of the table.
        let mut walks: Vec<(u64, u64, f64)> = members
            .iter()
            .map(|(key, _)| {
                let offset = xxh3_64_with_seed(key, OFFSET_SEED) % size;
                let skip = xxh3_64_with_seed(key, SKIP_SEED) % (size - 1) + 1;
                (offset, skip, 0.0)
            })
            .collect();
        let mut left = SIZE;
        while left > 0 {
            for ((member, (place, skip, credit)), (_, weight)) in (0_u32..).zip(&mut walks).zip(members) {
                // A member takes a turn each time its credit reaches one: heavier members more often.
                *credit += f64::from((*weight).max(1)) / f64::from(heaviest);
                while *credit >= 1.0 && left > 0 {
                    *credit -= 1.0;
                    left -= take(&mut table, place, *skip, member, EMPTY);
                }
            }
        }
        Self { table }
    }

    /// The member for this hash.
    #[must_use]
    pub fn member(&self, hash: u64) -> usize {
        self.walk(hash).next().unwrap_or_default()
    }

    /// Members in the order in which this hash tries them: neighbours in the table, each possibly several times.
    pub fn walk(&self, hash: u64) -> impl Iterator<Item = usize> {
        let start = usize::try_from(hash % self.table.len().max(1) as u64).unwrap_or_default();
        self.table.iter().cycle().skip(start).take(self.table.len()).map(|member| *member as usize)
    }
}

/// Gives `member` the next free entry of its walk; the number of entries taken (1, or 0 in a full table).
fn take(table: &mut [u32], place: &mut u64, skip: u64, member: u32, empty: u32) -> usize {
    let size = table.len() as u64;
    for _ in 0..table.len() {
        let here = usize::try_from(*place).unwrap_or_default();
        *place = (*place + skip) % size;
        if let Some(entry) = table.get_mut(here).filter(|entry| **entry == empty) {
            *entry = member;
            return 1;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(names: &[&str]) -> Maglev {
        Maglev::new(&names.iter().map(|name| (name.as_bytes().to_vec(), 1)).collect::<Vec<_>>())
    }

    fn hashes() -> impl Iterator<Item = u64> {
        (0..100_000_u64).map(|n| xxh3_64_with_seed(&n.to_le_bytes(), 7))
    }

    #[test]
    fn equal_members_get_equal_shares() {
        let maglev = table(&["a", "b", "c", "d"]);
        let mut counts = [0_u32; 4];
        hashes().for_each(|hash| counts[maglev.member(hash)] += 1);
        assert!(counts.iter().all(|count| (24_000..26_000).contains(count)), "{counts:?}");
    }

    #[test]
    fn weights_set_the_shares() {
        let maglev = Maglev::new(&[(b"a".to_vec(), 3), (b"b".to_vec(), 1)]);
        let first = hashes().filter(|hash| maglev.member(*hash) == 0).count();
        assert!((73_500..76_500).contains(&first), "{first}");
    }

    #[test]
    fn when_one_of_n_goes_fewer_than_one_and_a_half_nths_of_the_clients_move() {
        for n in [3_usize, 5, 10, 20] {
            let names: Vec<String> = (0..n).map(|i| format!("10.0.0.{i}:5432")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let (before, after) = (table(&names), table(&names[1..]));
            let moved = hashes()
                .filter(|hash| {
                    let was = names[before.member(*hash)];
                    was != names[1..][after.member(*hash)]
                })
                .count();
            assert!((moved as f64) < 1.5 / n as f64 * 100_000.0, "{moved} of 100000 moved at n = {n}");
        }
    }

    #[test]
    fn a_walk_reaches_every_member() {
        let maglev = table(&["a", "b", "c"]);
        let seen: std::collections::BTreeSet<_> = maglev.walk(12345).collect();
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn an_empty_table_does_not_hang() {
        assert_eq!(Maglev::new(&[]).member(9), 0);
    }
}
