//! `twinspan schema`: what editors need to complete and check a config file.

use std::process::ExitCode;

use super::check::print;
use crate::config;

/// Prints the JSON Schema of the config file.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Schema {}

impl Schema {
    /// Does it.
    #[must_use]
    pub fn run(self) -> ExitCode {
        run()
    }
}

/// Prints the schema.
#[must_use]
pub fn run() -> ExitCode {
    print(&format!("{:#}\n", config::schema()), ExitCode::SUCCESS)
}
