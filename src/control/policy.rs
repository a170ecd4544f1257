//! Policies, as pure functions from a pool's clouds to tiers of weighted clouds: the only thing the data plane knows.

use crate::{config::Policy, ids::CloudName};

/// The clouds of one tier, each with its share of new sessions.
pub(super) type CloudTier = Vec<(CloudName, u32)>;

/// The tiers that a policy stands for, the preferred one first.
pub(super) fn tiers(policy: &Policy) -> Vec<CloudTier> {
    match policy {
        Policy::Failover { order } => order.iter().map(|cloud| vec![(cloud.clone(), 1)]).collect(),
        Policy::Weighted { weights } => {
            let (spare, shared): (CloudTier, CloudTier) =
                weights.iter().cloned().partition(|(_, weight)| *weight == 0);
            // A cloud without a share is a fallback for when every other one is down.
            let spare = spare.into_iter().map(|(cloud, _)| (cloud, 1)).collect();
            [shared, spare].into_iter().filter(|tier: &CloudTier| !tier.is_empty()).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cloud(name: &str) -> CloudName {
        CloudName::from(name)
    }

    #[test]
    fn failover_is_one_cloud_a_tier() {
        let policy = Policy::Failover { order: vec![cloud("aws"), cloud("gcp")] };
        assert_eq!(tiers(&policy), [vec![(cloud("aws"), 1)], vec![(cloud("gcp"), 1)]]);
    }

    #[test]
    fn weighted_is_one_tier_and_a_spare_for_clouds_without_a_share() {
        let policy =
            Policy::Weighted { weights: vec![(cloud("aws"), 90), (cloud("oci"), 0), (cloud("gcp"), 10)] };
        assert_eq!(tiers(&policy), [vec![(cloud("aws"), 90), (cloud("gcp"), 10)], vec![(cloud("oci"), 1)]]);
    }
}
