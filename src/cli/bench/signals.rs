//! SIGINT and SIGTERM: an early end, and not a failure.

use std::{
    io, process,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread::{self, Thread},
};

use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// True once the user wants it to end.
pub(super) fn interrupted() -> bool {
    INTERRUPTED.load(Relaxed)
}

/// Notes the signals from now on, and wakes `waiter`. A second one ends at once.
pub(super) fn heed(waiter: Thread) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let watch = move || {
        let mut next = || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => SignalKind::interrupt(),
                    _ = terminate.recv() => SignalKind::terminate(),
                }
            })
        };
        next();
        INTERRUPTED.store(true, Relaxed);
        waiter.unpark();
        leave(next());
    };
    thread::Builder::new().name("signals".to_owned()).spawn(watch)?;
    Ok(())
}

#[expect(clippy::exit, reason = "whoever asks twice does not want to wait for the summary")]
fn leave(signal: SignalKind) {
    process::exit(128 + signal.as_raw_value());
}
