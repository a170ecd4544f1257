//! The wait for an endpoint's first byte, in pools that ask for it. What the client sends meanwhile is passed on, and kept
//! where it may have to be sent again. An endpoint that does not answer counts as one that failed, and where the pool
//! allows it the session goes on at another one, from the beginning.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags},
};
use tokio::{
    io::{Interest, unix::AsyncFdReadyGuard},
    time::{Instant, sleep_until},
};

use super::{
    connect::{self, Established},
    relay::Watched,
    session::{AT_ONCE, Books},
    towards,
};
use crate::{
    ids::EndpointIdentity,
    net,
    state::{Connect, Endpoint},
    sys,
    telemetry::{Cause, End, Side, Stage},
};

/// Bytes of the client after which a session that does not move is watched no further: more is a transfer.
const LOOK: usize = 64 * 1024;

/// How long an endpoint that ends the session may take where no time is set: nothing but its end is watched.
const NO_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Bytes that are read at once.
const BUFFER: usize = 16 * 1024;

const RESET: End = End { side: Side::Client, stage: Stage::Relay, cause: Cause::Reset };
const IDLE: End = End { side: Side::Client, stage: Stage::Relay, cause: Cause::Idle };

thread_local! {
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into());
}

/// What came of the wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// The endpoint has sent something.
    Settled,
    /// There is nothing to wait for: the client has sent more than is kept or has left without a word, or the endpoint has
    /// ended a session that nobody used.
    Moot,
    /// The endpoint has ended the session.
    Ended,
    /// It is silent for longer than it may be.
    Mute,
}

/// What the client has sent, and how much of it the endpoint that is waited for has got.
#[derive(Default)]
struct Head {
    /// Bytes that are not kept any more: no session moves.
    gone: usize,
    kept: Vec<u8>,
    /// Of those that are kept.
    sent: usize,
    writes: u32,
    /// The client has ended its direction.
    over: bool,
    /// And the endpoint knows.
    ended: bool,
    /// The endpoint has no room for more.
    stuck: bool,
}

/// What a pool asks for.
#[derive(Clone, Copy)]
struct Rules {
    /// Bytes that are waited with.
    most: usize,
    moves: bool,
    patience: Duration,
}

impl Rules {
    fn of(connect: &Connect) -> Self {
        let most = connect.replay.map_or(LOOK, |replay| usize::try_from(replay.limit).unwrap_or(LOOK));
        let patience = connect.first_byte.unwrap_or(NO_LIMIT);
        Self { most, moves: connect.replay.is_some(), patience }
    }
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
    let mut tried = books.lost_by();
    let mut head = Head::default();
    loop {
        let rules = Rules::of(&established.pool.connect);
        let Some(endpoint) = books.endpoint.clone() else { return Ok(established) };
        let answer = watch(client, &established, &mut head, rules).await?;
        match answer {
            Answer::Settled => endpoint.cell.vouch(),
            Answer::Mute => endpoint.cell.was_mute(),
            // Counted at the end of the session, unless that goes on elsewhere.
            Answer::Ended | Answer::Moot => {}
        }
        let answered = matches!(answer, Answer::Settled | Answer::Moot);
        if !answered {
            connect::report(&books.shared, &endpoint, unanswered(answer));
        }
        if answered || !rules.moves {
            head.leave_to(books);
            return Ok(established);
        }
        tried.push(Arc::clone(&endpoint.identity));
        books.asked = head.taken() > 0;
        let (moved, is_other) = another(client, books, established, (&endpoint, &tried)).await?;
        if !is_other {
            head.leave_to(books);
            return Ok(moved);
        }
        if answer == Answer::Ended {
            endpoint.cell.was_empty();
        }
        head = head.again();
        established = moved;
    }
}

const fn unanswered(answer: Answer) -> End {
    let cause = if matches!(answer, Answer::Mute) { Cause::TimedOut } else { Cause::Closed };
    End { side: Side::Upstream, stage: Stage::Relay, cause }
}

/// Looks for an endpoint in place of the one that does not answer; unless that one answers after all. True if it is another
/// one.
async fn another(
    client: &Watched<'_>,
    books: &mut Books,
    old: Established,
    (endpoint, tried): (&Arc<Endpoint>, &[Arc<EndpointIdentity>]),
) -> Result<(Established, bool), End> {
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
            found = towards::connect(client, books, None, tried.to_vec()) => Some(found),
            () = answered => None,
        }
    };
    match found {
        Some(Ok(moved)) => {
            moved.pool.cell.replays();
            Ok((moved, true))
        }
        Some(Err(end)) if end.side == Side::Client => Err(end),
        // Nobody else takes it: it stays where it is.
        Some(Err(_)) | None => {
            books.carried_by(claim.unwrap_or_else(|| connect::Claim::new(Arc::clone(endpoint))));
            Ok((old, false))
        }
    }
}

/// Waits for a byte; for ever if the endpoint ends without one.
async fn answers(upstream: &Watched<'_>) {
    loop {
        match heard(upstream, upstream.readable().await) {
            None => {}
            Some(Answer::Settled) => return,
            Some(_) => return std::future::pending().await,
        }
    }
}

/// Passes on what the client sends until the endpoint answers, ends, or is silent for too long after the client's last byte
/// so far.
async fn watch(
    client: &Watched<'_>,
    established: &Established,
    head: &mut Head,
    rules: Rules,
) -> Result<Answer, End> {
    let Ok(upstream) = sys::readiness(established.upstream.as_fd(), sys::EVERYTHING) else {
        return Err(connect::EXHAUSTED);
    };
    let begun = Instant::now();
    let (mut last, mut seen) = (begun, head.progress());
    // What the client has sent before raises no event.
    let mut unseen = true;
    loop {
        let idle = last + established.limits.idle;
        let due = if head.taken() > 0 { (last + rules.patience).min(idle) } else { idle };
        let answer = tokio::select! {
            biased;
            ready = upstream.ready(Interest::READABLE) => match heard(&upstream, ready) {
                // As a server does whose client asks nothing for long.
                Some(Answer::Ended) if head.taken() == 0 && begun.elapsed() >= AT_ONCE => Some(Answer::Moot),
                heard => heard,
            },
            _ = client.ready(Interest::ERROR) => return Err(RESET),
            ready = upstream.ready(Interest::WRITABLE), if head.stuck => {
                // Before the next try: the edge that follows it must not be missed.
                ready.into_iter().for_each(|mut ready| ready.clear_ready());
                head.pass_on(client, &upstream, rules)?
            }
            () = std::future::ready(()), if unseen => {
                unseen = false;
                head.pass_on(client, &upstream, rules)?
            }
            ready = client.ready(Interest::READABLE), if !head.stuck && !head.over => {
                // In the same way.
                ready.map_err(|_| RESET)?.clear_ready();
                head.pass_on(client, &upstream, rules)?
            }
            () = sleep_until(due) => {
                if head.taken() == 0 || rules.patience > established.limits.idle {
                    return Err(IDLE);
                }
                Some(Answer::Mute)
            }
        };
        if let Some(answer) = answer {
            return Ok(answer);
        }
        if head.progress() != seen {
            (last, seen) = (Instant::now(), head.progress());
        }
    }
}

/// What the endpoint has said: nothing yet, something, or its end.
fn heard<'a>(
    upstream: &Watched<'_>,
    ready: io::Result<AsyncFdReadyGuard<'a, BorrowedFd<'a>>>,
) -> Option<Answer> {
    let Ok(mut ready) = ready else { return Some(Answer::Ended) };
    match connect::peek(upstream.get_ref()) {
        Ok(1..) => Some(Answer::Settled),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            ready.clear_ready();
            None
        }
        Ok(_) | Err(_) => Some(Answer::Ended),
    }
}

impl Head {
    /// Bytes that the client has sent.
    const fn taken(&self) -> usize {
        self.gone + self.kept.len()
    }

    /// Changes when something has moved.
    const fn progress(&self) -> (usize, usize, bool) {
        (self.taken(), self.gone + self.sent, self.ended)
    }

    /// The same from the beginning, for another endpoint.
    fn again(self) -> Self {
        Self { kept: self.kept, over: self.over, ..Self::default() }
    }

    /// Tells the books where the session is: the relay goes on from there.
    fn leave_to(mut self, books: &mut Books) {
        let rest = self.kept.split_off(self.sent.min(self.kept.len()));
        books.passed_on((self.gone + self.sent) as u64, rest.into(), self.ended);
    }

    /// Passes on what is here, until there is no more of it or no room for it.
    fn pass_on(
        &mut self,
        client: &Watched<'_>,
        upstream: &Watched<'_>,
        rules: Rules,
    ) -> Result<Option<Answer>, End> {
        loop {
            if let Err(error) = self.send(upstream) {
                self.stuck = error == Errno::AGAIN;
                return Ok((!self.stuck).then_some(Answer::Ended));
            }
            self.stuck = false;
            if !rules.moves {
                self.gone += std::mem::take(&mut self.kept).len();
                self.sent = 0;
            }
            if self.over {
                // Who leaves without a word asks for nothing: a balancer's look at whether a listener is there.
                if self.taken() == 0 {
                    return Ok(Some(Answer::Moot));
                }
                if !self.ended {
                    self.ended = true;
                    net::end_of_stream(upstream.get_ref()).unwrap_or_default();
                }
                return Ok(None);
            }
            match self.take(client, rules.most) {
                Ok(true) => {}
                Ok(false) => return Ok(Some(Answer::Moot)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(_) => return Err(RESET),
            }
        }
    }

    /// Sends what has not been sent.
    fn send(&mut self, upstream: &Watched<'_>) -> Result<(), Errno> {
        while let Some(rest) = self.kept.get(self.sent..).filter(|rest| !rest.is_empty()) {
            if self.writes == 1 {
                net::set_nodelay(upstream.get_ref());
            }
            match rustix::net::send(upstream.get_ref(), rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(written) => self.sent += written,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
            self.writes = self.writes.saturating_add(1);
        }
        Ok(())
    }

    /// Reads once, or notes the client's end. False when there is more than may be kept: that stays where it is.
    fn take(&mut self, client: &Watched<'_>, most: usize) -> Result<bool, Errno> {
        SHARED.with_borrow_mut(|buffer| {
            let room = most.saturating_sub(self.taken()).min(buffer.len());
            let (room, look) = if room == 0 { (1, RecvFlags::PEEK) } else { (room, RecvFlags::empty()) };
            let bytes = buffer.get_mut(..room).unwrap_or_default();
            match rustix::net::recv(client.get_ref(), &mut *bytes, RecvFlags::DONTWAIT | look) {
                Ok((_, 0)) => self.over = true,
                Ok(_) if !look.is_empty() => return Ok(false),
                Ok((_, here)) => self.kept.extend_from_slice(bytes.get(..here).unwrap_or_default()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
            Ok(true)
        })
    }
}
