//! What stands at the edge, as the admin API tells it.

use std::time::{Duration, SystemTime};

use super::status::time;
use crate::{
    api::{Certificate, Certificates, Entry},
    config::{self, ClientCertificates, Config, ProxyIn},
    control::{
        ListenerView, Overview,
        certificates::{self, Owner, Step, Told},
    },
    net::Intercept,
    tls::Shown,
};

/// What a listener does before a session has a pool.
pub(super) fn entry(listener: &ListenerView, config: &Config) -> Entry {
    let pools = listener.pools.iter().map(ToString::to_string).collect();
    let Some(found) = config.listeners.iter().find(|one| one.name == listener.cell.name) else {
        return Entry { pools, ..Entry::default() };
    };
    let config::Entry { proxy_header, tls, routes, intercept, .. } = &found.entry;
    let clients = match tls.as_ref().map(|tls| &tls.clients) {
        None | Some(ClientCertificates::Off) => "off",
        Some(ClientCertificates::Optional(_)) => "optional",
        Some(ClientCertificates::Required(_)) => "required",
    };
    let header = match proxy_header {
        ProxyIn::Off => "off",
        ProxyIn::Required(_) => "required",
        ProxyIn::Optional(_) => "optional",
    };
    let intercept = match intercept {
        Intercept::Off => "off",
        Intercept::Redirect => "redirect",
        Intercept::Tproxy => "tproxy",
    };
    Entry {
        tls: tls.is_some(),
        client_certificates: clients.to_owned(),
        proxy_header: header.to_owned(),
        intercept: intercept.to_owned(),
        routes: routes.len(),
        pools,
    }
}

/// The certificates of everything that has TLS.
pub(super) fn certificates(overview: &Overview) -> Vec<Certificates> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    overview.certificates.iter().map(|told| owned(told, now)).collect()
}

fn owned(told: &Told, now: i64) -> Certificates {
    let (listener, pool) = match &told.owner {
        Owner::Listener(name) => (Some(name.to_string()), None),
        Owner::Pool(name) => (None, Some(name.to_string())),
    };
    let shown = told.shown.iter().map(|one| certificate(one, now)).collect();
    Certificates { listener, pool, alarm: told.alarm.clone(), shown }
}

fn certificate(shown: &Shown, now: i64) -> Certificate {
    let Shown { file, names, not_before, not_after, serial } = shown;
    let state = match Step::of(*not_before, *not_after, now) {
        None => "good",
        Some(Step::Fortnight) => "fortnight",
        Some(Step::Days) => "days",
        Some(Step::Invalid) => "invalid",
    };
    Certificate {
        file: file.display().to_string(),
        names: names.clone(),
        serial: serial.clone(),
        not_before: moment(*not_before),
        not_after: moment(*not_after),
        expires_in_seconds: not_after.saturating_sub(now),
        state: state.to_owned(),
        when: certificates::when(*not_before, *not_after, now),
    }
}

fn moment(seconds: i64) -> String {
    // Certificates from before 1970 are told as from then.
    time(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ListenerName, PoolName};

    #[test]
    fn a_certificate_is_told_with_its_owner_its_time_and_what_is_wrong_with_its_files() {
        let shown = |not_after| Shown {
            file: "/etc/twinspan/a.pem".into(),
            names: vec!["a.example".into()],
            not_before: 0,
            not_after,
            serial: "0a:0b".into(),
        };
        let (day, now) = (86_400, 1_000_000_000);
        let listener = Told {
            owner: Owner::Listener(ListenerName::from("web")),
            shown: vec![
                shown(now + 29 * day + 60),
                shown(now + 10 * day),
                shown(now + day),
                shown(now - 7200),
            ],
            alarm: Some("b.pem: is empty".into()),
        };
        let found = owned(&listener, now);
        assert_eq!((found.listener.as_deref(), found.pool.as_deref()), (Some("web"), None));
        assert_eq!(found.alarm.as_deref(), Some("b.pem: is empty"));
        let told: Vec<_> = found
            .shown
            .iter()
            .map(|one| (one.state.as_str(), one.when.as_str(), one.expires_in_seconds))
            .collect();
        let wanted = [
            ("good", "expires in 29 days", 29 * day + 60),
            ("fortnight", "expires in 10 days", 10 * day),
            ("days", "expires in 24 h", day),
            ("invalid", "expired 2 h ago", -7200),
        ];
        assert_eq!(told, wanted);
        assert_eq!(found.shown[3].not_after, "2001-09-08T23:46:40.000Z");
        let pool = Told { owner: Owner::Pool(PoolName::from("db")), shown: Vec::new(), alarm: None };
        assert_eq!(owned(&pool, now), Certificates { pool: Some("db".into()), ..Certificates::default() });
    }
}
