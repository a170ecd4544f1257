//! Which config file a command is about.

use std::path::{Path, PathBuf};

use clap::builder::{OsStringValueParser, TypedValueParser as _};

/// A config file, named in one of three ways.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConfigFile {
    /// The config file; it goes before `--config`
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The config file
    #[arg(short, long, value_name = "FILE", env = "TWINSPAN_CONFIG")]
    #[arg(value_parser = OsStringValueParser::new().map(PathBuf::from))]
    config: Option<PathBuf>,
}

impl ConfigFile {
    /// The file. An empty name, as of a variable that a service file sets to nothing, is none.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        let config = self.config.as_deref().filter(|path| !path.as_os_str().is_empty());
        self.file.as_deref().or(config)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        file: ConfigFile,
    }

    #[test]
    fn the_file_may_be_named_in_either_way_and_an_empty_name_is_none() {
        let path = |arguments: &[&str]| {
            let program = Program::try_parse_from([&["twinspan"], arguments].concat()).unwrap();
            program.file.path().map(Path::to_owned)
        };
        assert_eq!(path(&["a.toml"]), Some("a.toml".into()));
        assert_eq!(path(&["-c", "b.toml"]), Some("b.toml".into()));
        assert_eq!(path(&["a.toml", "-c", "b.toml"]), Some("a.toml".into()));
        assert_eq!(path(&["--config="]), None);
    }
}
