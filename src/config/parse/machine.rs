//! What a config takes of the machine that is to serve it: interfaces, addresses, a directory for the log. Another machine
//! may serve the file, and what is missing may yet come, so these are warnings.

use std::{net::SocketAddr, path::Path};

use super::{
    super::{
        Intercept,
        file::{Cloud, File, Listener},
        keys::Key,
        problem::{Code, Problem},
        values::{FilePath, InterfaceText},
    },
    Build, place,
};
use crate::net::{self, Missing};

impl Build<'_> {
    /// Tells what this machine does not have.
    pub(super) fn machine(&mut self, file: &File) {
        for (_, cloud) in file.cloud.get().into_iter().flat_map(|clouds| &clouds.0) {
            self.cloud_here(cloud.get_ref());
        }
        for listener in file.listener.get().into_iter().flat_map(|all| &all.0) {
            self.listener_here(listener.get_ref());
        }
        let telemetry = file.telemetry.get().map(|telemetry| &telemetry.bind);
        if let Some((Some(address), at)) = telemetry.and_then(|key| Some((key.get()?.0, key.span())))
            && net::missing(address, None).is_some()
        {
            self.not_here(at, format!("this machine has no address {}", address.ip()), NO_START, ADDRESSES);
        }
        if let Some(log) = file.log.get() {
            self.log_here(&log.file);
        }
    }

    /// Its sessions fail until what is missing comes.
    fn cloud_here(&mut self, cloud: &Cloud) {
        const LABEL: &str = "cannot be dialled from here";
        let interface = cloud.interface.get().map(|name| name.0.as_str());
        if self.interface_here(&cloud.interface, LABEL) {
            return;
        }
        for source in cloud.source.get().into_iter().flat_map(|sources| &sources.0) {
            let ip = source.get_ref().0;
            if net::missing(SocketAddr::new(ip, 0), interface).is_some() {
                self.not_here(
                    Some(source.span()),
                    format!("this machine has no address {ip}"),
                    LABEL,
                    ADDRESSES,
                );
            }
        }
    }

    fn listener_here(&mut self, listener: &Listener) {
        let interface = listener.interface.get().map(|name| name.0.as_str());
        let anywhere = listener.intercept.get().is_some_and(|word| word.0 == Intercept::Tproxy);
        if self.interface_here(&listener.interface, NO_START) || anywhere {
            return;
        }
        let address = listener.bind.get().map(|bind| bind.0.0);
        if let Some(address) = address.filter(|address| net::missing(*address, interface).is_some()) {
            let what = format!("this machine has no address {}", address.ip());
            self.not_here(listener.bind.span(), what, NO_START, ADDRESSES);
        }
    }

    /// True if it was told that this machine lacks it.
    fn interface_here(&mut self, key: &Key<InterfaceText>, label: &str) -> bool {
        let any = SocketAddr::from(([0; 4], 0));
        let name = key.get().map(|name| name.0.as_str());
        let Some(name) = name.filter(|name| net::missing(any, Some(name)) == Some(Missing::Interface)) else {
            return false;
        };
        let what = format!("this machine has no interface `{name}`");
        self.not_here(key.span(), what, label, "where it is to run: `ip link` shows the interfaces");
        true
    }

    fn log_here(&mut self, key: &Key<FilePath>) {
        let Some(path) = key.get().map(|path| path.0.as_path()) else { return };
        let directory = path.parent().filter(|directory| *directory != Path::new(""));
        if let Some(directory) = directory.filter(|directory| !directory.is_dir()) {
            let what = format!("there is no directory {}", directory.display());
            self.not_here(key.span(), what, NO_START, "where it is to run: make the directory first");
        } else if path.is_dir() {
            let what = format!("{} is a directory", path.display());
            self.not_here(key.span(), what, NO_START, "name a file in it");
        }
    }

    fn not_here(&mut self, at: Option<std::ops::Range<usize>>, what: String, label: &str, hint: &str) {
        self.tell(Problem::at(Code::NotHere, place(at), what).label(label).hint(hint.to_owned()));
    }
}

const NO_START: &str = "no start here";
const ADDRESSES: &str = "where it is to run: `ip address` shows the addresses";

#[cfg(test)]
mod tests {
    use super::{super::Here, *};

    fn warnings(text: &str) -> Vec<(usize, String)> {
        let here = Some(Here { abilities: None, spiffe: true });
        let report = super::super::parse(text, "x.toml", here).unwrap().warnings;
        let lines = report.problems().iter().map(|problem| {
            assert_eq!(problem.code, Code::NotHere);
            (report.position(problem.span.as_ref().unwrap().start).0, problem.what.clone())
        });
        let mut lines: Vec<_> = lines.collect();
        lines.sort();
        lines
    }

    #[test]
    fn what_this_machine_lacks_is_told_at_its_key() {
        let text = "version = 1\n[telemetry]\nbind = \"192.0.2.4:1\"\n[log]\nfile = \"/no/such/directory/x.log\"\n\
            [cloud.a]\nsource = [\n\"192.0.2.1\"]\n[cloud.b]\ninterface = \"no-such-if\"\nsource = [\"192.0.2.2\"]\n\
            [[pool]]\nname = \"p\"\n[pool.health.tcp]\n\
            [[pool.endpoint]]\naddress = \"127.0.0.2:1\"\ncloud = \"a\"\n\
            [[pool.endpoint]]\naddress = \"127.0.0.2:2\"\ncloud = \"b\"\n\
            [[listener]]\nbind = \"192.0.2.3:1443\"\npool = \"p\"\n\
            [[listener]]\nbind = \"127.0.0.1:1443\"\npool = \"p\"\ninterface = \"none-such-if\"\n\
            [[listener]]\nbind = \"127.0.0.1:1444\"\npool = \"p\"\n[[listener]]\nbind = \"0.0.0.0:1445\"\npool = \"p\"\n\
            [[listener]]\nbind = \"192.0.2.3:1446\"\npool = \"p\"\nintercept = \"tproxy\"\n";
        let expected = [
            (3, "this machine has no address 192.0.2.4"),
            (5, "there is no directory /no/such/directory"),
            (8, "this machine has no address 192.0.2.1"),
            (10, "this machine has no interface `no-such-if`"),
            (22, "this machine has no address 192.0.2.3"),
            (27, "this machine has no interface `none-such-if`"),
        ];
        assert_eq!(warnings(text), expected.map(|(line, what)| (line, what.to_owned())));
    }

    #[test]
    fn a_directory_is_no_log_file() {
        let directory = tempfile::tempdir().unwrap();
        let text = |path: &Path| {
            let pool = "[[pool]]\nname = \"p\"\n[pool.health.tcp]\n\
                [[pool.endpoint]]\naddress = \"127.0.0.2:1\"\ncloud = \"a\"\n";
            format!(
                "version = 1\nlog.file = {:?}\ncloud.a = {{}}\n{pool}[[listener]]\nbind = \"127.0.0.1:0\"\npool = \"p\"",
                path.display().to_string()
            )
        };
        let what = format!("{} is a directory", directory.path().display());
        assert_eq!(warnings(&text(directory.path())), [(2, what)]);
        assert_eq!(warnings(&text(&directory.path().join("x.log"))), []);
        assert_eq!(warnings(&text(Path::new("x.log"))), []);
    }
}
