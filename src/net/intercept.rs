//! Connections that a firewall rule sends here on their way to others.

/// How connections come that were meant for other addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Intercept {
    /// Not at all.
    #[default]
    Off,
    /// By a REDIRECT rule: the kernel knows the original destination (SO_ORIGINAL_DST).
    Redirect,
    /// By a TPROXY rule: the local address is the original destination (IP_TRANSPARENT).
    Tproxy,
}
