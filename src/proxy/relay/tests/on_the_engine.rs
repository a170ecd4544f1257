//! The cases over the engine.

use std::{
    sync::{Arc, LazyLock},
    thread,
};

use super::{Bed, books, inner, pair};
use crate::{
    proxy::{
        engine::{Engine, Handovers, Mailbox},
        session::Moved,
    },
    state::SessionLimits,
};

#[expect(clippy::duplicate_mod, reason = "the same is asked of both drivers")]
#[path = "cases.rs"]
mod cases;
#[expect(clippy::duplicate_mod, reason = "the same is asked of both drivers")]
#[path = "random.rs"]
mod random;
#[expect(clippy::duplicate_mod, reason = "the same is asked of both drivers")]
#[path = "slow_readers.rs"]
mod slow_readers;

/// One engine carries the sessions of all tests, beside each other.
static ENGINE: LazyLock<Arc<Mailbox>> = LazyLock::new(|| {
    let mailbox = Arc::new(Mailbox::new().unwrap());
    let (_, shared, ..) = books();
    let crew = vec![Arc::clone(&mailbox)].into();
    let engine = Engine::new(0, shared, crew, Arc::new(Handovers::default())).unwrap();
    thread::spawn(move || engine.run());
    mailbox
});

/// Must be called within a runtime.
pub(super) fn bed(limits: SessionLimits) -> Bed {
    let (client, proxy_client) = pair();
    let (upstream, proxy_upstream) = pair();
    let (books, shared, listener, endpoint) = books();
    ENGINE.adopt(inner(proxy_client), inner(proxy_upstream), books, Arc::new(limits));
    let relay = tokio::spawn(async move {
        shared.sessions.quiet().await;
        let (to_upstream, to_client) = endpoint.cell.bytes();
        (listener.ends().next().unwrap().0, Moved { to_upstream, to_client })
    });
    Bed { client, upstream, relay }
}
