//! What is found out beside the text of the file, such as in the files that it names, put to the place that it is about.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use super::{
    Code, Loaded, Problem, Refused, Severity,
    file::{File, Listener, Pool},
    keys::Key,
    values::FilePath,
};

/// One thing that was found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its kind.
    pub code: Code,
    /// What it is about.
    pub about: About,
    /// A second thing that it is about, and a word on that.
    pub also: Option<(About, &'static str)>,
    /// What is wrong: one sentence that stands alone.
    pub what: String,
    /// What to say right at the place.
    pub label: &'static str,
    /// What to do about it.
    pub hint: Option<String>,
}

/// What a finding is about. Listeners, pools, routes and names go by their place in the config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// A file that a listener's TLS names.
    FileOfListener(usize, Role, PathBuf),
    /// A file that a pool's TLS names.
    FileOfPool(usize, Role, PathBuf),
    /// A pool's TLS as a whole.
    Pool(usize),
    /// The socket of the SPIFFE Workload API.
    WorkloadApi,
    /// A server name of a route: listener, route, name.
    ServerName(usize, usize, usize),
}

/// What a file is named for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The certificate that is shown.
    Certificate,
    /// Its key.
    Key,
    /// The authorities that are believed.
    Authorities,
}

/// Where in the text things stand that findings can be about.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Vec<(About, Range<usize>)>);

impl Loaded {
    /// The same with what was found out since.
    ///
    /// # Errors
    /// If an error is among it: everything that is wrong with the file.
    pub fn and(self, findings: Vec<Finding>) -> Result<Self, Refused> {
        let place = |about: &About| self.places.of(about);
        let problems: Vec<Problem> = findings
            .into_iter()
            .map(|Finding { code, about, also, what, label, hint }| {
                let also = also.and_then(|(about, label)| Some((place(&about)?, label.to_owned())));
                let span = place(&about);
                let label = span.is_some().then(|| label.to_owned());
                Problem { code, span, what, label, hint, also }
            })
            .collect();
        let refused = problems.iter().any(|problem| problem.severity() == Severity::Error);
        let warnings = self.warnings.and(problems);
        if refused { Err(Refused(warnings)) } else { Ok(Self { warnings, ..self }) }
    }
}

impl Places {
    /// The places in a file.
    pub(super) fn new(file: &File) -> Self {
        let mut places = Self::default();
        let socket = file.spiffe.get().and_then(|spiffe| spiffe.socket.span());
        places.0.extend(socket.map(|span| (About::WorkloadApi, span)));
        let listeners = file.listener.get().into_iter().flat_map(|all| &all.0);
        for (at, listener) in listeners.enumerate() {
            places.listener(at, listener.get_ref());
        }
        let pools = file.pool.get().into_iter().flat_map(|all| &all.0);
        for (at, pool) in pools.enumerate() {
            places.pool(at, pool.get_ref());
        }
        places
    }

    fn listener(&mut self, at: usize, listener: &Listener) {
        let file = |role| move |path: &Path| About::FileOfListener(at, role, path.to_owned());
        if let Some(tls) = listener.tls.get() {
            for pair in tls.certificates.get().into_iter().flat_map(|all| &all.0) {
                self.file(&pair.get_ref().certificate, file(Role::Certificate));
                self.file(&pair.get_ref().key, file(Role::Key));
            }
            self.file(&tls.client_ca, file(Role::Authorities));
        }
        let routes = listener.route.get().into_iter().flat_map(|all| &all.0);
        for (route, table) in routes.enumerate() {
            let names = table.get_ref().sni.get().into_iter().flat_map(|all| &all.0);
            for (name, text) in names.enumerate() {
                self.0.push((About::ServerName(at, route, name), text.span()));
            }
        }
    }

    fn pool(&mut self, at: usize, pool: &Pool) {
        let Some(tls) = pool.tls.get() else { return };
        self.0.extend(pool.tls.span().map(|span| (About::Pool(at), span)));
        let keys =
            [(&tls.ca, Role::Authorities), (&tls.certificate, Role::Certificate), (&tls.key, Role::Key)];
        for (key, role) in keys {
            self.file(key, |path| About::FileOfPool(at, role, path.to_owned()));
        }
    }

    fn file(&mut self, key: &Key<FilePath>, about: impl FnOnce(&Path) -> About) {
        if let Some((path, span)) = key.get().zip(key.span()) {
            self.0.push((about(&path.0), span));
        }
    }

    /// Where it stands, first; `None` where no place can be told.
    fn of(&self, about: &About) -> Option<Range<usize>> {
        self.0.iter().find(|(known, _)| known == about).map(|(_, span)| span.clone())
    }
}
