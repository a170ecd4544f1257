//! The built binary against real sockets and real software. Each test brings up its own peers and its own proxy on a
//! loopback address that nobody else uses, so tests run in parallel; a file per capability, a sentence per test.
//!
//! `TWINSPAN_BIN` names another binary to try (the release build, in `tests/run`).

#![cfg(test)]

mod accept;
mod admission;
mod bench;
mod border;
mod budget;
mod events;
mod examples;
mod failover;
mod faults;
mod generations;
mod harness;
mod hostile;
mod integrity;
mod intercept;
mod judged;
mod lifecycle;
mod limits;
mod netns;
mod operator;
mod peers;
mod proxy_header;
mod relay;
mod reload;
mod sessions;
mod sni;
mod sockets;
mod spares;
mod spiffe;
mod splice;
mod stalled;
mod storm;
mod tls;
mod used;
mod workers;
