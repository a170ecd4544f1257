//! `twinspan demo`: two fake clouds, the real proxy and real load in one process on loopback. One cloud dies and comes
//! back; the run ends with what that cost, and succeeds only if it cost no more than promised.

mod books;
mod findings;
mod judge;
mod load;
mod picture;
mod plan;
mod proxy;
mod report;
mod screen;
mod script;

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use tokio::runtime;

use crate::lab::{Cloud, CloudOptions, Lab, Mode};
use plan::Plan;
use proxy::{Doors, Proxy, Real};
use report::Report;
use screen::Screen;
use script::{Ended, Run, Signals};

/// What `twinspan demo` takes.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct DemoArgs {
    /// Print the result as one JSON object and nothing else
    #[arg(long, conflicts_with = "serve")]
    pub json: bool,
    /// Keep running, with the load, until told to stop; in a terminal k kills a cloud and r revives it
    #[arg(long)]
    pub serve: bool,
}

/// Runs the demo. Success means that its assertions hold.
#[must_use]
pub fn run(args: DemoArgs) -> ExitCode {
    match demo(args) {
        Ok(code) => code,
        Err(error) => {
            // Without standard error there is nobody to tell.
            drop(writeln!(io::stderr().lock(), "twinspan: demo: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn demo(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let lab = Lab::start().context("start the lab")?;
    let clouds = clouds(&lab).context("start the clouds")?;
    let doors = if args.serve { Some(Doors::find().context("find free ports")?) } else { None };
    let proxy = Real::start(&clouds, doors)?;
    let mut screen = if args.json { Screen::Nothing } else { Screen::open() };
    let plan = if args.serve { Plan::serve() } else { Plan::script() };
    if let Some(doors) = doors {
        screen.line(&format!("proxy      {}", proxy.address()));
        screen.line(&format!("admin      http://{}/api/v1/status", doors.admin));
        screen.line(&format!("telemetry  http://{}/metrics", doors.telemetry));
    }
    let runtime = runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let outcome = runtime.block_on(play(&proxy, &clouds, plan, &mut screen));
    // The terminal is given back before anything else is written.
    drop(screen);
    proxy.drain();
    let (ended, report) = outcome?;
    if let Some(report) = &report {
        let text = if args.json { serde_json::to_string_pretty(report)? } else { report.line() };
        shown(screen::write_line(&text))?;
    }
    if let (Ended::Interrupted(signal), true) = (ended, args.json) {
        // Whoever reads objects gets one in any case.
        let text = serde_json::json!({ "ok": false, "interrupted": true, "signal": signal });
        shown(screen::write_line(&format!("{text:#}")))?;
    }
    Ok(exit_code(ended, args.serve, report.is_some_and(|report| report.ok)))
}

/// What runs until it is told to stop has done so when it is: that is no failure.
fn exit_code(ended: Ended, serve: bool, ok: bool) -> ExitCode {
    match ended {
        Ended::Finished if ok => ExitCode::SUCCESS,
        Ended::Quit | Ended::Interrupted(_) if serve => ExitCode::SUCCESS,
        Ended::Finished | Ended::Quit => ExitCode::FAILURE,
        Ended::Interrupted(signal) => ExitCode::from(128 + signal),
    }
}

/// One run against a proxy; with a report if it went to its end.
async fn play<P: Proxy>(
    proxy: &P,
    clouds: &[Cloud; 2],
    plan: Plan,
    screen: &mut Screen,
) -> anyhow::Result<(Ended, Option<Report>)> {
    let mut signals = Signals::catch()?;
    let mut run = tokio::select! {
        run = Run::start(proxy, clouds, plan, screen) => run?,
        number = signals.next() => return Ok((Ended::Interrupted(number), None)),
    };
    let ended = run.play(&mut signals).await?;
    let report = match ended {
        Ended::Finished => Some(Report::new(&run.findings()?, run.events.iter())),
        Ended::Quit | Ended::Interrupted(_) => None,
    };
    Ok((ended, report))
}

/// Virginia seen from next door, and from across the land.
fn clouds(lab: &Lab) -> io::Result<[Cloud; 2]> {
    let cloud = |name, latency| {
        let latency = Duration::from_millis(latency);
        lab.cloud_with(
            name,
            CloudOptions { endpoints: 2, latency, mode: Mode::NamedEcho, ..CloudOptions::default() },
        )
    };
    Ok([cloud("aws", 2)?, cloud("gcp", 18)?])
}

/// A reader that is gone is no failure.
fn shown(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests;
