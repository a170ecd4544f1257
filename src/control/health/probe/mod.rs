//! One probe: ask an endpoint once, under one deadline, and say in a few words what was wrong with the answer.

mod answer;
mod http;
mod secure;
#[cfg(test)]
mod tests;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout_at},
};

pub use self::secure::{Manner, Secure};
use self::{
    answer::{Answer, LIMIT, quote},
    secure::Stream,
};
use crate::{
    config::{Health, Probe},
    net::{self, Outgoing},
    telemetry::Cause,
};

/// How a probe went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The endpoint answered as it should.
    Good,
    /// It did not, for this reason.
    Bad(String),
    /// It answered, and wrongly: its own word, for this reason.
    Wrong(String),
    /// This machine could not ask: no evidence against the endpoint.
    Local(String),
}

/// One deadline for everything a probe does, and its words when the deadline passes.
#[derive(Clone, Copy, Debug)]
struct Limit {
    at: Instant,
    timeout: Duration,
}

/// What a probe goes by.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Way {
    /// What it asks, and when.
    pub(super) settings: Arc<Health>,
    /// How the sockets of sessions are set up: a probe must travel the path that they take.
    pub(super) socket: Arc<Outgoing>,
    /// What an endpoint is given before it is asked.
    pub(super) manner: Manner,
}

/// Asks `address` once. Ends within `settings.timeout`, give or take the runtime's own delays.
pub(super) async fn probe(address: SocketAddr, way: Way) -> Outcome {
    let Way { settings, socket, manner } = way;
    let limit = Limit { at: Instant::now() + settings.timeout, timeout: settings.timeout };
    match attempt((address, &socket), &manner, &settings.probe, limit).await {
        Ok(()) => Outcome::Good,
        Err(outcome) => outcome,
    }
}

async fn attempt(
    (address, socket): (SocketAddr, &Outgoing),
    manner: &Manner,
    probe: &Probe,
    limit: Limit,
) -> Result<(), Outcome> {
    // With TCP Fast Open a connect says nothing about the endpoint.
    let socket = socket.without_fast_open();
    let stream = match timeout_at(limit.at, net::dial(address, &socket)).await {
        Ok(connected) => connected.map_err(|error| failed("connect", &error))?,
        Err(_) => return Err(Outcome::Bad(format!("connect: no answer within {limit}"))),
    };
    let mut stream = manner.prepare(stream, matches!(probe, Probe::Http { .. }), limit).await?;
    match probe {
        Probe::Tcp { send, expect } => {
            let talked = talk(&mut stream, send, expect, limit).await;
            if manner.tls.is_some() && talked.is_ok() {
                // An end without a word of it would be an error in the endpoint's log. The verdict stands.
                drop(timeout_at(limit.at, stream.shutdown()).await);
            }
            talked
        }
        Probe::Http { path, host, status, body } => {
            let host = host.clone().unwrap_or_else(|| address.to_string());
            let request = http::request(path, &host)?;
            http::ask(stream, request, http::Wanted { status, body: body.as_deref() }, limit).await
        }
    }
}

/// Sends what is to be sent and reads until the answer has what it must.
async fn talk(stream: &mut Stream, send: &[u8], expect: &[u8], limit: Limit) -> Result<(), Outcome> {
    let mut answer = Answer::default();
    let exchange = async {
        if !send.is_empty() {
            stream.write_all(send).await.map_err(|error| failed("send", &error))?;
        }
        let mut chunk = [0; 1024];
        while !answer.contains(expect) {
            if answer.is_full() {
                return Err(lacks(expect, format_args!(" in its first {} KiB", LIMIT / 1024)));
            }
            match stream.read(&mut chunk).await.map_err(|error| failed("read", &error))? {
                0 if answer.bytes().is_empty() => {
                    return Err(Outcome::Bad(format!("closed without an answer, wanted {}", quote(expect))));
                }
                0 => return Err(lacks(expect, format_args!(": got {}", quote(answer.bytes())))),
                count => answer.add(chunk.get(..count).unwrap_or_default()),
            }
        }
        Ok(())
    };
    match timeout_at(limit.at, exchange).await {
        Ok(result) => result,
        Err(_) if answer.bytes().is_empty() => Err(Outcome::Bad(format!("no answer within {limit}"))),
        Err(_) => {
            let (wanted, got) = (quote(expect), quote(answer.bytes()));
            Err(Outcome::Bad(format!("no {wanted} within {limit}: got {got}")))
        }
    }
}

fn lacks(expect: &[u8], rest: std::fmt::Arguments<'_>) -> Outcome {
    Outcome::Wrong(format!("answer lacks {}{rest}", quote(expect)))
}

/// An I/O error, blamed on whom it belongs to.
fn failed(doing: &str, error: &io::Error) -> Outcome {
    let why = format!("{doing}: {}", plain(error));
    if Cause::of(error) == Cause::Exhausted { Outcome::Local(why) } else { Outcome::Bad(why) }
}

/// The error in words for people: no number, lower case.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let words = text.split_once(" (os error").map_or(&*text, |(words, _)| words);
    let mut chars = words.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        humantime::format_duration(self.timeout).fmt(f)
    }
}
