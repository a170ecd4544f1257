//! How the endpoints of a pool are probed: in one way, or not at all.

use std::ops::Range;

use super::{
    super::{
        Health, Probe, defaults,
        file::{self, HealthTables, HttpHealth, TcpHealth},
        keys::Key,
        problem::{Code, Problem},
        values::ProbeText,
    },
    Build, place,
};

impl Build<'_> {
    /// `None` only where a problem was told.
    pub(super) fn health(&mut self, pool: &file::Pool, at: &Range<usize>) -> Option<Option<Health>> {
        let Some(health) = pool.health.get() else {
            if !self.sifted.lost(at.start, "health") {
                let name = pool.name.get().map_or_else(String::new, |name| format!(" `{}`", name.0));
                self.tell(
                    Problem::at(Code::NoHealth, at.clone(), format!("the pool{name} is never probed"))
                        .label("every endpoint counts as up")
                        .hint("add [pool.health.tcp] or [pool.health.http]".to_owned()),
                );
            }
            return Some(None);
        };
        let span = place(pool.health.span());
        match health {
            HealthTables { tcp, http } if tcp.get().is_some() && http.get().is_some() => {
                self.tell(
                    Problem::at(Code::Health, place(http.span()), "a pool is probed in one way, not in two")
                        .label("the second way")
                        .hint("keep [pool.health.tcp] or [pool.health.http]".to_owned())
                        .also(place(tcp.span()), "the first way"),
                );
                None
            }
            HealthTables { tcp, http } => match (tcp.get(), http.get()) {
                (Some(tcp), _) => {
                    let health = self.slow_doubt(tcp_health(tcp), tcp.fast_interval.span());
                    Some(Some(self.secured(health, pool, &tcp.tls, at)?))
                }
                (_, Some(http)) => {
                    let health = self.slow_doubt(http_health(http), http.fast_interval.span());
                    Some(Some(self.secured(health, pool, &http.tls, at)?))
                }
                (None, None) => {
                    let lost = ["tcp", "http"].iter().any(|key| self.sifted.lost(span.start, key));
                    if !lost {
                        self.tell(
                            Problem::at(Code::Health, span, "the health table does not say how to probe")
                                .hint("write [pool.health.tcp] or [pool.health.http]".to_owned()),
                        );
                    }
                    None
                }
            },
        }
    }

    /// Whether the probe speaks TLS. What has a port of its own is often another service, and a plain one.
    fn secured(
        &mut self,
        health: Health,
        pool: &file::Pool,
        tls: &Key<bool>,
        at: &Range<usize>,
    ) -> Option<Health> {
        let of_pool = pool.tls.get().is_some();
        let wanted = tls.get().copied();
        if wanted == Some(true) && !of_pool {
            if !self.sifted.lost(at.start, "tls") {
                self.tell(
                    Problem::at(Code::Health, place(tls.span()), "a probe over TLS in a pool without TLS")
                        .label("nothing says whom to trust")
                        .hint("add [pool.tls] with `ca`, or take `tls` out".to_owned()),
                );
            }
            return None;
        }
        let tls = wanted.unwrap_or_else(|| of_pool && health.port.is_none());
        Some(Health { tls, ..health })
    }

    fn slow_doubt(&mut self, health: Health, fast: Option<Range<usize>>) -> Health {
        if let Some(span) = fast.filter(|_| health.fast_interval > health.interval) {
            self.tell(
                Problem::at(Code::NoEffect, span, "`fast_interval` is longer than `interval`")
                    .label("not fast"),
            );
        }
        health
    }
}

fn tcp_health(table: &TcpHealth) -> Health {
    let bytes = |key: &Key<ProbeText>| key.get().map(|text| text.0.clone().into_bytes()).unwrap_or_default();
    let interval = table.interval.get().map_or(defaults::PROBE_INTERVAL, |time| time.0);
    Health {
        probe: Probe::Tcp { send: bytes(&table.send), expect: bytes(&table.expect) },
        port: table.port.get().copied(),
        tls: false,
        interval,
        fast_interval: table
            .fast_interval
            .get()
            .map_or_else(|| defaults::PROBE_FAST_INTERVAL.min(interval), |time| time.0),
        timeout: table.timeout.get().map_or(defaults::PROBE_TIMEOUT, |time| time.0),
        rise: table.rise.get().copied().unwrap_or(defaults::PROBE_RISE),
        fall: table.fall.get().copied().unwrap_or(defaults::PROBE_FALL),
        jitter: table.jitter.get().copied().unwrap_or(defaults::PROBE_JITTER),
    }
}

fn http_health(table: &HttpHealth) -> Health {
    let status = table.status.get().map(|all| all.0.iter().map(|range| range.get_ref().0).collect());
    let interval = table.interval.get().map_or(defaults::PROBE_INTERVAL, |time| time.0);
    Health {
        probe: Probe::Http {
            path: table
                .path
                .get()
                .map_or_else(|| defaults::HTTP_PROBE_PATH.to_owned(), |path| path.0.clone()),
            host: table.host.get().map(|host| host.0.clone()),
            status: status.unwrap_or_else(|| defaults::HTTP_PROBE_STATUS.to_vec()),
            body: table.body.get().map(|body| body.0.clone()),
        },
        port: table.port.get().copied(),
        tls: false,
        interval,
        fast_interval: table
            .fast_interval
            .get()
            .map_or_else(|| defaults::PROBE_FAST_INTERVAL.min(interval), |time| time.0),
        timeout: table.timeout.get().map_or(defaults::HTTP_PROBE_TIMEOUT, |time| time.0),
        rise: table.rise.get().copied().unwrap_or(defaults::PROBE_RISE),
        fall: table.fall.get().copied().unwrap_or(defaults::PROBE_FALL),
        jitter: table.jitter.get().copied().unwrap_or(defaults::PROBE_JITTER),
    }
}
