//! The only unsafe code: a safe function around each call that the libraries do not offer.

mod tcp;

pub use tcp::{Progress, progress, unsent};
