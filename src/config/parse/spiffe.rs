//! What comes from the SPIFFE Workload API: it takes the place of files, and a build that has it.

use std::ops::Range;

use super::{
    super::{
        NamePattern, WorkloadApi,
        file::File,
        keys::{Items, Key},
        problem::{Code, Problem},
        values::NameRuleText,
    },
    Build, place,
};

impl Build<'_> {
    /// Where the Workload API is asked, if the file says so.
    pub(super) fn spiffe(&mut self, file: &File) -> Option<WorkloadApi> {
        if file.spiffe.get().is_some() && uses(file).next().is_none() {
            let what = "`[spiffe]` that no listener and no pool uses";
            self.idle(&file.spiffe, what, "nothing has `spiffe = true`");
        }
        file.spiffe.get()?.socket.get().map(|socket| socket.0.clone())
    }

    /// Refuses what this program was not built for.
    pub(super) fn not_built(&mut self, file: &File) {
        let table = file.spiffe.span().into_iter();
        for at in table.chain(uses(file)).collect::<Vec<_>>() {
            self.tell(
                Problem::at(Code::NotBuilt, at, "this build has no SPIFFE Workload API")
                    .label("not in this program")
                    .hint("build with `--features spiffe`".to_owned()),
            );
        }
    }

    /// Refuses a key beside `spiffe`, whose place that takes. True if it is there.
    pub(super) fn beside<T>(&mut self, spiffe: &Key<bool>, name: &str, key: &Key<T>) -> bool {
        if let Some(at) = key.span() {
            self.tell(
                Problem::at(Code::Edge, at, format!("`{name}` beside `spiffe`"))
                    .label("the Workload API gives this")
                    .hint("keep one of the two".to_owned())
                    .also(place(spiffe.span()), "taken from there"),
            );
        }
        key.get().is_some()
    }

    /// Refuses names that are no SPIFFE ids where those are judged. True if there are any.
    pub(super) fn has_other_names(&mut self, names: &Key<Items<NameRuleText>>) -> bool {
        let names = names.get().into_iter().flat_map(|items| &items.0);
        let is_id = |name: &NamePattern| matches!(name, NamePattern::Spiffe(_) | NamePattern::SpiffeBelow(_));
        let others: Vec<Range<usize>> =
            names.filter(|name| !is_id(&name.get_ref().0)).map(toml::Spanned::span).collect();
        for at in &others {
            self.tell(
                Problem::at(Code::Edge, at.clone(), "a host name where peers are judged by their SPIFFE ids")
                    .label("no SPIFFE id")
                    .hint("write \"spiffe://example.org/ns/prod/*\"".to_owned()),
            );
        }
        !others.is_empty()
    }
}

/// Where listeners and pools have `spiffe = true`.
fn uses(file: &File) -> impl Iterator<Item = Range<usize>> {
    let listeners = file.listener.get().into_iter().flat_map(|all| &all.0);
    let listeners = listeners.filter_map(|listener| Some(&listener.get_ref().tls.get()?.spiffe));
    let pools = file.pool.get().into_iter().flat_map(|all| &all.0);
    let pools = pools.filter_map(|pool| Some(&pool.get_ref().tls.get()?.spiffe));
    listeners.chain(pools).filter(|key| key.get() == Some(&true)).filter_map(Key::span)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Here, parse},
        *,
    };
    use crate::config::{
        Config, Refused,
        edge::{Authority, ClientCertificates, Identity},
        effective,
    };

    const HEAD: &str = "version = 1\ncloud.a = {}\n[spiffe]\nsocket = \"unix:///run/api.sock\"\n";

    const USES: &str = "[[pool]]\nname = \"p\"\nhealth.tcp = {}\n\
        endpoint = [{ address = \"192.0.2.1:1\", cloud = \"a\" }]\n[pool.tls]\nspiffe = true\n\
        [[listener]]\nbind = \"127.0.0.1:1\"\npool = \"p\"\n[listener.tls]\nspiffe = true\n";

    /// Code, line and text of each problem.
    fn problems(text: &str, built: bool) -> Vec<(&'static str, usize, String)> {
        let report = match parse(text, "x.toml", Some(Here { abilities: None, spiffe: built })) {
            Ok(loaded) => loaded.warnings,
            Err(Refused(report)) => report,
        };
        let problem = |problem: &Problem| {
            let span = problem.span.clone().unwrap();
            (problem.code.as_str(), report.position(span.start).0, text.get(span).unwrap().to_owned())
        };
        report.problems().iter().map(problem).collect()
    }

    fn read(text: &str) -> Config {
        parse(text, "x.toml", None).unwrap().config
    }

    #[test]
    fn spiffe_takes_the_place_of_every_file_and_asks_clients_for_certificates() {
        let config = read(&format!("{HEAD}{USES}"));
        assert_eq!(config.spiffe, Some(WorkloadApi::Unix("/run/api.sock".into())));
        assert!(config.takes_spiffe());
        let tls = config.listeners[0].entry.tls.as_ref().unwrap();
        assert_eq!(tls.certificates, [Identity::Spiffe]);
        let ClientCertificates::Required(trust) = &tls.clients else { panic!("{tls:?}") };
        assert_eq!((&trust.ca, trust.names.len()), (&Authority::Spiffe, 0));
        let tls = config.pools[0].towards.tls.as_ref().unwrap();
        assert_eq!((&tls.ca, &tls.identity), (&Some(Authority::Spiffe), &Some(Identity::Spiffe)));
        let text = effective(&config);
        assert_eq!(read(&text), config, "{text}");
    }

    #[test]
    fn false_is_as_if_it_were_not_there() {
        let text = format!("{HEAD}{USES}").replace("spiffe = true", "spiffe = false");
        assert_eq!(
            problems(&text, true),
            [("TS1106", 3, "[spiffe]".to_owned()), ("TS1005", 14, "[listener.tls]".to_owned())]
        );
    }

    #[test]
    fn a_build_without_the_workload_api_refuses_each_key_of_it() {
        let found = problems(&format!("{HEAD}{USES}"), false);
        let places: Vec<_> = found.iter().map(|(code, line, _)| (*code, *line)).collect();
        assert_eq!(places, [("TS1025", 3), ("TS1025", 10), ("TS1025", 15)]);
        assert_eq!(problems(&format!("{HEAD}{USES}"), true), []);
        let text = parse(&format!("{HEAD}{USES}"), "x.toml", Some(Here { abilities: None, spiffe: false }));
        let text = text.unwrap_err().to_string();
        assert!(text.contains("this build has no SPIFFE Workload API"), "{text}");
    }

    #[test]
    fn files_beside_spiffe_are_refused_each_at_its_place() {
        let pool = "spiffe = true\nca = \"ca.pem\"\ncertificate = \"a.pem\"\nkey = \"a.key\"\n[[";
        let listener = "spiffe = true\ncertificates = [{ certificate = \"b.pem\", key = \"b.key\" }]\n\
            client_ca = \"c.pem\"\nclient_names = [\"*.example.com\", \"spiffe://example.org/*\"]\n";
        let text = format!("{HEAD}{USES}").replacen("spiffe = true\n[[", pool, 1);
        let text = text.strip_suffix("spiffe = true\n").unwrap().to_owned() + listener;
        let wanted = [
            (11, "\"ca.pem\""),
            (12, "\"a.pem\""),
            (13, "\"a.key\""),
            (19, "[{ certificate = \"b.pem\", key = \"b.key\" }]"),
            (20, "\"c.pem\""),
            (21, "\"*.example.com\""),
        ];
        assert_eq!(problems(&text, true), wanted.map(|(line, text)| ("TS1023", line, text.to_owned())));
    }

    #[test]
    fn a_bad_socket_is_told_with_what_to_write() {
        let text = format!("{HEAD}{USES}").replace("unix:///run", "/run");
        assert_eq!(problems(&text, true), [("TS1007", 4, "\"/run/api.sock\"".to_owned())]);
    }
}
