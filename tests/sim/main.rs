//! Outages in a simulated world: the control plane's decisions and the choice of an endpoint as in production, over a
//! network and a time of their own. One seed decides everything, so every figure and every failure comes again.
//!
//! `TWINSPAN_SEED=n` runs one random outage, `TWINSPAN_SEEDS=n` so many; `TWINSPAN_TELL=1` tells what happens in each, and
//! `REGENERATE=1` writes the scoreboard. `TWINSPAN_SHOW=n` shows so many failures.

#![cfg(test)]

mod attempts;
mod figures;
mod network;
mod policy;
mod rules;
mod script;
mod world;

use std::{
    any::Any,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use crate::{
    figures::{Figures, Row, document},
    policy::Kind,
    rules::{Left, Restraint},
    script::{Scenario, alternating, board, random},
    world::run,
};

/// The seed of the scoreboard.
const SEED: u64 = 20_251_020;

/// Random outages that are tried.
const SEEDS: u64 = 1000;

/// Those in which clouds fail by turns.
const ALTERNATING: u64 = 300;

/// Does so many things on all processors; the results in their order.
fn all<T: Send>(count: usize, one: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new((0..count).map(|_| None).collect::<Vec<Option<T>>>());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= count {
                        return;
                    }
                    let result = one(number);
                    results.lock().unwrap()[number] = Some(result);
                }
            });
        }
    });
    results.into_inner().unwrap().into_iter().map(Option::unwrap).collect()
}

/// Runs a random outage; why it failed.
fn attempt(seed: u64, of: fn(u64) -> Scenario, restraint: Restraint) -> Result<(), String> {
    let scenario = of(seed);
    let tried = std::panic::catch_unwind(|| run(&scenario, Kind::Twinspan, restraint, seed).1);
    let said = |panic: &(dyn Any + Send)| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
    };
    let breaches = tried.unwrap_or_else(|panic| vec![said(&*panic)]);
    if breaches.is_empty() {
        return Ok(());
    }
    let breaches = breaches.join("\n");
    let test = if scenario.name.starts_with("random") { "random" } else { "alternate" };
    Err(format!(
        "TWINSPAN_TELL=1 TWINSPAN_SEED={seed} cargo test --test sim {test} -- --nocapture\n{breaches}\n{scenario:#?}"
    ))
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[test]
fn the_rules_hold_in_random_outages() {
    hold(random, Restraint::FULL, SEEDS);
}

#[test]
fn a_cloud_that_fails_is_left_though_the_other_has_only_just_come_back_in_outages_that_alternate() {
    // Three probes that have 0.3 s each, the first of them after 0.5 s at the most, and a little for jitter and ticks.
    let left = Some(Left { loud: Duration::from_secs(1), silent: Duration::from_millis(1700) });
    hold(alternating, Restraint { left, ..Restraint::FULL }, ALTERNATING);
}

/// Tries so many outages of a kind.
fn hold(of: fn(u64) -> Scenario, restraint: Restraint, usual: u64) {
    let seeds: Vec<u64> = match number("TWINSPAN_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("TWINSPAN_SEEDS").unwrap_or(usual)).collect(),
    };
    let failures: Vec<String> = all(seeds.len(), |place| attempt(seeds[place], of, restraint))
        .into_iter()
        .filter_map(Result::err)
        .collect();
    let most = number("TWINSPAN_SHOW").map_or(3, |most| usize::try_from(most).unwrap());
    for failure in failures.iter().take(most) {
        println!("{failure}");
    }
    assert!(failures.is_empty(), "{} of {} random outages broke a rule", failures.len(), seeds.len());
}

/// Rules that nobody can break would prove nothing.
#[test]
fn checks_without_restraint_break_every_rule_of_it() {
    let restraint = Restraint { cap: None, ..Restraint::FULL };
    let board = board();
    let outage = board.iter().find(|scenario| scenario.name.starts_with("everywhere: checks dead")).unwrap();
    let mut breaches = run(outage, Kind::ChecksOnly, restraint, SEED).1;
    for seed in 0..50 {
        breaches.extend(run(&random(seed), Kind::Naive, restraint, seed).1);
    }
    for words in ["endpoints are left", "within a minute", "the last cloud", "a session failed"] {
        assert!(breaches.iter().any(|breach| breach.contains(words)), "{words}: {breaches:#?}");
    }
}

#[test]
fn a_seed_decides_everything() {
    for seed in 0..5 {
        let scenario = random(seed);
        for kind in Kind::ALL {
            let once = || run(&scenario, kind, kind.restraint(), seed);
            assert_eq!(once(), once(), "seed {seed}, {kind:?}");
        }
    }
}

#[test]
fn every_policy_has_the_same_clients() {
    let scenario = random(7);
    let clients = |kind: Kind| -> u64 {
        run(&scenario, kind, kind.restraint(), 7).0.iter().map(|figures| figures.sessions).sum()
    };
    let clients = Kind::ALL.map(clients);
    assert!(clients[0] > 100 && clients.iter().all(|count| *count == clients[0]), "{clients:?}");
}

#[test]
fn the_scoreboard_is_up_to_date() {
    let board = board();
    let runs: Vec<_> = board.iter().flat_map(|scenario| Kind::ALL.map(|kind| (scenario, kind))).collect();
    let results = all(runs.len(), |number| {
        let (scenario, kind) = runs[number];
        run(scenario, kind, kind.restraint(), SEED).0
    });
    let mut rows: Vec<Row> = Vec::new();
    for (place, scenario) in board.iter().enumerate() {
        for (phase, (_, title)) in scenario.phases.iter().enumerate() {
            for (policy, kind) in Kind::ALL.iter().enumerate() {
                let name = if title.is_empty() {
                    scenario.name.clone()
                } else {
                    format!("{}: {title}", scenario.name)
                };
                let figures: &Figures = &results[place * Kind::ALL.len() + policy][phase];
                rows.push((name, kind.as_str(), figures.clone()));
            }
        }
    }
    let wanted = document(&rows);
    println!("{wanted}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/outages.md");
    if std::env::var_os("REGENERATE").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "docs/outages.md is old: REGENERATE=1 cargo test --test sim");
}
