//! One connection: what the modes do, and how latency and faults reach it.

use std::{io, net::Shutdown, sync::Arc, time::Duration};

use socket2::SockRef;
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    time::{self, Instant},
};

use super::{
    Fault, Mode,
    endpoint::{Condition, Shared},
};
use crate::net;

/// Bytes of one read.
const CHUNK: usize = 64 * 1024;

/// Chunks on their way through the latency: with [`CHUNK`] the window of a connection.
const WINDOW: usize = 16;

/// Serves a connection, accepted in this condition, until it ends or is cut.
pub(super) async fn connection(stream: TcpStream, shared: Arc<Shared>, condition: Condition) {
    let _counted = Counted(&shared);
    let mut conditions = shared.watch();
    let pace = Pace { stream: &stream, shared: &shared, conditions: conditions.clone() };
    if condition.fault == Fault::Reset {
        return net::reset_on_close(&stream);
    }
    tokio::select! {
        biased;
        cut = conditions.wait_for(|now| now.cuts > condition.cuts) => {
            // Without an answer the lab is ending, and the kernel closes as it does for a process that ends.
            if cut.is_ok_and(|now| now.fault != Fault::Killed) {
                net::reset_on_close(&stream);
            }
        }
        // How a client ends is its own affair.
        ended = serve(pace) => drop(ended),
    }
}

struct Counted<'a>(&'a Shared);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.finish();
    }
}

/// A chunk and when it is due; an empty one is the end.
struct Parcel {
    due: Instant,
    bytes: Vec<u8>,
}

/// A stream whose bytes stand still while its endpoint is frozen.
#[derive(Clone)]
struct Pace<'a> {
    stream: &'a TcpStream,
    shared: &'a Shared,
    conditions: watch::Receiver<Condition>,
}

async fn serve(mut pace: Pace<'_>) -> io::Result<()> {
    time::sleep(pace.latency()).await;
    let name = format!("{}\n", pace.shared.name);
    match pace.shared.mode {
        Mode::Echo => echo(pace).await,
        Mode::NamedEcho => {
            pace.write_all(name.as_bytes()).await?;
            echo(pace).await
        }
        Mode::Banner => {
            pace.write_all(name.as_bytes()).await?;
            pace.finish().await?;
            pace.drain().await
        }
        Mode::Sink => {
            pace.drain().await?;
            pace.finish().await
        }
        Mode::Source => {
            let mut reader = pace.clone();
            tokio::select! {
                ended = reader.drain() => ended,
                ended = async { loop { pace.write_all(&[0; 16 * 1024]).await?; } } => ended,
            }
        }
    }
}

async fn echo(mut reader: Pace<'_>) -> io::Result<()> {
    let mut writer = reader.clone();
    let (parcels, mut arriving) = mpsc::channel(WINDOW);
    let take = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = reader.read(&mut buffer).await?;
            let bytes = buffer.get(..count).unwrap_or_default().to_vec();
            let due = Instant::now() + reader.latency();
            if parcels.send(Parcel { due, bytes }).await.is_err() || count == 0 {
                return Ok::<_, io::Error>(());
            }
        }
    };
    let give = async {
        while let Some(Parcel { due, bytes }) = arriving.recv().await {
            if due > Instant::now() {
                time::sleep_until(due).await;
            }
            if bytes.is_empty() {
                return writer.finish().await;
            }
            writer.write_all(&bytes).await?;
        }
        Ok(())
    };
    tokio::try_join!(take, give).map(drop)
}

impl Pace<'_> {
    fn latency(&self) -> Duration {
        self.conditions.borrow().latency()
    }

    /// Waits until bytes may move.
    async fn moving(&mut self) {
        // Fails when the endpoint is gone; then its connections go too.
        drop(self.conditions.wait_for(|now| !now.fault.freezes()).await);
    }

    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.moving().await;
            tokio::select! {
                biased;
                _ = self.conditions.changed() => continue,
                ready = self.stream.readable() => ready?,
            }
            match self.stream.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => {
                    self.shared.read(*outcome.as_ref().unwrap_or(&0));
                    return outcome;
                }
            }
        }
    }

    async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.moving().await;
            tokio::select! {
                biased;
                _ = self.conditions.changed() => continue,
                ready = self.stream.writable() => ready?,
            }
            match self.stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => {
                    let count = outcome?;
                    self.shared.wrote(count);
                    bytes = bytes.get(count..).unwrap_or_default();
                }
            }
        }
        Ok(())
    }

    /// Ends our direction.
    async fn finish(&mut self) -> io::Result<()> {
        self.moving().await;
        SockRef::from(self.stream).shutdown(Shutdown::Write)
    }

    /// Reads to the client's end.
    async fn drain(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        while self.read(&mut buffer).await? > 0 {}
        Ok(())
    }
}
