//! Bytes to meaning: what a client says first. Knows no sockets, no clock and nothing else of ours.

pub mod hello;
pub mod proxy_header;
pub mod shown;
