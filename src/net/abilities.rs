//! What this process may do with sockets that not every process may (capabilities(7)).

use std::fs;

/// Numbers of include/uapi/linux/capability.h.
const NET_BIND_SERVICE: u32 = 10;
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;

/// The capabilities in force, and what takes none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// CapEff: a bit for each capability.
    effective: u64,
    /// net.ipv4.ip_unprivileged_port_start: the lowest port that anybody may bind.
    anybody_from: u16,
}

impl Abilities {
    /// Those of a process without any capability, where anybody may bind ports from this one on.
    #[must_use]
    pub const fn none(anybody_from: u16) -> Self {
        Self { effective: 0, anybody_from }
    }

    /// Those of this process. `None` where the kernel does not tell.
    #[must_use]
    pub fn of_this_process() -> Option<Self> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let start = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
        let anybody_from = start.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024);
        Some(Self { effective: effective(&status)?, anybody_from })
    }

    /// True if it may bind and connect from addresses that the machine does not have (IP_TRANSPARENT).
    #[must_use]
    pub const fn is_transparent(self) -> bool {
        self.has(NET_ADMIN) || self.has(NET_RAW)
    }

    /// True if it may bind this port.
    #[must_use]
    pub const fn binds(self, port: u16) -> bool {
        port == 0 || port >= self.anybody_from || self.has(NET_BIND_SERVICE)
    }

    const fn has(self, capability: u32) -> bool {
        self.effective & (1 << capability) != 0
    }
}

fn effective(status: &str) -> Option<u64> {
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(bits.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_capability_permits_its_own() {
        let of = |bits: &str| {
            let status = format!("Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t{bits}\nCapBnd:\tff\n");
            Abilities { effective: effective(&status).unwrap(), anybody_from: 1024 }
        };
        let may = |bits| (of(bits).is_transparent(), of(bits).binds(443));
        assert_eq!(may("000001ffffffffff"), (true, true));
        assert_eq!(may("0000000000000400"), (false, true));
        assert_eq!(may("0000000000001000"), (true, false));
        assert_eq!(may("0000000000002000"), (true, false));
        assert_eq!(may("ffffffffffffcbff"), (false, false));
        assert!(
            Abilities::none(80).binds(80) && Abilities::none(80).binds(0) && !Abilities::none(80).binds(79)
        );
        assert!(Abilities::of_this_process().is_some());
    }
}
