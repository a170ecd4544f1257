//! What every new session pays for: choosing, counting, and borrowing the snapshot. Run with `cargo bench --bench hot`.

mod world;

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{BenchmarkId, Criterion};
use rand::{SeedableRng, rngs::SmallRng};
use twinspan::{
    balance::{Balance, Load, Shares, lighter},
    ids::Generation,
    proxy::{Facts, choose},
    state::{GroupCell, Histogram, Reports, Shared, Snapshot, Sockets},
    telemetry::SessionLog,
};

use crate::world::{Draw, client, maglev};

const BALANCES: [Balance; 5] = [
    Balance::LeastSessions,
    Balance::LeastLatency,
    Balance::RoundRobin,
    Balance::Random,
    Balance::SourceHash,
];

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    route(&mut criterion);
    choice(&mut criterion);
    counting(&mut criterion);
    bridge(&mut criterion);
    criterion.final_summary();
}

// ---- the whole choice, as a session's first attempt makes it

fn route(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    for balance in BALANCES {
        let (shared, listener) = world::bridge(balance);
        let mut rng = SmallRng::seed_from_u64(7);
        let mut n = 0;
        group.bench_function(balance.as_str(), |bencher| {
            bencher.iter(|| {
                n += 1;
                let snapshot = shared.snapshot();
                let pool = snapshot.listener(&listener)?.target.pool()?;
                let facts = Facts { client: client(black_box(n)), tried: &[], spread: false };
                choose(pool, &facts, &mut rng).map(|endpoint| endpoint.address())
            });
        });
    }
    group.finish();
}

// ---- its parts: the cloud, and the endpoint in it

fn choice(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("balance");
    for size in [2_u32, 16, 256] {
        let equal = Shares::new((0..size).map(|_| 1));
        let uneven = Shares::new(1..=size);
        let mut n = 0_u64;
        group.bench_function(BenchmarkId::new("shares_nth_equal", size), |bencher| {
            bencher.iter(|| {
                n = n.wrapping_add(1);
                equal.nth(black_box(n))
            });
        });
        group.bench_function(BenchmarkId::new("shares_nth_uneven", size), |bencher| {
            bencher.iter(|| {
                n = n.wrapping_add(1);
                uneven.nth(black_box(n))
            });
        });
        let mut draw = Draw(1);
        group.bench_function(BenchmarkId::new("shares_at", size), |bencher| {
            bencher.iter(|| uneven.at(black_box(draw.next())));
        });
        let maglev = maglev(size);
        group.bench_function(BenchmarkId::new("maglev_member", size), |bencher| {
            bencher.iter(|| maglev.member(black_box(draw.next())));
        });
    }
    let mut draw = Draw(2);
    group.bench_function("lighter", |bencher| {
        bencher.iter(|| {
            let bits = draw.next();
            let load = |active: u64| Load { cost: active & 0xfff, weight: 3 };
            lighter(black_box(load(bits)), black_box(load(bits >> 12)))
        });
    });
    group.finish();
}

// ---- counters

fn counting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("count");
    let histogram = Histogram::default();
    let mut draw = Draw(3);
    group.bench_function("histogram_observe", |bencher| {
        bencher.iter(|| histogram.observe(black_box(Duration::from_nanos(draw.next() >> 30))));
    });
    let cell = GroupCell::default();
    group.bench_function("group_next", |bencher| bencher.iter(|| cell.next()));
    group.finish();
}

// ---- the bridge between the planes

fn bridge(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bridge");
    let (reports, _receiver) = Reports::new();
    let (sockets, _commands) = Sockets::new(1);
    let shared = Shared::new(reports, sockets, SessionLog::off());
    group.bench_function("snapshot_borrow", |bencher| bencher.iter(|| shared.snapshot().generation));
    let mut generation = Generation(0);
    group.bench_function("snapshot_publish", |bencher| {
        bencher.iter(|| {
            generation = generation.next();
            shared.publish(Arc::new(Snapshot { generation, ..Snapshot::default() }));
        });
    });
    group.finish();
}
