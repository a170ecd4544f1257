//! The wait for an endpoint's first byte, in pools that ask for it. What the client sends meanwhile is passed on and yet
//! kept: it is peeked at, so the kernel's receive buffer has it until the endpoint has answered. An endpoint that does not
//! answer counts as one that failed, and where the pool allows it the session goes on at another one, from the beginning.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use rustix::net::{RecvFlags, SendFlags};
use tokio::{
    io::{Interest, unix::AsyncFdReadyGuard},
    time::{Instant, sleep_until},
};

use super::{
    connect::{self, Established},
    racing,
    relay::Watched,
    session::Books,
};
use crate::{
    ids::EndpointIdentity,
    net,
    state::Endpoint,
    sys,
    telemetry::{Cause, End, Side, Stage},
};

/// Bytes of the client that are kept where no session moves: more is a transfer, and watched no further.
const LOOK: usize = 64 * 1024;

/// How long an endpoint that ends the session may take where no time is set: nothing but its end is watched.
const NO_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// What came of the wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// The endpoint has sent something.
    Settled,
    /// The client has sent more than is kept.
    Outgrown,
    /// The endpoint has ended the session.
    Ended,
    /// It is silent for longer than it may be.
    Mute,
}

/// What of the client was passed on.
#[derive(Clone, Copy, Default)]
struct Head {
    bytes: usize,
    /// Its end too.
    ended: bool,
}

/// Waits until the endpoint has answered, at another one if need be, and leaves a pair that the relay can go on with.
///
/// # Errors
/// The session is over: the client has reset, or was idle for too long.
pub(super) async fn settle(
    client: &Watched<'_>,
    books: &mut Books,
    mut established: Established,
) -> Result<Established, End> {
    let mut tried: Vec<Arc<EndpointIdentity>> = Vec::new();
    loop {
        let how = established.pool.connect;
        let kept = how.replay.map_or(LOOK, |replay| usize::try_from(replay.limit).unwrap_or(LOOK));
        let Some(endpoint) = books.endpoint.clone() else { return Ok(established) };
        let (answer, head) = watch(client, &established, kept, how.first_byte.unwrap_or(NO_LIMIT)).await?;
        match answer {
            Answer::Settled => endpoint.cell.vouch(),
            Answer::Mute => endpoint.cell.was_mute(),
            // Counted at the end of the session, unless that goes on elsewhere.
            Answer::Ended | Answer::Outgrown => {}
        }
        let answered = matches!(answer, Answer::Settled | Answer::Outgrown);
        if !answered {
            connect::report(&books.shared, &endpoint, unanswered(answer));
        }
        if answered || how.replay.is_none() {
            return consumed(client, books, established, head);
        }
        tried.push(Arc::clone(&endpoint.identity));
        established = match another(client, books, established, (&endpoint, &tried)).await? {
            (Some(moved), _) => {
                if answer == Answer::Ended {
                    endpoint.cell.was_empty();
                }
                moved
            }
            (None, old) => return consumed(client, books, old, head),
        };
    }
}

const fn unanswered(answer: Answer) -> End {
    let cause = if matches!(answer, Answer::Mute) { Cause::TimedOut } else { Cause::Closed };
    End { side: Side::Upstream, stage: Stage::Relay, cause }
}

/// Looks for an endpoint in place of the one that does not answer; unless that one answers after all.
async fn another(
    client: &Watched<'_>,
    books: &mut Books,
    old: Established,
    (endpoint, tried): (&Arc<Endpoint>, &[Arc<EndpointIdentity>]),
) -> Result<(Option<Established>, Established), End> {
    let claim = books.lend();
    let found = {
        let watched = sys::readiness(old.upstream.as_fd(), Interest::READABLE);
        let answered = async {
            match &watched {
                Ok(watched) => answers(watched).await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            found = racing::connect(client, books, None, tried.to_vec()) => Some(found),
            () = answered => None,
        }
    };
    match found {
        Some(Ok(moved)) => {
            moved.pool.cell.replays();
            Ok((Some(moved), old))
        }
        Some(Err(end)) if end.side == Side::Client => Err(end),
        // Nobody else takes it: it stays where it is.
        Some(Err(_)) | None => {
            books.carried_by(claim.unwrap_or_else(|| connect::Claim::new(Arc::clone(endpoint))));
            Ok((None, old))
        }
    }
}

/// Waits for a byte.
async fn answers(upstream: &Watched<'_>) {
    loop {
        let Ok(mut ready) = upstream.readable().await else { return std::future::pending().await };
        match peek(upstream.get_ref(), 1) {
            Ok(1..) => return,
            Ok(_) => return std::future::pending().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(_) => return std::future::pending().await,
        }
    }
}

/// Passes on what the client sends until the endpoint answers, ends, or is silent for `patience` after the first byte.
async fn watch(
    client: &Watched<'_>,
    established: &Established,
    kept: usize,
    patience: Duration,
) -> Result<(Answer, Head), End> {
    let Ok(upstream) = sys::readiness(established.upstream.as_fd(), Interest::READABLE | Interest::WRITABLE)
    else {
        return Err(connect::EXHAUSTED);
    };
    let idle = Instant::now() + established.limits.idle;
    let (mut head, mut stuck, mut due) = (Head::default(), false, idle);
    // What was peeked at for another endpoint raises no event of its own.
    let mut unseen = true;
    loop {
        let answer = tokio::select! {
            biased;
            ready = upstream.ready(Interest::READABLE) => heard(&upstream, ready),
            _ = client.ready(Interest::ERROR) => {
                return Err(End { side: Side::Client, stage: Stage::Relay, cause: Cause::Reset });
            }
            ready = upstream.ready(Interest::WRITABLE), if stuck => {
                // Before the next try: the edge that follows it must not be missed.
                ready.into_iter().for_each(|mut ready| ready.clear_ready());
                stuck = false;
                unseen = true;
                None
            }
            () = std::future::ready(()), if unseen => {
                unseen = false;
                pass_on(client, &upstream, (&mut head, &mut stuck), kept)
            }
            ready = client.ready(Interest::READABLE), if !stuck && !head.ended => {
                let Ok(mut ready) = ready else { continue };
                let closed = ready.ready().is_read_closed();
                if !closed {
                    ready.clear_ready();
                }
                let answer = pass_on(client, &upstream, (&mut head, &mut stuck), kept);
                if answer.is_none() && closed && !stuck {
                    head.ended = true;
                    net::end_of_stream(upstream.get_ref()).unwrap_or_default();
                }
                answer
            }
            () = sleep_until(due.min(idle)) => match head {
                Head { bytes: 0, ended: false } => {
                    return Err(End { side: Side::Client, stage: Stage::Relay, cause: Cause::Idle });
                }
                _ => Some(Answer::Mute),
            }
        };
        if let Some(answer) = answer {
            return Ok((answer, head));
        }
        if due == idle && (head.bytes > 0 || head.ended) {
            due = Instant::now() + patience;
        }
    }
}

/// What the endpoint has said: nothing yet, something, or its end.
fn heard<'a>(
    upstream: &Watched<'_>,
    ready: io::Result<AsyncFdReadyGuard<'a, BorrowedFd<'a>>>,
) -> Option<Answer> {
    let Ok(mut ready) = ready else { return Some(Answer::Ended) };
    match peek(upstream.get_ref(), 1) {
        Ok(1..) => Some(Answer::Settled),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            ready.clear_ready();
            None
        }
        Ok(_) | Err(_) => Some(Answer::Ended),
    }
}

/// Passes on what is here beyond what was passed on before, and leaves it here.
fn pass_on(
    client: &Watched<'_>,
    upstream: &Watched<'_>,
    (head, stuck): (&mut Head, &mut bool),
    kept: usize,
) -> Option<Answer> {
    let mut bytes = vec![0_u8; kept + 1];
    // Nothing, or a reset that is noticed by itself.
    let (_, here) =
        rustix::net::recv(client.get_ref(), &mut *bytes, RecvFlags::PEEK | RecvFlags::DONTWAIT).ok()?;
    if here > kept {
        return Some(Answer::Outgrown);
    }
    while let Some(rest) = bytes.get(head.bytes..here).filter(|rest| !rest.is_empty()) {
        match rustix::net::send(upstream.get_ref(), rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(written) => head.bytes += written,
            Err(rustix::io::Errno::AGAIN) => {
                *stuck = true;
                return None;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Some(Answer::Ended),
        }
    }
    None
}

/// Takes out of the client's socket what was passed on already: the relay goes on behind it.
fn consumed(
    client: &Watched<'_>,
    books: &mut Books,
    established: Established,
    head: Head,
) -> Result<Established, End> {
    let broken = End { side: Side::Client, stage: Stage::Relay, cause: Cause::Reset };
    let mut left = vec![0_u8; head.bytes];
    let mut taken = 0;
    while let Some(room) = left.get_mut(taken..).filter(|room| !room.is_empty()) {
        match rustix::net::recv(client.get_ref(), room, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return Err(broken),
            Ok((_, bytes)) => taken += bytes,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Err(broken),
        }
    }
    books.passed_on(head.bytes as u64, head.ended);
    Ok(established)
}

fn peek(socket: impl AsFd, bytes: usize) -> io::Result<usize> {
    let mut room = vec![0_u8; bytes];
    let (_, here) = rustix::net::recv(socket, &mut *room, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    Ok(here)
}
