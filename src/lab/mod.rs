//! Fake clouds.
