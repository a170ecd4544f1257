//! A loopback address of one's own. Every address in 127.0.0.0/8 is this machine's, so each test takes one for itself
//! and every port of it is free: nothing races for ports, however many tests run side by side.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed},
};

/// The port that says "taken".
const CLAIM: u16 = 10_000;

/// An address that no other test uses while this lives.
#[derive(Debug)]
pub(crate) struct Place {
    ip: Ipv4Addr,
    next: AtomicU16,
    _claim: TcpListener,
}

impl Place {
    /// Finds and claims one.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let seed = std::process::id().wrapping_mul(61) + NEXT.fetch_add(1, Relaxed);
            let [_, b, c, d] = seed.to_be_bytes();
            // 127.0.x.x is for people.
            let ip = Ipv4Addr::new(127, b | 1, c, d.clamp(1, 254));
            if let Ok(claim) = TcpListener::bind((ip, CLAIM)) {
                return Self { ip, next: AtomicU16::new(CLAIM + 1), _claim: claim };
            }
        }
    }

    /// The address.
    pub(crate) fn ip(&self) -> IpAddr {
        self.ip.into()
    }

    /// A port that nobody listens on, below those that the kernel hands out by itself.
    pub(crate) fn free(&self) -> SocketAddr {
        loop {
            let address = SocketAddr::new(self.ip(), self.next.fetch_add(1, Relaxed));
            if TcpListener::bind(address).is_ok() {
                return address;
            }
        }
    }
}
