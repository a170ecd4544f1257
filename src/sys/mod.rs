//! The only unsafe code: a safe function around each call that the libraries do not offer.

mod memory;
mod options;
mod readiness;
mod tcp;

pub use memory::give_memory_back;
#[cfg(test)]
pub use options::{bind_address_no_port, fast_open_connect};
pub use options::{
    fast_open, fixed_buffers, set_bind_address_no_port, set_fast_open, set_fast_open_connect,
    set_fixed_buffers,
};
pub use readiness::{EVERYTHING, readiness};
pub use tcp::{Progress, Window, progress, unsent};
