//! New sessions at a steady rate, whatever becomes of those before.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::PATIENCE;

/// What became of one session.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// When the client began.
    pub(crate) begun: Instant,
    /// From then to the end.
    pub(crate) took: Duration,
    /// The name of the endpoint that answered, or what went wrong.
    pub(crate) answer: Result<String, String>,
}

/// Clients that keep coming.
#[derive(Debug)]
pub(crate) struct Load {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Vec<Outcome>>,
}

impl Load {
    /// Sends `per_second` new sessions to `address`.
    pub(crate) fn start(address: SocketAddr, per_second: u32) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_secs(1) / per_second);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut sessions = JoinSet::new();
            loop {
                tokio::select! {
                    _ = ticks.tick() => drop(sessions.spawn(session(address))),
                    _ = &mut stopped => return sessions.join_all().await,
                }
            }
        });
        Self { stop, task }
    }

    /// No more clients; waits for those that are here.
    pub(crate) async fn stop(self) -> Vec<Outcome> {
        self.stop.send(()).unwrap();
        self.task.await.unwrap()
    }
}

async fn session(address: SocketAddr) -> Outcome {
    let begun = Instant::now();
    let answer = match timeout(PATIENCE, ask(address)).await {
        Ok(Ok(name)) if !name.is_empty() => Ok(name),
        Ok(Ok(_)) => Err("ended without an answer".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    };
    Outcome { begun, took: begun.elapsed(), answer }
}

/// One session with an endpoint that says its name: which one was it?
pub(crate) async fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"?").await?;
    stream.shutdown().await?;
    let mut name = String::new();
    stream.read_to_string(&mut name).await?;
    Ok(name)
}
