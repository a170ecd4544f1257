//! `twinspan check`: says everything that is wrong with a config, before it is served.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde_json::json;

use crate::config::{self, Config, Loaded, Report, counted};

/// The config cannot be served: EX_CONFIG of sysexits.h, so that a service manager can tell it from a crash.
pub const BAD_CONFIG: u8 = 78;

/// The command was not used as it is meant: what clap itself exits with.
pub const USAGE: u8 = 2;

/// Checks a config file and tells of every problem in one run.
#[derive(Clone, Debug, clap::Args)]
pub struct Check {
    /// The config file; it goes before `--config`
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,

    /// The config file
    #[arg(short, long, value_name = "FILE", env = "TWINSPAN_CONFIG")]
    config: Option<PathBuf>,

    /// Write one JSON object to standard output
    #[arg(long)]
    json: bool,
}

impl Check {
    /// Does it.
    #[must_use]
    pub fn run(&self) -> ExitCode {
        match self.file.as_deref().or(self.config.as_deref()) {
            Some(path) => run(path, self.json),
            None => no_file(),
        }
    }
}

/// Checks the file at `path`. Exits with 0, or with 78 if it cannot be served.
#[must_use]
pub fn run(path: &Path, json: bool) -> ExitCode {
    let outcome = config::load(path);
    let code = if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(BAD_CONFIG) };
    let report = match &outcome {
        Ok(loaded) => &loaded.warnings,
        Err(refused) => &refused.0,
    };
    let loaded = outcome.as_ref().ok();
    if json {
        let mut object = report.to_json();
        if let Some(fields) = object.as_object_mut() {
            fields.insert("ok".to_owned(), json!(loaded.is_some()));
            fields.extend(loaded.map(|loaded| ("counts".to_owned(), counts_json(&loaded.config))));
        }
        return print(&format!("{object:#}\n"), code);
    }
    tell(report);
    match loaded {
        Some(Loaded { config, .. }) => print(&format!("{}: ok ({})\n", path.display(), counts(config)), code),
        None => code,
    }
}

/// Writes what is wrong to standard error, in colour if someone sees it.
pub fn tell(report: &Report) {
    // Nobody can be told that standard error is closed.
    drop(io::stderr().lock().write_all(report.render(colour()).as_bytes()));
}

/// True if standard error is a terminal whose owner has nothing against colours (no-color.org).
#[must_use]
pub fn colour() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    !refused && !dumb && io::stderr().is_terminal()
}

/// Writes `text` to standard output; gives `code` back, or failure if it could not be written. A reader that has seen
/// enough (`| head`) is no failure.
pub(crate) fn print(text: &str, code: ExitCode) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => code,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => code,
        Err(error) => {
            drop(writeln!(io::stderr().lock(), "error: cannot write to standard output: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Says that there is no config to look at.
pub(crate) fn no_file() -> ExitCode {
    let text = "error: no config file: name one, use -c FILE, or set TWINSPAN_CONFIG";
    drop(writeln!(io::stderr().lock(), "{text}"));
    ExitCode::from(USAGE)
}

fn endpoints(config: &Config) -> usize {
    config.pools.iter().map(|pool| pool.endpoints.len()).sum()
}

fn counts(config: &Config) -> String {
    [
        counted(config.listeners.len(), "listener"),
        counted(config.pools.len(), "pool"),
        counted(endpoints(config), "endpoint"),
        counted(config.clouds.len(), "cloud"),
    ]
    .join(", ")
}

fn counts_json(config: &Config) -> serde_json::Value {
    json!({
        "listeners": config.listeners.len(),
        "pools": config.pools.len(),
        "endpoints": endpoints(config),
        "clouds": config.clouds.len(),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        check: Check,
    }

    fn check(arguments: &[&str]) -> Check {
        Program::try_parse_from([&["twinspan"], arguments].concat()).unwrap().check
    }

    #[test]
    fn the_file_may_be_named_in_either_way() {
        let named = check(&["a.toml", "--json"]);
        assert_eq!((named.file.as_deref(), named.json), (Some(Path::new("a.toml")), true));
        assert_eq!(check(&["-c", "b.toml"]).config.as_deref(), Some(Path::new("b.toml")));
    }

    #[test]
    fn the_exit_code_says_whether_the_config_can_be_served() {
        let code = |text: &str| {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("x.toml");
            std::fs::write(&path, text).unwrap();
            [false, true].map(|json| format!("{:?}", run(&path, json)))
        };
        assert_eq!(code("version = 1"), [(); 2].map(|()| format!("{:?}", ExitCode::SUCCESS)));
        assert_eq!(code("version = 2"), [(); 2].map(|()| format!("{:?}", ExitCode::from(78))));
    }

    #[test]
    fn counts_are_in_words() {
        let text = "version = 1\ncloud.a = {}\ncloud.b = {}\n[[pool]]\nname = \"p\"\n\
            endpoint = [{ address = \"x:1\", cloud = \"a\" }, { address = \"y:1\", cloud = \"b\" }]\n\
            [[listener]]\nbind = \"127.0.0.1:1\"\npool = \"p\"";
        let config = config::parse(text, "x.toml").unwrap().config;
        assert_eq!(counts(&config), "1 listener, 1 pool, 2 endpoints, 2 clouds");
        assert_eq!(counts_json(&config)["endpoints"], 2);
    }
}
