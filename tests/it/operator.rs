//! What an operator meets beside traffic: logs that cannot be written, mistyped commands, questions to a running proxy.

use std::{fs::OpenOptions, os::fd::AsRawFd, process::Stdio, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, kill_process},
};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
    time::timeout,
};

use crate::harness::{
    Backend, Ending, Output, Place, Process, Setup, ask_http, binary, connect, eventually, listener, pool,
    read_out, soon,
};

fn signal(child: &Child, signal: Signal) {
    let id = i32::try_from(child.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
}

/// True if a pipe takes nothing more. Its bytes do not tell: it is full when each of its pages is in use, and what is
/// written goes to a new page where the last one has no room for the odd end of it.
fn is_full(pipe: &impl AsRawFd) -> bool {
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    let end = OpenOptions::new().write(true).open(path).unwrap();
    let mut asked = [PollFd::new(&end, PollFlags::OUT)];
    poll(&mut asked, Some(&Timespec::default())).unwrap() == 0
}

#[tokio::test]
async fn a_standard_error_that_nobody_reads_does_not_hold_up_the_end() {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let bind = place.free();
    let tables = pool("only", "", &[("aws", backend.address)]) + &listener(bind, "only", "");
    let setup = Setup::new(&place, tables);
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("twinspan.toml");
    std::fs::write(&config, setup.text()).unwrap();
    let mut command = Command::new(binary());
    command.arg("run").arg(&config).env_remove("TWINSPAN_LOG").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut proxy = command.spawn().unwrap();
    let unread = proxy.stderr.take().unwrap();
    eventually("readiness", async || (ask_http(setup.telemetry, "/readyz").await?.0 == 200).then_some(()))
        .await;
    // A pipe holds 64 KiB at most, and a line is longer than 200 bytes.
    for _ in 0..600 {
        let mut client = connect(bind).await;
        client.shutdown().await.unwrap();
        assert_eq!(read_out(&mut client).await, (Vec::new(), Ending::Clean));
    }
    eventually("a full pipe", async || is_full(&unread).then_some(())).await;
    signal(&proxy, Signal::TERM);
    let status = timeout(Duration::from_secs(15), proxy.wait()).await.expect("it does not end").unwrap();
    assert_eq!(status.code(), Some(0));
    drop(unread);
}

async fn twinspan(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(binary());
    for variable in ["TWINSPAN_CONFIG", "TWINSPAN_ADMIN", "TWINSPAN_LOG"] {
        command.env_remove(variable);
    }
    command.args(arguments).envs(variables.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);
    let output = soon(format!("the end of {command:?}"), command.output()).await.unwrap();
    Output {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[tokio::test]
async fn a_filter_that_is_not_one_is_told_once_with_code_2() {
    for (arguments, variables, source) in [
        (["run", "x.toml", "--log", "warning"].as_slice(), [].as_slice(), "--log"),
        (&["run", "x.toml", "--log", "warning"], &[("TWINSPAN_LOG", "info")], "--log"),
        (&["run", "x.toml"], &[("TWINSPAN_LOG", "warning")], "TWINSPAN_LOG"),
    ] {
        let output = twinspan(arguments, variables).await;
        assert_eq!(output.code, Some(2), "{output:?}");
        let told = "\"warning\" is not a level: error, warn, info, debug, trace, or target=level\n";
        assert_eq!(output.stderr, format!("error: {source}: {told}"));
    }
}

#[tokio::test]
async fn an_empty_variable_is_as_good_as_none() {
    let empty = [("TWINSPAN_CONFIG", ""), ("TWINSPAN_LOG", "")];
    for verb in ["run", "check"] {
        let output = twinspan(&[verb], &empty).await;
        assert_eq!(output.code, Some(2), "{output:?}");
        assert!(output.stderr.starts_with("error: no config file"), "{output:?}");
    }
    // With an empty filter it gets as far as the file.
    let output = twinspan(&["run", "/nowhere/x.toml"], &empty).await;
    assert_eq!(output.code, Some(78), "{output:?}");
}

#[tokio::test]
async fn a_start_that_fails_is_told_on_the_terminal_though_the_log_goes_to_a_file() {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let tables = pool("only", "", &[("aws", place.free())]) + &listener(backend.address, "only", "");
    let folder = tempfile::tempdir().unwrap();
    let (config, log) = (folder.path().join("x.toml"), folder.path().join("x.log"));
    let text = Setup::new(&place, tables).text();
    let write = |log: &std::path::Path| {
        std::fs::write(&config, text.replace("[log]", &format!("[log]\nfile = \"{}\"", log.display())))
            .unwrap();
    };
    write(&log);
    let output = twinspan(&["run", config.to_str().unwrap()], &[]).await;
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("\ntwinspan: cannot start: "), "{output:?}");
    assert!(output.stderr.contains(&backend.address.to_string()), "{output:?}");
    assert!(std::fs::read_to_string(&log).unwrap().contains("cannot start"));

    write(&folder.path().join("none/x.log"));
    let output = twinspan(&["run", config.to_str().unwrap()], &[]).await;
    assert_eq!(output.code, Some(1), "{output:?}");
    let told = format!(
        "\ntwinspan: cannot start: cannot open the log file {}/none/x.log ([log] file): No such file or directory; \
         make its directory\n",
        folder.path().display()
    );
    assert!(output.stderr.ends_with(&told), "{output:?}");
}

#[tokio::test]
async fn who_leaves_out_the_verb_gets_a_tip() {
    for arguments in [["-c", "x.toml"].as_slice(), &["--config=x.toml"]] {
        let output = twinspan(arguments, &[]).await;
        assert_eq!(output.code, Some(2), "{output:?}");
        assert!(output.stderr.contains("did you mean 'twinspan run -c FILE'?"), "{output:?}");
    }
    let output = twinspan(&["x.toml"], &[]).await;
    assert_eq!(output.code, Some(2), "{output:?}");
    assert!(output.stderr.contains("tip: did you mean 'twinspan run FILE'?"), "{output:?}");

    let output = twinspan(&["validate", "/nowhere/x.toml"], &[]).await;
    assert_eq!(output.code, Some(78), "{output:?}");
    let (verb, option) = (twinspan(&["version"], &[]).await, twinspan(&["--version"], &[]).await);
    assert_eq!((verb.code, &verb.stdout), (Some(0), &option.stdout), "{verb:?}");
    assert!(verb.stdout.starts_with("twinspan "), "{verb:?}");
    assert!(!twinspan(&["--help"], &[]).await.stderr.contains("tip:"));
}

/// Waits until a program has set up what it does at this signal.
async fn catches(process: &Process, signal: Signal) {
    let path = format!("/proc/{}/status", process.pid());
    eventually("a handler", async || {
        let status = std::fs::read_to_string(&path).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim();
        let bit = 1 << (signal.as_raw() - 1);
        (u64::from_str_radix(mask, 16).unwrap() & bit != 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_demo_that_serves_is_left_by_a_signal_with_code_0() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut command = Command::new(binary());
        command.args(["demo", "--serve"]);
        let mut demo = Process::start(command);
        catches(&demo, signal).await;
        demo.signal(signal);
        assert_eq!(demo.end().await.code(), Some(0), "{}", demo.said());
    }
}

#[tokio::test]
async fn a_demo_that_is_interrupted_still_prints_its_object() {
    let mut command = Command::new(binary());
    command.args(["demo", "--json"]);
    let mut demo = Process::start(command);
    catches(&demo, Signal::INT).await;
    demo.signal(Signal::INT);
    assert_eq!(demo.end().await.code(), Some(130), "{}", demo.said());
    let object: serde_json::Value = serde_json::from_str(&demo.said()).unwrap();
    assert_eq!((&object["ok"], &object["interrupted"]), (&false.into(), &true.into()), "{object}");
}
