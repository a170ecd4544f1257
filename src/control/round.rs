//! The first round: who starts wants to know when each of many loops has had its first result, and waits no longer
//! than it must.

use std::sync::Arc;

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// Counts the loops that have not had a result yet.
#[derive(Debug)]
pub(super) struct Round {
    pending: Arc<watch::Sender<usize>>,
}

/// One loop's place in the round; dropped at the first result, or when the loop ends without one.
#[derive(Debug)]
pub(super) struct Turnout {
    pending: Arc<watch::Sender<usize>>,
}

impl Round {
    /// A round that nobody has joined.
    pub(super) fn new() -> Self {
        Self { pending: Arc::new(watch::Sender::new(0)) }
    }

    /// One more loop to wait for.
    pub(super) fn join(&self) -> Turnout {
        self.pending.send_modify(|pending| *pending += 1);
        Turnout { pending: Arc::clone(&self.pending) }
    }

    /// True as soon as nobody is waited for, false at the deadline.
    pub(super) fn over(&self, deadline: Instant) -> impl Future<Output = bool> + Send + use<> {
        let mut pending = self.pending.subscribe();
        async move {
            let over = timeout_at(deadline, pending.wait_for(|pending| *pending == 0)).await;
            matches!(over, Ok(Ok(_)))
        }
    }
}

impl Drop for Turnout {
    fn drop(&mut self) {
        self.pending.send_modify(|pending| *pending = pending.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_round_is_over_when_everyone_has_turned_up() {
        let round = Round::new();
        let deadline = Instant::now() + Duration::from_secs(1);
        assert!(round.over(deadline).await, "nobody to wait for");
        let (one, two) = (round.join(), round.join());
        let over = tokio::spawn(round.over(deadline));
        drop(one);
        assert!(!round.over(Instant::now()).await);
        drop(two);
        assert!(over.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_that_is_never_over_ends_at_its_deadline() {
        let round = Round::new();
        let _late = round.join();
        let deadline = Instant::now() + Duration::from_secs(1);
        assert!(!round.over(deadline).await);
        assert_eq!(Instant::now().duration_since(deadline).as_secs(), 0);
    }
}
