//! What an operator meets beside traffic: logs that cannot be written, mistyped commands, questions to a running proxy.

use std::{process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
    time::timeout,
};

use crate::harness::{
    Backend, Ending, Place, Setup, ask_http, binary, connect, eventually, listener, pool, read_out,
};

fn signal(child: &Child, signal: Signal) {
    let id = i32::try_from(child.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
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
    // A pipe holds 64 KiB, and a line is longer than 200 bytes.
    for _ in 0..600 {
        let mut client = connect(bind).await;
        client.shutdown().await.unwrap();
        assert_eq!(read_out(&mut client).await, (Vec::new(), Ending::Clean));
    }
    eventually("a full pipe", async || (rustix::io::ioctl_fionread(&unread).unwrap() > 60_000).then_some(()))
        .await;
    signal(&proxy, Signal::TERM);
    let status = timeout(Duration::from_secs(15), proxy.wait()).await.expect("it does not end").unwrap();
    assert_eq!(status.code(), Some(0));
    drop(unread);
}
