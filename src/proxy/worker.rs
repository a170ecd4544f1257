//! A worker: an engine for plain sessions, and a tokio runtime for what needs more, a thread each. It has sockets of its
//! own for every listener, and a session never leaves the worker that carries it.

use std::{io, net::TcpListener, sync::Arc, thread, time::Duration};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    accept,
    engine::{Command, Engine, Handovers, Mailbox},
    listener::{self, Takers},
    relay,
    seats::Seats,
    session::{self, Handover},
    spread::Spread,
};
use crate::{
    ids::Generation,
    state::{ListenerCell, Phase, Shared, SocketCommand, use_lane},
    sys,
};

/// How often what is not needed any more is given back.
const TIDY: Duration = Duration::from_secs(1);

/// Sessions that must have gone, and the share of them, for memory to be given back.
const MANY: u64 = 500;

/// What carries plain sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// The engine: a loop of our own over epoll.
    Engine,
    /// Tokio, a task a session: portable, and slower.
    Tokio,
}

/// A data-plane worker's threads.
#[derive(Debug)]
pub struct Worker {
    threads: Vec<thread::JoinHandle<()>>,
}

/// Where every worker takes sessions from others.
struct Crew {
    /// The engines' inboxes, if there are engines.
    engines: Arc<[Arc<Mailbox>]>,
    /// Those of the tokio halves.
    slow: Arc<[Arc<Handovers>]>,
}

impl Worker {
    /// Starts as many workers as there are queues of commands, each on a CPU of its own if `pin` says so, or if there are
    /// as many CPUs. They end when the process's phase is
    /// [`Phase::Stopping`]; sessions that are left then are reset.
    ///
    /// # Errors
    /// A thread or its runtime could not be started, or descriptors ran out.
    pub fn start_all(
        carrier: Carrier,
        pin: Option<bool>,
        shared: &Arc<Shared>,
        commands: Vec<mpsc::Receiver<SocketCommand>>,
    ) -> io::Result<Vec<Self>> {
        let mailboxes = match carrier {
            Carrier::Engine => commands.iter().map(|_| Mailbox::new().map(Arc::new)).collect(),
            Carrier::Tokio => Ok(Vec::new()),
        };
        let crew =
            Crew { engines: mailboxes?.into(), slow: commands.iter().map(|_| Arc::default()).collect() };
        let mut cpus = cpus_for(commands.len(), pin).into_iter();
        let start = |(number, commands)| Self::start((number, cpus.next()), shared, &crew, commands);
        commands.into_iter().enumerate().map(start).collect()
    }

    fn start(
        (number, cpu): (usize, Option<usize>),
        shared: &Arc<Shared>,
        crew: &Crew,
        commands: mpsc::Receiver<SocketCommand>,
    ) -> io::Result<Self> {
        let mut threads = Vec::new();
        let handovers = crew.slow.get(number).map(Arc::clone).unwrap_or_default();
        let mailbox = crew.engines.get(number).map(Arc::clone);
        let mut name = format!("worker-{number}");
        if mailbox.is_some() {
            let engine =
                Engine::new(number, Arc::clone(shared), Arc::clone(&crew.engines), Arc::clone(&handovers))?;
            threads.push(thread::Builder::new().name(name).spawn(move || {
                settle(number, cpu);
                engine.run();
            })?);
            name = format!("slow-{number}");
        }
        let half = TokioHalf {
            number,
            shared: Arc::clone(shared),
            mailbox,
            handovers,
            crew: Arc::clone(&crew.slow),
            seats: Seats::new(number),
            open: Vec::new(),
            most: 0,
            seen: Generation::default(),
        };
        // Seen from here on: the process may be told to stop before this thread first runs.
        let phases = shared.sessions.watch();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        threads.push(thread::Builder::new().name(name).spawn(move || {
            settle(number, cpu);
            runtime.block_on(half.run(phases, commands));
            // Whatever is left ends here, on this thread; the sessions' books close as their tasks are dropped.
            drop(runtime);
        })?);
        Ok(Self { threads })
    }

    /// Waits until the worker has ended.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker panicked outside a session");
            }
        }
    }
}

/// The CPUs that the workers are to keep to, in their order; none where they are free to move.
fn cpus_for(workers: usize, pin: Option<bool>) -> Vec<usize> {
    let allowed = sched_getaffinity(None).unwrap_or_default();
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
    if pin.unwrap_or(cpus.len() == workers) {
        cpus.iter().copied().cycle().take(if cpus.is_empty() { 0 } else { workers }).collect()
    } else {
        Vec::new()
    }
}

/// What each of a worker's threads does first.
fn settle(number: usize, cpu: Option<usize>) {
    use_lane(number);
    if let Some(cpu) = cpu {
        let mut only = CpuSet::new();
        only.set(cpu);
        // A CPU that was taken away meanwhile: the thread stays free to move.
        sched_setaffinity(None, &only).unwrap_or_default();
    }
}

/// What runs in tokio: the engine's errands, or everything where there is no engine.
struct TokioHalf {
    number: usize,
    shared: Arc<Shared>,
    mailbox: Option<Arc<Mailbox>>,
    handovers: Arc<Handovers>,
    /// Where every worker's tokio half takes sessions; this one's at `number`.
    crew: Arc<[Arc<Handovers>]>,
    /// The sessions it carries.
    seats: Arc<Seats>,
    /// Listeners that are accepted on here.
    open: Vec<Open>,
    /// The most sessions since memory was given back.
    most: u64,
    /// The snapshot that was last looked at.
    seen: Generation,
}

/// A listener that this worker accepts on.
struct Open {
    /// Whose socket it is, which a reload may change.
    cell: watch::Sender<Arc<ListenerCell>>,
    socket: Arc<TcpListener>,
    stop: CancellationToken,
}

impl Open {
    fn is_of(&self, cell: &Arc<ListenerCell>) -> bool {
        Arc::ptr_eq(&self.cell.borrow(), cell)
    }
}

impl TokioHalf {
    async fn run(mut self, mut phases: watch::Receiver<Phase>, mut commands: mpsc::Receiver<SocketCommand>) {
        let handovers = Arc::clone(&self.handovers);
        let mut tidy = interval(TIDY);
        tidy.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                sessions = handovers.take() => sessions.into_iter().for_each(|one| self.resume(one)),
                _ = tidy.tick() => self.tidy(),
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => break,
                },
                changed = phases.changed() => {
                    let phase = *phases.borrow_and_update();
                    if changed.is_err() || phase == Phase::Stopping {
                        break;
                    }
                    if phase == Phase::Draining {
                        self.post(Command::Drain);
                        self.open.drain(..).for_each(|open| open.stop.cancel());
                    }
                }
            }
        }
        self.post(Command::Stop);
    }

    fn post(&self, command: Command) {
        if let Some(mailbox) = &self.mailbox {
            mailbox.post(command);
        }
    }

    fn resume(&self, handover: Handover) {
        let Handover { client, books, begun, slow } = handover;
        match &self.mailbox {
            Some(engine) => self
                .seats
                .spawn(books, slow, |books| session::resume(client, books, begun, Arc::clone(engine))),
            // Another worker has accepted it.
            None => self.seats.spawn(books, slow, |books| session::serve(client, books)),
        }
    }

    fn tidy(&mut self) {
        relay::trim();
        self.seats.shrink();
        accept::renew_limit(self.shared.sockets.workers());
        self.look();
        // The allocator is the whole process's.
        if self.number != 0 {
            return;
        }
        let active = self.shared.sessions.active();
        self.most = self.most.max(active);
        let fewer = self.most >= MANY && active <= self.most / 2;
        // What the allocator keeps counts as well.
        if fewer || self.shared.memory.is_short() {
            self.most = active;
            sys::give_memory_back();
        }
    }

    /// Tells the engine of a snapshot that asks for spares. While it keeps some, it looks by itself.
    fn look(&mut self) {
        let snapshot = self.shared.snapshot();
        if snapshot.generation != self.seen {
            self.seen = snapshot.generation;
            if snapshot.pools.iter().any(|pool| pool.spares() > 0) {
                self.post(Command::Look);
            }
        }
    }

    fn obey(&mut self, mut command: SocketCommand) {
        match command {
            SocketCommand::Census(ref mut census) => self.seats.count(census),
            SocketCommand::Kill(kill) if kill.handle.slow => return self.seats.kill(kill),
            _ => {}
        }
        if self.mailbox.is_some() {
            return self.post(Command::Socket(command));
        }
        match command {
            SocketCommand::Open { listener, socket } => self.open(listener, socket),
            SocketCommand::Reapply { listener, options } => {
                for found in self.open.iter().filter(|open| open.is_of(&listener)) {
                    accept::reapply(&found.socket, &listener, &options);
                }
            }
            SocketCommand::Rename { from, to } => {
                for found in self.open.iter().filter(|open| open.is_of(&from)) {
                    drop(found.cell.send_replace(Arc::clone(&to)));
                }
            }
            SocketCommand::Close { listener } => {
                self.open.extract_if(.., |open| open.is_of(&listener)).for_each(|open| open.stop.cancel());
            }
            SocketCommand::Census(census) => census.finish(),
            SocketCommand::Kill(kill) => kill.answer(None),
        }
    }

    /// Starts the accept loop of one socket, unless the process is stopping.
    fn open(&mut self, cell: Arc<ListenerCell>, socket: TcpListener) {
        if self.shared.sessions.phase() >= Phase::Draining {
            return self.shared.sessions.finish_accepting();
        }
        let (socket, stop) = (Arc::new(socket), CancellationToken::new());
        let (cell, whose) = watch::channel(cell);
        let takers = Takers {
            number: self.number,
            seats: Arc::clone(&self.seats),
            crew: Arc::clone(&self.crew),
            spread: Spread::new(self.number),
        };
        let accepting =
            listener::accept(Arc::clone(&socket), whose, Arc::clone(&self.shared), takers, stop.clone());
        drop(tokio::spawn(accepting));
        self.open.push(Open { cell, socket, stop });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The CPUs that this thread may use.
    fn allowed() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
    }

    /// Runs it on a thread of its own, whose CPUs are nobody else's.
    fn apart(story: impl FnOnce() + Send + 'static) {
        thread::spawn(story).join().unwrap();
    }

    #[test]
    fn workers_keep_to_cpus_where_there_is_one_for_each_or_where_told_to() {
        apart(|| {
            let all = allowed();
            assert_eq!(cpus_for(all.len(), None), all);
            assert!(cpus_for(all.len() + 1, None).is_empty());
            assert!(cpus_for(all.len(), Some(false)).is_empty());
            let around: Vec<_> = all.iter().chain(&all[..1]).copied().collect();
            assert_eq!(cpus_for(all.len() + 1, Some(true)), around);

            let last = all[all.len() - 1];
            settle(0, Some(last));
            assert_eq!(cpus_for(1, None), [last], "only what the process may use");
            assert!(cpus_for(2, None).is_empty());
            assert_eq!(cpus_for(2, Some(true)), [last, last]);
        });
    }

    #[test]
    fn a_thread_that_settles_keeps_to_its_cpu_and_stays_free_without_one() {
        apart(|| {
            let all = allowed();
            settle(0, None);
            assert_eq!(allowed(), all);
            // No machine of the tests has it.
            settle(0, Some(CpuSet::MAX_CPU - 1));
            assert_eq!(allowed(), all, "a CPU that is gone");
            settle(0, Some(all[all.len() - 1]));
            assert_eq!(allowed(), all[all.len() - 1..]);
        });
    }
}
