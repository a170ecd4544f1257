//! `twinspan bench echo`, `sink`, `source` and `reply`: what a load is aimed at.

use std::{io, net::SocketAddr, process::ExitCode, thread, time::Duration};

use anyhow::Context as _;
use tokio::time::Instant;

use super::{report::bytes, signals};
use crate::{
    cli::check,
    config::counted,
    lab::load::{Served, Serves, Target, TargetOptions},
};

/// What a target takes.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct TargetArgs {
    /// Where to listen; port 0 takes any free one. By default a port of 127.0.0.1: echo 9701, sink 9702, source 9703,
    /// reply 9704
    #[arg(value_name = "ADDR")]
    address: Option<SocketAddr>,
    /// Threads that serve, each with a socket of its own at the same port
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
}

/// Serves until it is told to stop, and that is success.
pub(super) fn run(args: TargetArgs, serves: Serves) -> anyhow::Result<ExitCode> {
    let (name, port) = match serves {
        Serves::Echo => ("echo", 9701),
        Serves::Sink => ("sink", 9702),
        Serves::Source => ("source", 9703),
        Serves::Asked => ("reply", 9704),
    };
    let address = args.address.unwrap_or_else(|| ([127, 0, 0, 1], port).into());
    crate::cli::raise_descriptor_limit();
    signals::heed(thread::current()).context("cannot heed signals")?;
    let options = TargetOptions { address, serves, threads: usize::from(args.threads) };
    let target = Target::start(&options).map_err(|error| refused(address, &error))?;
    let start = Instant::now();
    let threads = counted(options.threads, "thread");
    let failed =
        check::print(&format!("{name}: listening on {} ({threads})\n", target.address()), ExitCode::SUCCESS);
    if failed != ExitCode::SUCCESS {
        return Ok(failed);
    }
    while !signals::interrupted() {
        thread::park();
    }
    let served = target.finish()?;
    Ok(check::print(&format!("{name}: {}\n", summary(&served, start.elapsed())), ExitCode::SUCCESS))
}

fn summary(served: &Served, time: Duration) -> String {
    let Served { connections, received, sent } = *served;
    let connections = counted(usize::try_from(connections).unwrap_or(usize::MAX), "connection");
    let (received, sent) = (bytes(received), bytes(sent));
    format!("{connections}, received {received}, sent {sent}, in {:.1} s", time.as_secs_f64())
}

fn refused(address: SocketAddr, error: &io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => ": another address or port 0 (any free one) may be given",
        _ => "",
    };
    anyhow::anyhow!("cannot listen on {address}: {error}{hint}")
}
