//! The command line: one file per verb. Data goes to standard output, talk to standard error; every verb says in its exit
//! code how it went (README has the list).

pub mod admin;
pub mod bench;
pub mod check;
pub mod client;
pub mod completions;
pub mod config_show;
pub mod demo;
pub mod events;
pub mod file;
pub mod health;
pub mod run;
pub mod schema;
pub mod sessions;
pub mod status;
mod target;

use std::{ffi::OsStr, io::IsTerminal, process::ExitCode};

use clap::{
    CommandFactory, Parser, Subcommand,
    error::{ContextKind, ContextValue},
};
use rustix::process::{Resource, getrlimit, setrlimit};

/// Carries TCP between your clients and services on two clouds, and keeps it moving when one cloud closes.
#[derive(Debug, Parser)]
#[command(name = "twinspan", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the proxy in the foreground
    Run(run::RunArgs),
    /// Say everything that is wrong with config files; exit 0 or 78
    #[command(alias = "validate")]
    Check(check::Check),
    /// Lose a cloud and get it back, in one process: needs no file, no root and no network
    Demo(demo::DemoArgs),
    /// Load a proxy or a service and measure it; targets for that
    Bench(bench::BenchArgs),
    /// Show clouds, pools, endpoints and sessions of a running proxy
    Status(status::StatusArgs),
    /// Show single sessions of a running proxy, or end them
    Sessions(sessions::SessionsArgs),
    /// Show what happened to a running proxy, when and why, and follow it
    Events(events::EventsArgs),
    /// Ask a running proxy whether it is alive, or ready; exit 0 or 1
    Health(health::HealthArgs),
    /// Print the JSON Schema of the config file
    Schema(schema::Schema),
    /// Look at a config file as the proxy does
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
    /// Print the version
    #[command(hide = true)]
    Version,
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Print the config, with every default if asked
    Show(config_show::ConfigShow),
}

/// Reads the arguments and does what they say.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return wrong(error),
    };
    match cli.verb {
        Verb::Run(args) => run::run(&args),
        Verb::Check(check) => check.run(),
        Verb::Demo(args) => demo::run(args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Status(args) => status::run(&args),
        Verb::Sessions(args) => sessions::run(&args),
        Verb::Events(args) => events::run(&args),
        Verb::Health(args) => health::run(&args),
        Verb::Schema(schema) => schema.run(),
        Verb::Config(ConfigVerb::Show(show)) => show.run(),
        Verb::Completions(args) => completions::run(&args, Cli::command()),
        Verb::Version => check::print(&Cli::command().render_version(), ExitCode::SUCCESS),
    }
}

/// Prints what the parser has to say: help, the version, or what is wrong.
fn wrong(mut error: clap::Error) -> ExitCode {
    if let Some(first) = std::env::args_os().nth(1)
        && let Some(tip) = tip(&first.to_string_lossy())
    {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    // Nobody can be told that the output is closed.
    drop(error.print());
    error.exit_code().try_into().map_or(ExitCode::FAILURE, |code: u8| ExitCode::from(code))
}

/// What those may have meant who left out the verb.
fn tip(first: &str) -> Option<&'static str> {
    let option = first == "--config" || first.starts_with("--config=") || first.starts_with("-c");
    if option {
        Some("did you mean 'twinspan run -c FILE'?")
    } else if first.ends_with(".toml") {
        Some("did you mean 'twinspan run FILE'? 'twinspan check FILE' looks at it only")
    } else {
        None
    }
}

/// Takes as many descriptors as the system allows: a session needs two, and the soft limit is often 1,024.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "the descriptor limit stays as it is");
        }
    }
}

/// True if `output` is a terminal whose owner has nothing against colours (no-color.org).
fn colours(output: &impl IsTerminal) -> bool {
    let variable = |name| std::env::var_os(name);
    output.is_terminal() && !colourless(variable("NO_COLOR").as_deref(), variable("TERM").as_deref())
}

fn colourless(no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    no_color.is_some_and(|value| !value.is_empty()) || term.is_some_and(|term| term == "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_no_color_is_none_and_a_dumb_terminal_has_no_colours() {
        let without = |no_color: Option<&str>, term: Option<&str>| {
            colourless(no_color.map(OsStr::new), term.map(OsStr::new))
        };
        assert!(!without(None, None) && !without(Some(""), Some("xterm")));
        assert!(without(Some("1"), Some("xterm")) && without(Some(""), Some("dumb")));
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
