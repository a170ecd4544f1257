//! `twinspan config show`: the config as it is written, or as it is meant.

use std::{path::Path, process::ExitCode};

use super::{
    check::{BAD_CONFIG, no_file, print, tell},
    file::ConfigFile,
};
use crate::config;

/// Shows a config that can be served; one that cannot is told of as `check` does.
#[derive(Clone, Debug, clap::Args)]
pub struct ConfigShow {
    #[command(flatten)]
    file: ConfigFile,

    /// Spell out every default
    #[arg(long)]
    effective: bool,
}

impl ConfigShow {
    /// Does it.
    #[must_use]
    pub fn run(&self) -> ExitCode {
        run(self.file.path(), self.effective)
    }
}

/// Shows the file at `path`, with every default spelled out if `effective`.
#[must_use]
pub fn run(path: Option<&Path>, effective: bool) -> ExitCode {
    let Some(path) = path else {
        return no_file();
    };
    match config::load(path) {
        Ok(loaded) if effective => print(&config::effective(&loaded.config), ExitCode::SUCCESS),
        Ok(loaded) => print(loaded.warnings.source(), ExitCode::SUCCESS),
        Err(refused) => {
            tell(&refused.0);
            ExitCode::from(BAD_CONFIG)
        }
    }
}
