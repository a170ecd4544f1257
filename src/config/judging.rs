//! How endpoints and clouds are judged: what ejects an endpoint, what restrains removals, and when a cloud is down as
//! a whole.

use std::time::Duration;

use super::defaults;

/// How sessions remove an endpoint from its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// False: failed sessions remove nothing.
    pub enabled: bool,
    /// Failed sessions in a row that eject an endpoint, at least 1.
    pub failures: u32,
    /// How long the first ejection lasts; each further one twice as long.
    pub base: Duration,
    /// The longest ejection; not below `base`.
    pub max: Duration,
    /// The share of the pool's weight that may be ejected at a time, in percent.
    pub max_ejected: u8,
}

/// What restrains the removal of endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restraint {
    /// The share of the pool's weight that probes alone may remove within a minute, in percent.
    pub max_removal: u8,
    /// The share of the pool's weight that is never removed, in percent.
    pub floor: u8,
}

/// When a cloud is down as a whole, and how it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Domain {
    /// New sessions a second that it can take while it comes back; `None` is no limit.
    pub capacity: Option<u32>,
    /// With less than this share of its endpoints good it is down, in percent.
    pub down_below: u8,
    /// With more than this share good it comes back, in percent; above `down_below`.
    pub up_above: u8,
    /// How long its share of new sessions rises until it has all of it again; zero is at once. `None`: the usual time,
    /// in pools that have a slow start.
    pub recovery_time: Option<Duration>,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            enabled: defaults::EJECTION,
            failures: defaults::EJECTION_FAILURES,
            base: defaults::EJECTION_BASE,
            max: defaults::EJECTION_MAX,
            max_ejected: defaults::MAX_EJECTED,
        }
    }
}

impl Default for Restraint {
    fn default() -> Self {
        Self { max_removal: defaults::MAX_REMOVAL, floor: defaults::FLOOR }
    }
}

impl Domain {
    /// How long its share rises.
    #[must_use]
    pub fn recovery(&self) -> Duration {
        self.recovery_time.unwrap_or(defaults::RECOVERY_TIME)
    }
}

impl Default for Domain {
    fn default() -> Self {
        Self {
            capacity: None,
            down_below: defaults::DOWN_BELOW,
            up_above: defaults::UP_ABOVE,
            recovery_time: None,
        }
    }
}
