//! Keeps the lines of a log apart when its disk was full in the middle of one.

use std::{
    io::{self, ErrorKind, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// An output of lines. After one that it could take only a part of, the next begins on a line of its own: one line is
/// spoilt, and not two. Who is refused gives the rest up, as `write_all` does.
pub(super) struct Whole<W> {
    output: W,
    /// The last write of this handle ended within a line.
    within: bool,
    torn: Torn,
}

/// Set while an output ends in a torn line; shared by the handles to it, for the next line may be another's.
#[derive(Clone, Debug, Default)]
pub(super) struct Torn(Arc<AtomicBool>);

impl<W> Whole<W> {
    pub(super) const fn new(output: W, torn: Torn) -> Self {
        Self { output, within: false, torn }
    }
}

impl<W: Write> Write for Whole<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.torn.0.swap(false, Relaxed) {
            self.output.write_all(b"\n").inspect_err(|_| self.torn.0.store(true, Relaxed))?;
        }
        let written = self.output.write(bytes);
        match &written {
            Ok(0) => {}
            Ok(written) => self.within = bytes.get(written - 1) != Some(&b'\n'),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) if std::mem::take(&mut self.within) => self.torn.0.store(true, Relaxed),
            Err(_) => {}
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes two bytes, and refuses the next write.
    struct Short(Vec<u8>, bool);

    impl Write for Short {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if !self.1 {
                return Err(ErrorKind::StorageFull.into());
            }
            let taken = bytes.len().min(2);
            self.0.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_line_after_a_torn_one_stands_alone_whoever_writes_it() {
        let torn = Torn::default();
        let mut first = Whole::new(Short(Vec::new(), false), torn.clone());
        let mut second = Whole::new(Vec::new(), torn);
        assert!(first.write_all(b"one\n").is_err());
        second.write_all(b"two\n").unwrap();
        second.write_all(b"three\n").unwrap();
        assert_eq!(first.output.0, b"on");
        assert_eq!(second.output, b"\ntwo\nthree\n");
    }
}
