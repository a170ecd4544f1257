//! `twinspan completions SHELL`: a completion script.

use std::process::ExitCode;

use clap_complete::{Shell, generate};

use super::check::print;

/// Arguments of `twinspan completions`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Prints the script.
#[must_use]
pub fn run(args: &CompletionsArgs, mut command: clap::Command) -> ExitCode {
    let mut script = Vec::new();
    generate(args.shell, &mut command, "twinspan", &mut script);
    print(&String::from_utf8_lossy(&script), ExitCode::SUCCESS)
}
