//! Handshakes in memory between what this room makes.
