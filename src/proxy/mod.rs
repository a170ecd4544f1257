//! The data plane: accepts, routes, dials and relays. It reads the snapshot and the phase, writes cells and reports, and
//! never waits for the control plane. `session.rs` is the file to open first.

mod accept;
mod admit;
mod connect;
mod edge;
mod engine;
mod entry;
mod first_byte;
mod listener;
mod note;
mod ourselves;
mod peer;
mod plain;
mod race;
mod racing;
mod relay;
mod route;
mod seats;
mod seldom;
mod session;
mod spread;
mod towards;
mod worker;

#[cfg(test)]
mod tests;

pub use engine::{Alone, Newcomer};
pub use race::{Race, Step, Why};
pub use route::{Facts, choose, hash};
pub use worker::{Carrier, Worker};
