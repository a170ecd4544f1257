//! Shares that come out exactly: the n-th choice is a function of n, not of luck, so 10,000 sessions split as the
//! weights say to within a few sessions.

/// Weights turned into a choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// Running sums of the weights.
    sums: Vec<u64>,
    equal: bool,
}

/// 2^64 divided by the golden ratio: n times this, modulo 2^64, visits every interval in proportion to its length with
/// the least possible discrepancy (Weyl's sequence; Knuth, The Art of Computer Programming 3, section 6.4).
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl Shares {
    /// Shares in proportion to `weights`. A weight of 0 is never chosen while another is not 0.
    #[must_use]
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let mut total = 0_u64;
        let mut equal = true;
        let mut first = None;
        let sums = weights
            .into_iter()
            .map(|weight| {
                equal &= *first.get_or_insert(weight) == weight;
                total += u64::from(weight);
                total
            })
            .collect();
        Self { sums, equal }
    }

    /// How many there are to choose from.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sums.len()
    }

    /// True with nothing to choose from.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }

    /// Each share as a part of the whole, 0 to 1.
    pub fn fractions(&self) -> impl Iterator<Item = f64> {
        let total = self.sums.last().copied().unwrap_or_default();
        let count = self.sums.len();
        let mut before = 0;
        #[expect(clippy::cast_precision_loss, reason = "weights are small; for a display")]
        self.sums.iter().map(move |sum| {
            let weight = sum - std::mem::replace(&mut before, *sum);
            if total == 0 { 1.0 / count as f64 } else { weight as f64 / total as f64 }
        })
    }

    /// The `n`-th choice: strictly in turn with equal weights, else spread as evenly as can be. 0 when empty.
    #[must_use]
    pub fn nth(&self, n: u64) -> usize {
        if self.equal {
            return usize::try_from(n % self.sums.len().max(1) as u64).unwrap_or_default();
        }
        self.at(n.wrapping_mul(GOLDEN))
    }

    /// The choice at `point`, where 0 to 2^64 - 1 covers all shares. A uniform `point` chooses by weight.
    #[must_use]
    pub fn at(&self, point: u64) -> usize {
        let total = self.sums.last().copied().unwrap_or_default();
        if total == 0 {
            return usize::try_from((u128::from(point) * self.sums.len() as u128) >> 64).unwrap_or_default();
        }
        let scaled = u64::try_from((u128::from(point) * u128::from(total)) >> 64).unwrap_or_default();
        self.sums.partition_point(|sum| *sum <= scaled)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(shares: &Shares, from: u64, draws: u64) -> Vec<u64> {
        let mut counts = vec![0; shares.len()];
        for n in from..from + draws {
            counts[shares.nth(n)] += 1;
        }
        counts
    }

    #[test]
    fn equal_weights_take_turns() {
        let shares = Shares::new([5, 5, 5]);
        assert_eq!((0..6).map(|n| shares.nth(n)).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_weight_of_zero_is_never_chosen() {
        let shares = Shares::new([0, 3, 0, 1]);
        assert_eq!(counts(&shares, 0, 4000)[0], 0);
        assert_eq!(counts(&shares, 0, 4000)[2], 0);
    }

    #[test]
    fn all_zero_and_one_alone_still_choose() {
        assert_eq!(counts(&Shares::new([0, 0]), 0, 100), [50, 50]);
        assert_eq!(counts(&Shares::new([7]), 3, 100), [100]);
        assert_eq!(Shares::new([]).nth(3), 0);
    }

    proptest! {
        #[test]
        fn shares_over_ten_thousand_are_within_two_percent(
            weights in prop::collection::vec(1_u32..100, 2..6),
            from in 0_u64..1_000_000,
        ) {
            let shares = Shares::new(weights.iter().copied());
            let total: u32 = weights.iter().sum();
            for (weight, count) in weights.iter().zip(counts(&shares, from, 10_000)) {
                let wanted = 10_000.0 * f64::from(*weight) / f64::from(total);
                let off = (count as f64 - wanted).abs();
                prop_assert!(off <= (wanted * 0.02).max(12.0), "weight {weight} of {total}: {count}, wanted {wanted}");
            }
        }

        #[test]
        fn every_point_names_a_choice(weights in prop::collection::vec(0_u32..10, 1..9), point: u64) {
            let shares = Shares::new(weights.iter().copied());
            prop_assert!(shares.at(point) < weights.len());
        }
    }
}
