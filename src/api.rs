//! What the admin API says.
