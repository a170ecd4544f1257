//! What a finished run amounts to: the sessions of the load, sorted by what happened to their clouds.

use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

use super::{
    books::{Failure, Kind, Outage, Quantiles, Session},
    judge::{Limits, Measured, Phase},
    plan::{PREFERRED, SURVIVOR},
    proxy::Proxy,
    script::Run,
};

/// What a finished run amounts to.
#[derive(Debug)]
pub(super) struct Findings {
    pub(super) measured: Measured,
    pub(super) limits: Limits,
    pub(super) started: u64,
    pub(super) sessions: Vec<Session>,
    /// Those that failed and need not have.
    pub(super) failed: Vec<Session>,
    /// Those that died with their cloud.
    pub(super) cut: Vec<Session>,
    /// First bytes of sessions before the kill, and of sessions between failover and revival.
    pub(super) first_bytes: [Option<Quantiles>; 2],
    /// From the revival to the first share.
    pub(super) back: Option<Duration>,
}

impl<P: Proxy> Run<'_, P> {
    /// Sums up. Without a kill and a revival nothing has been measured.
    pub(super) fn findings(&self) -> anyhow::Result<Findings> {
        let books = self.load.books();
        let (Some(Outage { began, in_force: Some(in_force), .. }), Some(revived), Some(end)) =
            (books.last_outage(), self.marks.revived, self.marks.end)
        else {
            bail!("the script did not run to its end");
        };
        let sessions = books.sessions();
        let outage = Outage { cloud: PREFERRED, began, in_force: Some(in_force) };
        let (cut, failed): (Vec<_>, Vec<_>) = sessions
            .iter()
            .filter(|session| session.failure.is_some())
            .partition(|session| outage.excuses(session));
        let last = end.checked_sub(self.plan.last).unwrap_or(end);
        let moved = self.marks.moved.unwrap_or(revived);
        let first_bytes = |from: Instant, to: Instant| {
            Quantiles::of(good(&sessions, from, to).filter_map(|session| session.first_byte))
        };
        let long = |session: &&Session| session.kind == Kind::Long && session.cloud.is_some();
        let measured = Measured {
            before: phase(&sessions, self.begun, began),
            outage: phase(&sessions, in_force, revived),
            revived: phase(&sessions, last, end),
            first_answer: self.marks.answered.map(|answered| answered.duration_since(began)),
            moved: self.marks.moved.map(|moved| moved.duration_since(began)),
            failed: failed.len() as u64,
            lost: failed.iter().filter(long).count() as u64,
            wrong: failed.iter().filter(|one| one.failure == Some(Failure::WrongBytes)).count() as u64,
            survivors: sessions
                .iter()
                .filter(long)
                .filter(|one| one.cloud == Some(SURVIVOR) && one.failure.is_none())
                .filter(|one| one.begun < revived && one.ended >= end)
                .count() as u64,
        };
        Ok(Findings {
            measured,
            limits: self.plan.limits(),
            started: books.totals().started,
            first_bytes: [first_bytes(self.begun, began), first_bytes(moved, revived)],
            failed,
            cut,
            sessions,
            back: self.marks.back.map(|back| back.duration_since(revived)),
        })
    }
}

/// Short sessions begun in this time that ended well.
fn good(sessions: &[Session], from: Instant, to: Instant) -> impl Iterator<Item = &Session> {
    sessions.iter().filter(move |session| {
        session.kind == Kind::Short && session.failure.is_none() && (from..to).contains(&session.begun)
    })
}

fn phase(sessions: &[Session], from: Instant, to: Instant) -> Phase {
    Phase {
        sessions: good(sessions, from, to).count() as u64,
        on_preferred: good(sessions, from, to).filter(|one| one.cloud == Some(PREFERRED)).count() as u64,
    }
}
