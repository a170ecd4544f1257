//! How sessions of a pool find their endpoint: races, replays and queues.

use super::{
    super::{
        Connecting, Replay, defaults, file,
        keys::Key,
        problem::{Code, Problem},
    },
    Build, place,
};

/// The most that may be sent again: more than this is no request but a transfer.
const REPLAY_MOST: u32 = 1 << 20;

impl Build<'_> {
    /// How this pool is connected to.
    pub(super) fn connecting(&mut self, pool: &file::Pool) -> Connecting {
        let usual = Connecting::default();
        let connecting = Connecting {
            hedge: pool.hedge.get().copied().unwrap_or(usual.hedge),
            hedge_budget: pool.hedge_budget.get().copied().unwrap_or(usual.hedge_budget),
            first_byte: pool.first_byte_timeout.get().map(|time| time.0),
            replay: pool.replay.get().map_or(defaults::REPLAY, |word| word.0),
            replay_bytes: pool.replay_bytes.get().map_or(usual.replay_bytes, |size| size.0),
            most: pool.max_connecting.get().copied().unwrap_or(usual.most),
            queue: pool.connect_queue.get().copied().unwrap_or(usual.queue),
        };
        if !connecting.hedge {
            self.idle(&pool.hedge_budget, "`hedge_budget` with `hedge = false`", "nothing is raced");
        }
        if connecting.replay == Replay::Off {
            self.idle(&pool.replay_bytes, "`replay_bytes` without `replay`", "nothing is sent again");
        }
        if connecting.replay_bytes > REPLAY_MOST {
            self.tell(
                Problem::at(
                    Code::OutOfRange,
                    place(pool.replay_bytes.span()),
                    "`replay_bytes` is above 1MiB",
                )
                .label("no request is as large")
                .hint("write \"1MiB\" or less".to_owned()),
            );
        }
        connecting
    }

    /// Tells of a key that does nothing here.
    pub(super) fn idle<T>(&mut self, key: &Key<T>, what: &str, why: &str) {
        if key.get().is_some() {
            self.tell(
                Problem::at(Code::NoEffect, place(key.span()), what.to_owned())
                    .label(format!("no effect: {why}")),
            );
        }
    }
}
