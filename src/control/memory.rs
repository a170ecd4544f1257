//! The ceiling of memory: where there is one, it is looked at ten times a second, and obeyed at each accept. Sessions that
//! live, and the admin API, live on.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{Happening, Kind, View};
use crate::config::{self, MaxMemory};

/// How often the memory is measured, if there is a ceiling.
const LOOK: Duration = Duration::from_millis(100);

/// How often it is looked whether there is one now.
const LOOK_FOR_ONE: Duration = Duration::from_millis(500);

/// How often the cgroup is asked for its limit, which may change while the process runs.
const ASK: Duration = Duration::from_secs(5);

/// What of the cgroup's limit this process may take, in percent: the rest is for the kernel's part of its sessions.
const OF_CGROUP: u64 = 90;

/// Sessions are let in again below so many percent of the ceiling.
const LOW: u64 = 95;

/// A limit of version 1 from here on is none: the largest number of bytes in whole pages.
const ENDLESS: u64 = 1 << 60;

/// Measures for as long as it is polled, and has new sessions reset, or not.
pub(super) async fn watch(view: Arc<View>) {
    let mut ceiling = Ceiling::default();
    let mut asked = None;
    loop {
        let (wanted, now) = (view.overview.load().config.max_memory, Instant::now());
        if asked.is_none_or(|(before, at)| before != wanted || now.duration_since(at) >= ASK) {
            asked = Some((wanted, now));
            ceiling.bytes = bytes(wanted);
            view.shared.memory.set_ceiling(ceiling.bytes);
        }
        // Without a ceiling it is asked for by nobody.
        let resident = ceiling.bytes.and_then(|_| resident()).unwrap_or_default();
        if let Some(short) = ceiling.look(resident) {
            view.shared.memory.set_short(short);
            tell(&view, short, resident, ceiling.bytes);
        }
        sleep(if ceiling.bytes.is_some() { LOOK } else { LOOK_FOR_ONE }).await;
    }
}

fn tell(view: &View, short: bool, resident: u64, ceiling: Option<u64>) {
    let (kind, [before, after]) =
        if short { (Kind::MemoryShort, ["free", "short"]) } else { (Kind::MemoryFree, ["short", "free"]) };
    let ceiling = ceiling.map_or_else(|| "no limit".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
    let live = usize::try_from(view.shared.sessions.active()).unwrap_or(usize::MAX);
    let evidence =
        format!("{} MiB of {ceiling} (max_memory), {}", resident >> 20, config::counted(live, "session"));
    let generation = view.shared.snapshot().generation;
    view.journal.record(generation, Happening::new(kind).change(before, after).because(evidence));
}

/// The ceiling, and whether it was reached.
#[derive(Debug, Default)]
struct Ceiling {
    bytes: Option<u64>,
    short: bool,
}

impl Ceiling {
    /// What has changed with this much in use: memory is short now, or not any more.
    fn look(&mut self, resident: u64) -> Option<bool> {
        let low =
            |ceiling: u64| u64::try_from(u128::from(ceiling) * u128::from(LOW) / 100).unwrap_or(ceiling);
        let short = self
            .bytes
            .is_some_and(|ceiling| if self.short { resident >= low(ceiling) } else { resident > ceiling });
        (std::mem::replace(&mut self.short, short) != short).then_some(short)
    }
}

fn bytes(wanted: MaxMemory) -> Option<u64> {
    match wanted {
        MaxMemory::Off => None,
        MaxMemory::Bytes(bytes) => Some(bytes),
        MaxMemory::OfCgroup => Some(of_cgroup(Path::new("/"))? / 100 * OF_CGROUP),
    }
}

/// Resident memory of this process.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// The least limit of this process's cgroup and of those around it (cgroups(7)), if there is one. `root`: where `/proc` and
/// `/sys` are.
fn of_cgroup(root: &Path) -> Option<u64> {
    let own = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let limits = own.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let (mounted, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|one| one == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        least(&root.join(mounted), Path::new(path.trim_start_matches('/')), file)
    });
    limits.min()
}

/// In a container the path may be that of the host, and what is mounted its end: what is not there limits nothing.
fn least(mounted: &Path, own: &Path, file: &str) -> Option<u64> {
    let limit = |group: &Path| -> Option<u64> {
        let path: PathBuf = mounted.join(group).join(file);
        fs::read_to_string(path).ok()?.trim().parse().ok().filter(|limit| *limit < ENDLESS)
    };
    own.ancestors().filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn memory_is_short_above_the_ceiling_until_it_is_well_below() {
        let mut ceiling = Ceiling { bytes: Some(1_000), short: false };
        let seen = [999, 1_000, 1_001, 1_000, 950, 949, 1_000, 1_002].map(|bytes| ceiling.look(bytes));
        assert_eq!(seen, [None, None, Some(true), None, None, Some(false), None, Some(true)]);
        ceiling.bytes = None;
        assert_eq!((ceiling.look(u64::MAX), ceiling.look(u64::MAX)), (Some(false), None));
    }

    #[test]
    fn the_least_limit_of_the_group_and_of_those_around_it_counts() {
        let root = machine(&[
            ("proc/self/cgroup", "0::/system.slice/twinspan.service\n"),
            ("sys/fs/cgroup/system.slice/twinspan.service/memory.max", "max\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "1000000\n"),
        ]);
        assert_eq!(of_cgroup(root.path()), Some(1_000_000));
        let none = machine(&[("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "max\n")]);
        assert_eq!(of_cgroup(none.path()), None);
        assert_eq!(of_cgroup(machine(&[]).path()), None);
    }

    #[test]
    fn version_1_counts_too_also_where_a_container_shows_only_its_own_end() {
        let own = "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/x\n";
        let limit = "sys/fs/cgroup/memory/memory.limit_in_bytes";
        let root = machine(&[("proc/self/cgroup", own), (limit, "536870912\n")]);
        assert_eq!(of_cgroup(root.path()), Some(512 << 20));
        let endless = machine(&[("proc/self/cgroup", own), (limit, "9223372036854771712\n")]);
        assert_eq!(of_cgroup(endless.path()), None);
    }

    #[test]
    fn this_process_is_measured() {
        assert!(resident().unwrap() > 1 << 20);
    }
}
