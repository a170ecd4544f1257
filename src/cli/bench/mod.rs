//! `twinspan bench`: load, and targets for it, to measure a proxy and what stands behind it. The work is done in
//! `lab::load`; here is what is typed and what is told.

mod client;
mod exchange;
mod report;
mod signals;
mod stream;
mod target;
mod words;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{Args, Subcommand};

use crate::lab::load::Serves;
use exchange::{ChurnArgs, IdleArgs, RrArgs};
use stream::StreamArgs;
use target::TargetArgs;

/// What `bench` takes.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// Target: send back every byte
    Echo(TargetArgs),
    /// Target: read and discard
    Sink(TargetArgs),
    /// Target: send for ever
    Source(TargetArgs),
    /// Target: do what each connection asks for with --ask or --reply
    Reply(TargetArgs),
    /// Load: requests and replies on connections that stay
    Rr(RrArgs),
    /// Load: bulk, in Gbit/s
    Stream(StreamArgs),
    /// Load: connections that come, ask once, and go
    Churn(ChurnArgs),
    /// Load: connections that do nothing after one exchange
    Idle(IdleArgs),
}

/// Does it. A load succeeds if something worked and no byte was wrong, and if of connections that it held one
/// lives; a target, if it could listen.
#[must_use]
pub fn run(args: &BenchArgs) -> ExitCode {
    let outcome = match &args.verb {
        Verb::Echo(args) => target::run(*args, Serves::Echo),
        Verb::Sink(args) => target::run(*args, Serves::Sink),
        Verb::Source(args) => target::run(*args, Serves::Source),
        Verb::Reply(args) => target::run(*args, Serves::Asked),
        Verb::Rr(args) => exchange::rr(args),
        Verb::Stream(args) => stream::run(args),
        Verb::Churn(args) => exchange::churn(args),
        Verb::Idle(args) => exchange::idle(args),
    };
    outcome.unwrap_or_else(|error| {
        say(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}

/// Without standard error there is nobody to tell.
fn say(line: &str) {
    drop(writeln!(io::stderr().lock(), "{line}"));
}
