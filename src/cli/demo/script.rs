//! The course of a run: what is done to the clouds and when, and what is seen meanwhile.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{self, Instant, MissedTickBehavior},
};

use super::{
    books::Outage,
    load::Load,
    picture::Picture,
    plan::{PREFERRED, Plan, SURVIVOR},
    proxy::{Proxy, Sample},
    screen::{Key, Screen, clock},
};
use crate::lab::{Cloud, Fault};

/// How often the routing is looked at: the grain of the failover time.
const GLANCE: Duration = Duration::from_millis(5);

/// Time between two pictures.
const REDRAW: Duration = Duration::from_millis(200);

/// Rates and quantiles of the panel are of this time.
const RECENT: usize = 10;

/// Every endpoint is up within this time, or something is wrong.
const READY: Duration = Duration::from_secs(10);

/// Events kept for the report.
const EVENTS: usize = 1_000;

/// Something that happened.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) time: SystemTime,
    pub(super) text: String,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// As planned.
    Finished,
    /// By `q`.
    Quit,
    /// By this signal.
    Interrupted(u8),
}

/// A run.
pub(super) struct Run<'a, P> {
    proxy: &'a P,
    clouds: &'a [Cloud; 2],
    pub(super) load: Load,
    pub(super) plan: Plan,
    screen: &'a mut Screen,
    pub(super) events: VecDeque<Event>,
    samples: VecDeque<Sample>,
    /// Until when the proxy's own events have been told.
    told: SystemTime,
    pub(super) begun: Instant,
    /// Steps taken.
    step: usize,
    pub(super) marks: Marks,
}

/// When things happened first, since the last kill.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Marks {
    pub(super) moved: Option<Instant>,
    pub(super) answered: Option<Instant>,
    pub(super) revived: Option<Instant>,
    pub(super) back: Option<Instant>,
    pub(super) end: Option<Instant>,
}

/// The signals that end a run.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl<'a, P: Proxy> Run<'a, P> {
    /// Waits until every endpoint is up, and starts the load.
    pub(super) async fn start(
        proxy: &'a P,
        clouds: &'a [Cloud; 2],
        plan: Plan,
        screen: &'a mut Screen,
    ) -> anyhow::Result<Self> {
        let told = SystemTime::UNIX_EPOCH;
        let ready = async {
            let mut glances = time::interval(GLANCE);
            while proxy.sample().clouds.iter().any(|cloud| cloud.endpoints == 0 || cloud.up < cloud.endpoints)
            {
                glances.tick().await;
            }
        };
        if time::timeout(READY, ready).await.is_err() {
            bail!("after {} s the proxy does not see every endpoint up", READY.as_secs());
        }
        let names = clouds.iter().map(|cloud| cloud.name().to_string()).collect();
        let load = Load::start(proxy.address(), names, plan.demand).context("start the load")?;
        let mut run = Self {
            proxy,
            clouds,
            load,
            plan,
            screen,
            events: VecDeque::new(),
            samples: VecDeque::from([proxy.sample()]),
            told,
            begun: Instant::now(),
            step: 0,
            marks: Marks::default(),
        };
        run.event(format!(
            "load: {} new sessions a second and {} long ones",
            plan.demand.rate, plan.demand.long
        ));
        Ok(run)
    }

    /// Plays the script, or serves until told to stop.
    pub(super) async fn play(&mut self, signals: &mut Signals) -> anyhow::Result<Ended> {
        let mut glances = time::interval(GLANCE);
        glances.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut redraws = time::interval(REDRAW);
        redraws.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                number = signals.next() => return Ok(Ended::Interrupted(number)),
                _ = redraws.tick() => {
                    self.show();
                    if let Some(ended) = self.keys()? {
                        return Ok(ended);
                    }
                }
                _ = glances.tick() => {
                    self.glance();
                    if self.advance()? {
                        break;
                    }
                }
            }
        }
        tokio::select! {
            number = signals.next() => return Ok(Ended::Interrupted(number)),
            () = self.load.finish() => {}
        }
        self.show();
        Ok(Ended::Finished)
    }

    /// Takes the step that is due; true at the end.
    fn advance(&mut self) -> anyhow::Result<bool> {
        let Some(steps) = self.plan.steps else { return Ok(false) };
        let passed = self.begun.elapsed();
        match self.step {
            0 if passed >= steps.kill => self.kill()?,
            1 if passed >= steps.refuse => {
                self.clouds[PREFERRED].set(Fault::Refused)?;
                let name = self.clouds[PREFERRED].name().clone();
                self.event(format!("{name} refuses connections, and resets those it had"));
            }
            2 if passed >= steps.revive => self.revive()?,
            3 if passed >= steps.end => {
                self.marks.end = Some(Instant::now());
                return Ok(true);
            }
            _ => return Ok(false),
        }
        self.step += 1;
        Ok(false)
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        let name = self.clouds[PREFERRED].name().clone();
        self.load.books().outage(PREFERRED);
        self.event(format!("{name} killed (simulated: SYNs unanswered)"));
        let since = self.clouds[PREFERRED].set(Fault::Silent).with_context(|| format!("kill {name}"))?;
        self.load.books().outage_in_force(since);
        self.marks = Marks::default();
        Ok(())
    }

    fn revive(&mut self) -> anyhow::Result<()> {
        let name = self.clouds[PREFERRED].name().clone();
        self.clouds[PREFERRED].revive().with_context(|| format!("revive {name}"))?;
        self.marks.revived = Some(Instant::now());
        self.event(format!("{name} revived"));
        Ok(())
    }

    fn keys(&mut self) -> anyhow::Result<Option<Ended>> {
        while let Some(key) = self.screen.key() {
            let silent = self.clouds[PREFERRED].endpoints().iter().any(|one| one.fault() == Fault::Silent);
            match key {
                Key::Quit => return Ok(Some(Ended::Quit)),
                Key::Interrupt => return Ok(Some(Ended::Interrupted(INTERRUPT))),
                Key::Kill if self.plan.steps.is_none() && !silent => self.kill()?,
                Key::Revive if self.plan.steps.is_none() && silent => self.revive()?,
                Key::Kill | Key::Revive => {}
            }
        }
        Ok(None)
    }

    /// Notes what has happened since the kill or the revival.
    fn glance(&mut self) {
        let Some(Outage { began, in_force: Some(in_force), .. }) = self.load.books().last_outage() else {
            return;
        };
        let (preferred, survivor) = (self.clouds[PREFERRED].name(), self.clouds[SURVIVOR].name());
        let shares: Vec<f64> = self.proxy.sample().clouds.iter().map(|cloud| cloud.share).collect();
        let shared = |place: usize| shares.get(place).is_some_and(|share| *share > 0.0);
        let now = Instant::now();
        let since = |instant: Instant| seconds(instant.duration_since(began));
        let mut news = Vec::new();
        if self.marks.answered.is_none()
            && let Some(answered) = self.load.books().first_answer(SURVIVOR, in_force)
        {
            self.marks.answered = Some(answered);
            news.push(format!(
                "{survivor} answers the first session begun since, {} after the kill",
                since(answered)
            ));
        }
        if self.marks.moved.is_none() && shared(SURVIVOR) && !shared(PREFERRED) {
            self.marks.moved = Some(now);
            news.push(format!("all new sessions go to {survivor}, {} after the kill", since(now)));
        }
        if let Some(revived) = self.marks.revived
            && self.marks.back.is_none()
            && shared(PREFERRED)
        {
            self.marks.back = Some(now);
            let after = seconds(now.duration_since(revived));
            news.push(format!("{preferred} is given sessions again, {after} after its revival"));
        }
        news.into_iter().for_each(|text| self.event(text));
    }

    fn show(&mut self) {
        self.told();
        let now = self.proxy.sample();
        if let Some(earlier) = self.samples.front() {
            let rows = Picture::rows(earlier, &now, self.load.books());
            let picture = Picture {
                title: self.title(),
                rows,
                totals: self.load.books().totals(),
                keys: if self.plan.steps.is_some() {
                    "q quit"
                } else {
                    "k kill aws · r revive aws · q quit"
                },
            };
            self.screen.draw(&picture);
        }
        self.samples.push_back(now);
        if self.samples.len() > RECENT {
            self.samples.pop_front();
        }
    }

    fn title(&self) -> String {
        let passed = self.begun.elapsed().as_secs_f64();
        let of = self.plan.steps.map_or_else(String::new, |steps| format!(" of {}", steps.end.as_secs()));
        format!("twinspan demo · proxy {} · {passed:.1}{of} s", self.proxy.address())
    }

    /// Something happened now.
    fn event(&mut self, text: String) {
        let time = SystemTime::now();
        self.told();
        self.record(Event { time, text });
    }

    /// Passes on what the proxy has told since.
    fn told(&mut self) {
        for (time, text) in self.proxy.happened(self.told) {
            self.told = self.told.max(time);
            let endpoints = self.clouds.iter().flat_map(Cloud::endpoints);
            // The ports are new in each run; the names say more.
            let text = endpoints
                .fold(text, |text, endpoint| text.replace(&endpoint.address().to_string(), endpoint.name()));
            self.record(Event { time, text: format!("proxy: {text}") });
        }
    }

    fn record(&mut self, event: Event) {
        self.screen.line(&format!("{}  {}", clock(event.time), event.text));
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

impl Signals {
    /// From here on they do not end the process by themselves.
    pub(super) fn catch() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("catch SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("catch SIGTERM")?,
        })
    }

    /// The number of the signal that came.
    pub(super) async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => INTERRUPT,
            _ = self.terminate.recv() => TERMINATE,
        }
    }
}

const INTERRUPT: u8 = 2;
const TERMINATE: u8 = 15;

/// A duration for people.
pub(super) fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}
