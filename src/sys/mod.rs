//! The only unsafe code: a safe function around each call that the libraries do not offer.

mod memory;
mod options;
mod readiness;
mod tcp;

pub use memory::give_memory_back;
pub use options::{set_bind_address_no_port, set_fast_open_connect};
pub use readiness::readiness;
pub use tcp::{Progress, progress, unsent};
