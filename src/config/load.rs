//! Reading the file. A file that is not there is never the same as an empty one.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use super::{
    HAS_SPIFFE, Loaded, Refused, Report,
    parse::{self as parser, Here},
    problem::{Code, Problem},
};
use crate::net::Abilities;

/// Reads and checks the file at `path`.
///
/// # Errors
/// Everything that is wrong with it, or why it cannot be read.
pub fn load(path: &Path) -> Result<Loaded, Refused> {
    let name = path.display().to_string();
    let unreadable = |problem: Problem| Refused(Report::new(&name, "", vec![problem]));
    let bytes = read(path).map_err(|error| {
        let problem = Problem::of_file(Code::Unreadable, format!("cannot read {name}: {error}"));
        let missing = error.kind() == io::ErrorKind::NotFound;
        unreadable(problem.hint(missing.then(|| "give the path of a config file with -c FILE".to_owned())))
    })?;
    if bytes.len() > parser::MOST_BYTES {
        return Err(unreadable(Problem::of_file(Code::Unreadable, format!("{name} is larger than 16 MiB"))));
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => {
            let here = Here { abilities: Abilities::of_this_process(), spiffe: HAS_SPIFFE };
            parser::parse(text, &name, Some(here))
        }
        Err(error) => {
            let at = error.valid_up_to();
            let line = bytes.iter().take(at).filter(|byte| **byte == b'\n').count() + 1;
            let byte = bytes.get(at).copied().unwrap_or_default();
            let what = format!("{name} is not UTF-8: byte 0x{byte:02x} at offset {at}, in line {line}");
            Err(unreadable(
                Problem::of_file(Code::Unreadable, what).hint("save the file as UTF-8".to_owned()),
            ))
        }
    }
}

/// Checks `text`; problems name the file `name`. What this process lacks to serve it is not told.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str, name: &str) -> Result<Loaded, Refused> {
    parser::parse(text, name, None)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too long, even one without an end.
    let most = u64::try_from(parser::MOST_BYTES).unwrap_or(u64::MAX);
    file.take(most + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
