//! The only unsafe code: a safe function around each call that the libraries do not offer.

mod options;
mod tcp;

pub use options::{set_bind_address_no_port, set_fast_open_connect};
pub use tcp::{Progress, progress, unsent};
