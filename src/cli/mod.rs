//! The command line: one file per verb.

pub mod check;
pub mod config_show;
pub mod schema;

use std::process::ExitCode;

/// Reads the arguments and does what they say.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
