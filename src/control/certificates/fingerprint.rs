//! Whether a file is another one than it was: what a path leads to in the end, and then what is in it. So a directory
//! of symbolic links that is exchanged whole, a file that is renamed over another, and one that is written in place are
//! all seen, and one that is only touched is not.

use std::{
    fs::{self, File, Metadata},
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use xxhash_rust::xxh3::xxh3_128;

/// A look at a file.
#[derive(Clone, Debug)]
pub(super) struct Look {
    path: PathBuf,
    stamp: Option<Stamp>,
    /// A hash of what is in it; `None`: it cannot be read.
    content: Option<u128>,
    /// False if it was written just before: it may be written again without another stamp.
    settled: bool,
}

/// What the file system says of a file that a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

/// File systems stamp files in steps; none has longer ones than two seconds.
const STEP: Duration = Duration::from_secs(2);

/// The longest file that is read, in bytes; a longer one is refused anyway, whatever is in it.
const LONGEST: u64 = (8 << 20) + 1;

impl Look {
    /// A look at each of `paths`; what has the stamp that it had at the look before is not read again.
    pub(super) fn at(paths: &[PathBuf], before: &[Self]) -> Vec<Self> {
        let known = |path: &PathBuf| before.iter().find(|look| look.path == *path);
        paths.iter().map(|path| Self::of(path, known(path))).collect()
    }

    /// True if the same is in the same files.
    pub(super) fn same(before: &[Self], now: &[Self]) -> bool {
        before.len() == now.len()
            && before.iter().zip(now).all(|(a, b)| a.path == b.path && a.content == b.content)
    }

    fn of(path: &Path, before: Option<&Self>) -> Self {
        // The stamp first: what is written later than this has another one, or is not settled.
        let stamp = fs::metadata(path).ok().filter(Metadata::is_file).as_ref().map(Stamp::of);
        match before {
            Some(before) if before.settled && before.stamp == stamp => before.clone(),
            _ => Self {
                path: path.to_owned(),
                stamp,
                content: stamp.and_then(|_| content(path)),
                settled: stamp.is_some_and(Stamp::is_settled),
            },
        }
    }
}

impl Stamp {
    fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }

    fn is_settled(self) -> bool {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let written = u64::try_from(self.changed.0.max(self.modified.0)).unwrap_or(0);
        now.saturating_sub(Duration::from_secs(written)) > STEP
    }
}

fn content(path: &Path) -> Option<u128> {
    let mut content = Vec::new();
    File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut content)).ok()?;
    Some(xxh3_128(&content))
}

#[cfg(test)]
mod tests {
    use super::{Look, STEP, Stamp, SystemTime};

    /// A look at a file, and one that claims to have seen something else in it under the same stamp.
    fn looks(settled: bool) -> (Look, Look, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "new").unwrap();
        let now = Look::of(file.path(), None);
        let before = Look { content: Some(1), settled, ..now.clone() };
        (before, now, file)
    }

    #[test]
    fn a_file_that_was_just_written_is_read_again_whatever_its_stamp_says() {
        let (before, now, file) = looks(false);
        assert!(!now.settled);
        assert_eq!(Look::of(file.path(), Some(&before)).content, now.content);
    }

    #[test]
    fn a_file_that_has_settled_is_read_again_only_with_another_stamp() {
        let (before, now, file) = looks(true);
        assert_eq!(Look::of(file.path(), Some(&before)).content, Some(1));
        std::fs::write(file.path(), "longer").unwrap();
        let later = Look::of(file.path(), Some(&before));
        assert!(later.content != Some(1) && later.content != now.content);
    }

    #[test]
    fn a_stamp_settles_after_the_longest_step_of_a_file_system() {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let of = |seconds: u64| {
            let time = (i64::try_from(seconds).unwrap(), 0);
            Stamp { device: 1, inode: 1, size: 1, modified: time, changed: time }
        };
        assert!(!of(now).is_settled());
        assert!(!of(now + 3600).is_settled(), "a clock that was set back");
        assert!(of(now - 2 * STEP.as_secs()).is_settled());
    }
}
