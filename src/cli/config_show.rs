//! `twinspan config show`: the config as it is written, or as it is meant.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::check::{BAD_CONFIG, no_file, print, tell};
use crate::config;

/// Shows a config that can be served; one that cannot is told of as `check` does.
#[derive(Clone, Debug, clap::Args)]
pub struct ConfigShow {
    /// The config file; it goes before `--config`
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,

    /// The config file
    #[arg(short, long, value_name = "FILE", env = "TWINSPAN_CONFIG")]
    config: Option<PathBuf>,

    /// Spell out every default
    #[arg(long)]
    effective: bool,
}

impl ConfigShow {
    /// Does it.
    #[must_use]
    pub fn run(&self) -> ExitCode {
        run(self.file.as_deref().or(self.config.as_deref()), self.effective)
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
