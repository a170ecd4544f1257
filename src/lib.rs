//! twinspan, a Layer-4 cross-cloud traffic proxy. The rooms of the house, in reading order; ARCHITECTURE.md has the
//! picture, `tests/rooms.rs` keeps the rules of who may import whom.
//!
//! The library exists for the binary, the tests and the benches; it promises nobody a stable interface.

pub mod api;
pub mod app;
pub mod balance;
pub mod cli;
pub mod config;
pub mod control;
pub mod ids;
pub mod lab;
pub mod net;
pub mod proxy;
pub mod state;
pub mod sys;
pub mod telemetry;
pub mod tls;
pub mod wire;
