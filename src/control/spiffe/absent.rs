//! In the place of the Workload API in a build without it. A config that asks for it is refused before this is called.

use std::{convert::Infallible, future};

use crate::{
    config::WorkloadApi,
    tls::{self, Workload},
};

/// Nothing that can be listened to.
pub(super) struct Feed(Infallible);

impl Feed {
    /// Says that there is none.
    pub(super) fn open(api: &WorkloadApi) -> impl Future<Output = Result<Self, tls::Error>> {
        let what = format!("{api}: this build has no SPIFFE Workload API: build with --features spiffe");
        future::ready(Err(tls::Error::Workload(what)))
    }

    /// Never called.
    pub(super) fn next(&mut self) -> impl Future<Output = Result<Workload, tls::Error>> {
        match self.0 {}
        #[expect(unreachable_code, reason = "the future needs a type")]
        future::pending()
    }
}
