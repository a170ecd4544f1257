//! `twinspan check`: says everything that is wrong with a config, before it is served.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use serde_json::json;

use super::colours;
use crate::{
    app,
    config::{self, Config, Loaded, Report, counted},
};

/// The config cannot be served: EX_CONFIG of sysexits.h, so that a service manager can tell it from a crash.
pub const BAD_CONFIG: u8 = 78;

/// The command was not used as it is meant: what clap itself exits with.
pub const USAGE: u8 = 2;

/// Checks config files and tells of every problem in one run.
#[derive(Clone, Debug, clap::Args)]
pub struct Check {
    /// The config files; they go before `--config`
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// The config file
    #[arg(short, long, value_name = "FILE", env = "TWINSPAN_CONFIG")]
    #[arg(value_parser = OsStringValueParser::new().map(PathBuf::from))]
    config: Option<PathBuf>,

    /// Write one JSON object for each file to standard output
    #[arg(long)]
    json: bool,
}

impl Check {
    /// Does it.
    #[must_use]
    pub fn run(&self) -> ExitCode {
        let named = self.config.as_ref().filter(|path| !path.as_os_str().is_empty());
        let files: Vec<_> =
            if self.files.is_empty() { named.into_iter().collect() } else { self.files.iter().collect() };
        let mut worst = None;
        for path in files {
            let code = run(path, self.json);
            if worst.is_none() || code != ExitCode::SUCCESS && worst != Some(ExitCode::from(BAD_CONFIG)) {
                worst = Some(code);
            }
        }
        worst.unwrap_or_else(no_file)
    }
}

/// Checks the file at `path`, and the TLS files that it names as far as they are here. Exits with 0, or with 78 if it cannot be served.
#[must_use]
pub fn run(path: &Path, json: bool) -> ExitCode {
    let outcome = config::load(path).and_then(|loaded| {
        let findings = app::check_files(&loaded.config);
        loaded.and(findings)
    });
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
    drop(io::stderr().lock().write_all(report.render(colours(&io::stderr())).as_bytes()));
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
        assert_eq!((named.files.as_slice(), named.json), ([PathBuf::from("a.toml")].as_slice(), true));
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
    fn one_bad_file_of_several_is_enough() {
        let directory = tempfile::tempdir().unwrap();
        let (good, bad) = (directory.path().join("good.toml"), directory.path().join("bad.toml"));
        std::fs::write(&good, "version = 1").unwrap();
        std::fs::write(&bad, "version = 2").unwrap();
        let code = |files: &[&PathBuf]| {
            check(&files.iter().map(|path| path.to_str().unwrap()).collect::<Vec<_>>()).run()
        };
        assert_eq!(code(&[&good, &good]), ExitCode::SUCCESS);
        for files in [[&good, &bad, &good], [&bad, &good, &good], [&good, &good, &bad]] {
            assert_eq!(code(&files), ExitCode::from(BAD_CONFIG));
        }
        assert_eq!(check(&["--config="]).run(), ExitCode::from(USAGE));
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
