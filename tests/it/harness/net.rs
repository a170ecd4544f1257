//! Networks of a test's own: a namespace with its own loopback device, settings and firewall rules, which touch nobody
//! else. They need root and say so where it is missing.

use std::{
    fs::File,
    os::fd::AsFd,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::runtime::Builder;

use super::{missing, skip, skip_on_this_machine};

/// A network namespace with a loopback device.
#[derive(Debug)]
pub(crate) struct Net {
    name: String,
}

impl Net {
    /// Makes one, unless this machine forbids it.
    pub(crate) fn new(test: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if let Some(reason) = missing(&["ip", "iptables"]) {
            skip(test, &reason);
            return None;
        }
        if !rustix::process::geteuid().is_root() {
            skip_on_this_machine(test, "needs root");
            return None;
        }
        let name = format!("twinspan-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        if let Err(error) = command(&["ip", "netns", "add", &name]) {
            skip_on_this_machine(test, &format!("no network namespaces: {error}"));
            return None;
        }
        Some(Self { name })
    }

    /// Its name, as `ip -n` takes it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs a test in here: on a thread of its own, as threads and processes that it starts are then here too.
    pub(crate) fn run(&self, test: impl AsyncFnOnce() + Send) {
        let inside = || {
            let namespace = File::open(format!("/run/netns/{}", self.name)).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            command(&["ip", "link", "set", "lo", "up"]).unwrap();
            let mut runtime = Builder::new_multi_thread();
            runtime.worker_threads(2).enable_all().build().unwrap().block_on(test());
        };
        let ended = std::thread::scope(|scope| scope.spawn(inside).join());
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        drop(command(&["ip", "netns", "del", &self.name]));
    }
}

/// Runs a program to its end; what it said if it failed.
pub(crate) fn command(words: &[&str]) -> Result<(), String> {
    let (program, arguments) = words.split_first().unwrap();
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output =
        Command::new(program).args(arguments).env("PATH", path).stdin(Stdio::null()).output().unwrap();
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{words:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// Adds (`-A`) or removes (`-D`) a rule that drops.
pub(crate) fn rule(action: &str, what: &[&str]) {
    let rule = [&["iptables", "-w", action, "INPUT"], what, &["-j", "DROP"]].concat();
    command(&rule).unwrap();
}
