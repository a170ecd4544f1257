//! Files that are replaced, well and badly.
