//! Lets sessions in, or not: by the address of the client, by the limits of the listener, by the memory of the process.
//! Who is not let in is reset before anything was read, and before a pool was chosen.

use std::net::IpAddr;

use tokio::time::Instant;

use super::session::Books;
use crate::{
    state::{Entry, ProxyIn, Refusal},
    telemetry::{Cause, End, Side, Stage},
};

/// Lets a session in that was just accepted, as far as anything is known of it.
pub(super) fn come_in(books: &mut Books) -> Result<(), End> {
    let snapshot = books.shared.snapshot();
    let listener = snapshot.listener(&books.listener);
    books.come_in(listener.and_then(|listener| listener.entry.as_deref()))
}

impl Books {
    /// Lets the session in, once. Where a PROXY header comes first, its client is let in later: [`Books::admit`].
    pub(super) fn come_in(&mut self, entry: Option<&Entry>) -> Result<(), End> {
        if self.attempts > 0 {
            return Ok(());
        }
        if self.shared.memory.is_short() {
            return Err(self.refuse(Refusal::Memory));
        }
        match entry {
            None => Ok(()),
            Some(entry) if entry.proxy_header == ProxyIn::Off => self.admit(entry, self.client.ip()),
            Some(Entry { admission: Some(admission), .. }) if self.admitted().is_none() => {
                let admitted = admission.admit_unknown(Instant::now()).map_err(|why| self.refuse(why))?;
                self.let_in(admitted);
                Ok(())
            }
            Some(_) => Ok(()),
        }
    }

    /// Lets the client itself in, once it is known: by the access list, and by the limits of its source.
    pub(super) fn admit(&mut self, entry: &Entry, source: IpAddr) -> Result<(), End> {
        if !entry.access.admits(source) {
            return Err(self.refuse(Refusal::Denied));
        }
        let Some(admission) = &entry.admission else { return Ok(()) };
        let now = Instant::now();
        match self.admitted() {
            Some(admitted) => admission.count_source(admitted, source, now),
            None => admission.admit(source, now).map(|admitted| self.let_in(admitted)),
        }
        .map_err(|why| self.refuse(why))
    }

    /// Counts that the session is not let in; how it ends.
    pub(super) fn refuse(&mut self, refusal: Refusal) -> End {
        self.listener.refuse(refusal);
        self.note().refused = Some((refusal.as_str(), refusal.reason().into()));
        let cause = match refusal {
            Refusal::Denied => Cause::Denied,
            Refusal::Memory => Cause::Exhausted,
            Refusal::Sessions
            | Refusal::Rate
            | Refusal::SourceSessions
            | Refusal::SourceRate
            | Refusal::Handshakes => Cause::Limited,
        };
        End { side: Side::Proxy, stage: Stage::Accept, cause }
    }
}
