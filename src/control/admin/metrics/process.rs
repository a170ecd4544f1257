//! What the kernel says of this process, under the names that every Prometheus client uses.

use std::fs;

/// Clock ticks a second in `/proc`: part of Linux's interface to programs on every architecture that we are built for.
const TICKS: f64 = 100.0;

/// Numbers of the process; `None` where `/proc` does not show them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ProcessNumbers {
    /// User and system time.
    pub(super) cpu_seconds: Option<f64>,
    /// Memory in use.
    pub(super) resident_bytes: Option<u64>,
    /// Address space.
    pub(super) virtual_bytes: Option<u64>,
    /// Threads.
    pub(super) threads: Option<u64>,
    /// Open descriptors.
    pub(super) open_fds: Option<u64>,
    /// Descriptors that may be open.
    pub(super) max_fds: Option<u64>,
}

/// Reads them.
pub(super) fn read() -> ProcessNumbers {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = |key| field(&status, key).map(|count| count * 1024);
    ProcessNumbers {
        cpu_seconds: fs::read_to_string("/proc/self/stat").ok().and_then(|stat| cpu_seconds(&stat)),
        resident_bytes: kilobytes("VmRSS:"),
        virtual_bytes: kilobytes("VmSize:"),
        threads: field(&status, "Threads:"),
        open_fds: open_fds(),
        max_fds: fs::read_to_string("/proc/self/limits")
            .ok()
            .and_then(|limits| field(&limits, "Max open files")),
    }
}

/// The first number of the line that starts with `key`.
fn field(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The program's name, in parentheses, may contain anything: fields count from behind it.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (times.next()?.parse().ok()?, times.next()?.parse().ok()?);
    Some((user + system) as f64 / TICKS)
}

fn open_fds() -> Option<u64> {
    // Since Linux 6.2 the size of the folder is their number; before, it is 0 and they have to be walked.
    let size = fs::metadata("/proc/self/fd").ok()?.len();
    if size > 0 {
        return Some(size);
    }
    // Not counting the one that reads the folder.
    Some((fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_are_found_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 3 0 9 10 11";
        assert_eq!(cpu_seconds(stat), Some(2.0));
    }

    #[test]
    fn this_process_is_seen() {
        let seen = read();
        assert!(seen.cpu_seconds.is_some());
        assert!(seen.resident_bytes.unwrap() > 100_000);
        assert!(seen.virtual_bytes >= seen.resident_bytes);
        assert!(seen.threads.unwrap() >= 1);
        assert!((3..=seen.max_fds.unwrap()).contains(&seen.open_fds.unwrap()));
    }
}
