//! Whether the files that a config names are what it takes them for, each by itself: whoever checks wants to know of all.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use super::{Step, when};
use crate::{
    config::{
        About, Authority, ClientCertificates, Code, Config, Finding, Identity, KeyPair, Listener,
        ListenerTls, PoolTls, Role, SniPattern, TlsVersion, WorkloadApi,
    },
    tls::{self, Server},
};

/// What is odd about the certificates, keys and authorities of a config, at `now` in seconds since 1970. What is not on
/// this machine, or may not be read here, is a warning: another one may serve the config.
#[must_use]
pub fn check(config: &Config, now: i64) -> Vec<Finding> {
    let mut check = Check { now, findings: Vec::new(), told: BTreeSet::new() };
    check.workload_api(config);
    for (at, listener) in config.listeners.iter().enumerate() {
        if let Some(tls) = &listener.entry.tls {
            check.told.clear();
            check.listener(at, listener, tls);
        }
    }
    for (at, pool) in config.pools.iter().enumerate() {
        if let Some(tls) = &pool.towards.tls {
            check.told.clear();
            check.pool(at, tls);
        }
    }
    check.findings
}

struct Check {
    now: i64,
    findings: Vec<Finding>,
    /// Files of the same owner that something was told of.
    told: BTreeSet<(Role, PathBuf)>,
}

/// The place of a file of one owner.
type Place<'a> = &'a dyn Fn(Role, &Path) -> About;

impl Check {
    /// Tells of a socket that is not on this machine. Who is behind it is not asked.
    fn workload_api(&mut self, config: &Config) {
        let Some(path) = config.spiffe.as_ref().and_then(WorkloadApi::path) else { return };
        let Some(error) = fs::metadata(path).err().filter(|_| config.takes_spiffe()) else { return };
        self.findings.push(Finding {
            code: Code::NotHere,
            about: About::WorkloadApi,
            also: None,
            what: format!("{} is not here: {error}", path.display()),
            label: "no start here",
            hint: Some("where it is to run, the agent must be there first".to_owned()),
        });
    }

    fn listener(&mut self, at: usize, listener: &Listener, settings: &ListenerTls) {
        let place = |role, path: &Path| About::FileOfListener(at, role, path.to_owned());
        // Who knows the names that the Workload API gives?
        let own = |identity: &Identity, check: &mut Self| match identity {
            Identity::Files(pair) => check.pair(pair, &place),
            Identity::Spiffe => None,
        };
        let pairs: Vec<Option<Server>> =
            settings.certificates.iter().map(|identity| own(identity, self)).collect();
        if let ClientCertificates::Optional(trust) | ClientCertificates::Required(trust) = &settings.clients
            && let Authority::File(ca) = &trust.ca
            && self.is_here(Role::Authorities, ca, &place)
        {
            let settings = ListenerTls { certificates: Vec::new(), ..settings.clone() };
            if let Err(error) = tls::server(&settings, None) {
                self.wrong(error, Role::Authorities, &place, None);
            }
        }
        // A certificate that is not here may be for any name.
        let Some(pairs) = pairs.into_iter().collect::<Option<Vec<_>>>() else { return };
        for (route, settings) in listener.entry.routes.iter().enumerate() {
            for (place, pattern) in settings.sni.iter().enumerate() {
                let (name, shown) = match pattern {
                    SniPattern::Exact(name) => (name, name.clone()),
                    SniPattern::Below(name) => (name, format!("*{name}")),
                };
                if !pairs.iter().any(|server| server.has_certificate_for(name)) {
                    self.findings.push(Finding {
                        code: Code::NotCovered,
                        about: About::ServerName(at, route, place),
                        also: None,
                        what: format!("no certificate of listener `{}` is for `{shown}`", listener.name),
                        label: "who asks for it is shown another one, and refuses it",
                        hint: Some("add one to `certificates`".to_owned()),
                    });
                }
            }
        }
    }

    fn pool(&mut self, at: usize, settings: &PoolTls) {
        let place = |role, path: &Path| About::FileOfPool(at, role, path.to_owned());
        let here = match &settings.ca {
            Some(Authority::File(ca)) => self.is_here(Role::Authorities, ca, &place),
            Some(Authority::Spiffe) => false,
            None => true,
        };
        if here && let Err(error) = tls::client(&PoolTls { identity: None, ..settings.clone() }) {
            self.wrong(error, Role::Authorities, &place, Some(About::Pool(at)));
        }
        if let Some(Identity::Files(pair)) = &settings.identity {
            self.pair(pair, &place);
        }
    }

    /// A certificate and its key; `None` if something is wrong with them, or they are not here.
    fn pair(&mut self, pair: &KeyPair, place: Place<'_>) -> Option<Server> {
        let here = [
            self.is_here(Role::Certificate, &pair.certificate, place),
            self.is_here(Role::Key, &pair.key, place),
        ];
        if here.contains(&false) {
            return None;
        }
        let settings = ListenerTls {
            certificates: vec![Identity::Files(pair.clone())],
            min_version: TlsVersion::V12,
            alpn: Vec::new(),
            clients: ClientCertificates::Off,
            tickets: None,
        };
        match tls::server(&settings, None) {
            Ok(server) => {
                self.time(&server, place);
                Some(server)
            }
            Err(error) => {
                let key = matches!(&error, tls::Error::File { file, .. } if *file != pair.certificate);
                self.wrong(error, if key { Role::Key } else { Role::Certificate }, place, None);
                None
            }
        }
    }

    /// Tells of a certificate that is near its end, or not in its time.
    fn time(&mut self, server: &Server, place: Place<'_>) {
        for shown in &server.certificates {
            if Step::of(shown.not_before, shown.not_after, self.now).is_some() {
                let when = when(shown.not_before, shown.not_after, self.now);
                self.findings.push(Finding {
                    code: Code::Expiry,
                    about: place(Role::Certificate, &shown.file),
                    also: None,
                    what: format!("the certificate in {} {when}", shown.file.display()),
                    label: "not for long, or not now",
                    hint: Some(
                        "renew it: a new file is used within a few seconds, without a reload".to_owned(),
                    ),
                });
            }
        }
    }

    /// False if a file is not on this machine, or whoever checks may not read it. Told once.
    fn is_here(&mut self, role: Role, path: &Path, place: Place<'_>) -> bool {
        let opened = match fs::metadata(path) {
            // A pipe would be waited for.
            Ok(found) if found.is_file() => File::open(path).map(drop),
            other => other.map(drop),
        };
        let absent = [ErrorKind::NotFound, ErrorKind::PermissionDenied, ErrorKind::NotADirectory];
        let Some(error) = opened.err().filter(|error| absent.contains(&error.kind())) else { return true };
        if self.told.insert((role, path.to_owned())) {
            self.findings.push(Finding {
                code: Code::NotHere,
                about: place(role, path),
                also: None,
                what: format!("{} cannot be read here: {error}", path.display()),
                label: "no start here",
                hint: Some("where it is to run it must be readable for the process".to_owned()),
            });
        }
        false
    }

    /// Tells what is wrong with a file. `whole`: the place of what is no file's fault.
    fn wrong(&mut self, error: tls::Error, role: Role, place: Place<'_>, whole: Option<About>) {
        let what = error.to_string();
        let finding = match error {
            tls::Error::File { file, .. } => {
                if !self.told.insert((role, file.clone())) {
                    return;
                }
                let label = "this file cannot be used";
                let hint = Some("PEM is wanted: text that begins with -----BEGIN".to_owned());
                Finding { code: Code::Certificate, about: place(role, &file), also: None, what, label, hint }
            }
            tls::Error::Mismatch { certificate, key, .. } => Finding {
                code: Code::Certificate,
                about: place(Role::Key, &key),
                also: Some((place(Role::Certificate, &certificate), "this certificate")),
                what,
                label: "not the key of",
                hint: Some(format!(
                    "`openssl x509 -in {} -noout -pubkey` and `openssl pkey -in {} -pubout` must say the same",
                    certificate.display(),
                    key.display()
                )),
            },
            tls::Error::NoSystemRoots(_)
            | tls::Error::Name(_)
            | tls::Error::Workload(_)
            | tls::Error::Settings(_) => {
                let Some(about) = whole else { return };
                // The machine that serves may have what this one has not.
                let absent = matches!(error, tls::Error::NoSystemRoots(_));
                let code = if absent { Code::NotHere } else { Code::Certificate };
                Finding { code, about, also: None, what, label: "cannot be used", hint: None }
            }
        };
        self.findings.push(finding);
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::{
        config::{Report, parse},
        tls::testing::{Authority, Files, Issued},
    };

    const HEAD: &str = "version = 1\ncloud.a = {}\n[[pool]]\nname = \"p\"\nhealth.tcp = {}\n\
        endpoint = [{ address = \"192.0.2.1:1\", cloud = \"a\" }]\n";

    /// What is told of a config: code, line, and what stands at the place.
    fn told(text: &str, now: i64) -> (bool, Vec<(String, usize, String)>, Report) {
        let loaded = parse(text, "x.toml").unwrap();
        let findings = check(&loaded.config, now);
        let (well, report) = match loaded.and(findings) {
            Ok(loaded) => (true, loaded.warnings),
            Err(refused) => (false, refused.0),
        };
        let problem = |problem: &crate::config::Problem| {
            let span = problem.span.clone().unwrap();
            let line = report.position(span.start).0;
            (problem.code.as_str().to_owned(), line, text.get(span).unwrap().to_owned())
        };
        let problems = report.problems().iter().map(problem).collect();
        (well, problems, report)
    }

    fn listener(pairs: &[(&str, &str)], rest: &str) -> String {
        let mut text =
            format!("{HEAD}[[listener]]\nbind = \"127.0.0.1:1\"\npool = \"p\"\n{rest}\n[listener.tls]\n");
        for (certificate, key) in pairs {
            let head = "[[listener.tls.certificates]]";
            writeln!(text, "{head}\ncertificate = \"{certificate}\"\nkey = \"{key}\"").unwrap();
        }
        text
    }

    fn put(files: &Files, name: &str, issued: &Issued) -> (String, String) {
        let pair = files.pair(name, issued);
        (pair.certificate.display().to_string(), pair.key.display().to_string())
    }

    fn now() -> i64 {
        jiff::Timestamp::now().as_second()
    }

    #[test]
    fn files_that_are_right_and_cover_every_route_lead_to_nothing() {
        let (files, authority) = (Files::new(), Authority::new("ca"));
        let (certificate, key) = put(&files, "a", &authority.issue(&["a.example", "*.b.example"]));
        let route = "route = [{ sni = [\"a.example\", \"x.b.example\", \"*.b.example\"], pool = \"p\" }]";
        let (well, problems, _) = told(&listener(&[(&certificate, &key)], route), now());
        assert_eq!((well, problems), (true, Vec::new()));
    }

    #[test]
    fn a_name_that_no_certificate_is_for_is_told_at_its_place() {
        let (files, authority) = (Files::new(), Authority::new("ca"));
        let (certificate, key) = put(&files, "a", &authority.issue(&["a.example", "*.b.example"]));
        let route = "route = [{ sni = [\"a.example\", \"c.example\"], pool = \"p\" },\n\
            { sni = [\"x.y.b.example\", \"*.a.example\"], refuse = true }]";
        let (well, problems, report) = told(&listener(&[(&certificate, &key)], route), now());
        let wanted = [(10, "\"c.example\""), (11, "\"x.y.b.example\""), (11, "\"*.a.example\"")];
        let wanted = wanted.map(|(line, text)| ("TS1109".to_owned(), line, text.to_owned()));
        assert_eq!((well, problems.as_slice()), (true, &wanted[..]), "{report}");
        assert!(report.to_string().contains("no certificate of listener `127.0.0.1:1` is for `c.example`"));
    }

    #[test]
    fn each_wrong_file_is_an_error_at_its_place() {
        let (files, authority) = (Files::new(), Authority::new("ca"));
        let (certificate, key) = put(&files, "a", &authority.issue(&["a.example"]));
        let (_, other) = put(&files, "b", &authority.issue(&["b.example"]));
        let empty = files.put("empty.pem", "").display().to_string();
        let mut text = listener(&[(&certificate, &other), (&empty, &key), (&key, &certificate)], "");
        text = text.replace(
            "[listener.tls]\n",
            &format!("[listener.tls]\nclient_certificates = \"required\"\nclient_ca = \"{empty}\"\n"),
        );
        text.push_str(&format!(
            "[[pool]]\nname = \"q\"\nhealth.tcp = {{}}\n\
            endpoint = [{{ address = \"192.0.2.2:1\", cloud = \"a\" }}]\ntls = {{ ca = \"{key}\" }}\n"
        ));
        let (well, problems, report) = told(&text, now());
        let quoted = |path: &str| format!("\"{path}\"");
        let errors: Vec<_> = problems.iter().filter(|(code, ..)| code == "TS1024").collect();
        let places: Vec<_> = errors.iter().map(|(_, line, text)| (*line, text.clone())).collect();
        assert!(!well);
        let wanted = [
            (13, quoted(&empty)),
            (16, quoted(&other)),
            (18, quoted(&empty)),
            (21, quoted(&key)),
            (27, quoted(&key)),
        ];
        assert_eq!(places, wanted, "{report}");
        let text = report.to_string();
        for words in
            ["the key does not belong to the certificate", "this certificate", "openssl x509 -in", "is empty"]
        {
            assert!(text.contains(words), "{words} in {text}");
        }
    }

    #[test]
    fn what_is_not_on_this_machine_is_a_warning_told_once_for_each_use() {
        let (files, authority) = (Files::new(), Authority::new("ca"));
        let (certificate, _) = put(&files, "a", &authority.issue(&["a.example"]));
        let absent = files.path().join("absent.pem").display().to_string();
        let text = listener(
            &[(&certificate, &absent), (&absent, &absent)],
            "route = [{ sni = [\"z.example\"], pool = \"p\" }]",
        );
        let (well, problems, report) = told(&text, now());
        let wanted = [14, 16].map(|line| ("TS1107".to_owned(), line, format!("\"{absent}\"")));
        assert_eq!(problems, wanted, "{report}");
        assert!(well);
    }

    #[test]
    fn a_certificate_that_is_near_its_end_is_a_warning() {
        let (files, authority) = (Files::new(), Authority::new("ca"));
        let issued = authority.issue_as(&["a.example"], |params| {
            params.not_after = rcgen::date_time_ymd(2040, 1, 2);
        });
        let (certificate, key) = put(&files, "a", &issued);
        let text = listener(&[(&certificate, &key)], "");
        let end: i64 = "2040-01-02T00:00:00Z".parse::<jiff::Timestamp>().unwrap().as_second();
        assert_eq!(told(&text, end - 15 * 86_400).1, []);
        let (well, problems, report) = told(&text, end - 13 * 86_400);
        assert_eq!((well, problems), (true, vec![("TS1108".to_owned(), 13, format!("\"{certificate}\""))]));
        assert!(report.to_string().contains("expires in 13 days"), "{report}");
        assert!(told(&text, end + 7200).2.to_string().contains("expired 2 h ago"));
    }
}
