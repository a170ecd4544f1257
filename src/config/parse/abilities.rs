//! What a config takes that not every process may do. Another process may serve the file, so these are warnings.

use std::ops::Range;

use super::{
    super::{
        Intercept,
        file::File,
        problem::{Code, Problem},
    },
    Build, place,
};
use crate::net::Abilities;

impl Build<'_> {
    /// Tells what this process lacks.
    pub(super) fn abilities(&mut self, file: &File, here: Abilities) {
        for listener in file.listener.get().into_iter().flat_map(|all| &all.0) {
            let listener = listener.get_ref();
            if let Some(port) =
                listener.bind.get().map(|bind| bind.0.0.port()).filter(|port| !here.binds(*port))
            {
                let what = format!("this process may not bind port {port}");
                self.lacks(listener.bind.span(), what, "CAP_NET_BIND_SERVICE");
            }
            let tproxy = listener.intercept.get().is_some_and(|word| word.0 == Intercept::Tproxy);
            if tproxy && !here.is_transparent() {
                let what = "this process may not take connections to addresses of others";
                self.lacks(listener.intercept.span(), what, "CAP_NET_RAW or CAP_NET_ADMIN");
            }
        }
        for pool in file.pool.get().into_iter().flat_map(|all| &all.0) {
            let key = &pool.get_ref().client_source;
            if key.get() == Some(&true) && !here.is_transparent() {
                let what = "this process may not connect from addresses of others";
                self.lacks(key.span(), what, "CAP_NET_RAW or CAP_NET_ADMIN");
            }
        }
    }

    fn lacks(&mut self, at: Option<Range<usize>>, what: impl Into<String>, capability: &str) {
        self.tell(
            Problem::at(Code::NotHere, place(at), what)
                .label(format!("takes {capability}"))
                .hint("give it to the process that is to serve: AmbientCapabilities= of systemd, `capabilities.add` of a \
                    pod, or setcap".to_owned()),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Here, *};

    const TEXT: &str = "version = 1\n[cloud.a]\n[[pool]]\nname = \"p\"\nclient_source = true\n\
        [pool.health.tcp]\n[[pool.endpoint]]\naddress = \"192.0.2.1:1\"\ncloud = \"a\"\n\
        [[listener]]\nbind = \"127.0.0.1:443\"\npool = \"p\"\nintercept = \"tproxy\"\n\
        [[listener]]\nbind = \"127.0.0.1:1443\"\npool = \"p\"\nintercept = \"redirect\"\n";

    #[test]
    fn each_capability_that_is_missing_is_named_at_its_key() {
        let warnings = |abilities: Option<Abilities>| {
            let here = Some(Here { abilities, spiffe: true });
            let report = super::super::parse(TEXT, "x.toml", here).unwrap().warnings;
            let lines = report.problems().iter().map(|problem| {
                assert_eq!(problem.code, Code::NotHere);
                (report.position(problem.span.as_ref().unwrap().start).0, problem.label.clone().unwrap())
            });
            let mut lines: Vec<_> = lines.collect();
            lines.sort();
            lines
        };
        let transparent = || "takes CAP_NET_RAW or CAP_NET_ADMIN".to_owned();
        let expected =
            [(5, transparent()), (11, "takes CAP_NET_BIND_SERVICE".to_owned()), (13, transparent())];
        assert_eq!(warnings(Some(Abilities::none(1024))), expected);
        assert_eq!(warnings(Some(Abilities::none(80))), [(5, transparent()), (13, transparent())]);
        assert_eq!(warnings(None), []);
    }
}
