//! The file of `--metrics-file`. It is opened before the command line is understood, so that
//! what is wrong with that is told there as well, and loses nothing by it: records of a run
//! take the place of what it holds, the end of a run that never began goes behind them, and a
//! file of another kind is left as it is until a run begins.

use std::fs::{File, Metadata};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::error::{Error, Result};
use crate::telemetry::metrics::Metrics;

/// Bytes in front of a file in which a record of ours shows.
const FRONT_BYTES: u64 = 64;

/// The file while nobody knows yet whether there will be a run.
#[derive(Debug)]
pub struct MetricsFile {
    file: File,
    name: String,
}

impl MetricsFile {
    /// Opens it, or makes it, and has `metrics` write there how a run ends that never began.
    ///
    /// # Errors
    /// `Failed` when it cannot be opened.
    pub fn open(path: &Path, metrics: &Metrics) -> Result<Self> {
        let name = path.display().to_string();
        let takes_records = takes_records(path);
        let opened = File::options().append(true).create(true).open(path);
        let file = opened.map_err(|error| failed(&name, &error))?;
        if takes_records {
            let early = file.try_clone().map_err(|error| failed(&name, &error))?;
            metrics.add_file(Box::new(early), name.clone());
        } else {
            metrics.add_file(Box::new(std::io::sink()), name.clone());
        }
        Ok(Self { file, name })
    }

    /// A run begins: its records take the place of what the file holds.
    ///
    /// # Errors
    /// `Failed` when the file cannot be emptied.
    pub fn begin(self, metrics: &Metrics) -> Result<()> {
        let Self { file, name } = self;
        let emptied = file.metadata().and_then(|about| match about.is_file() {
            true => file.set_len(0),
            false => Ok(()),
        });
        emptied.map_err(|error| failed(&name, &error))?;
        metrics.add_file(Box::new(file), name);
        Ok(())
    }
}

fn failed(name: &str, error: &std::io::Error) -> Error {
    Error::Failed(format!(
        "could not open '{name}' for the metrics: {error}; see --metrics-file"
    ))
}

/// Whether records may go behind what the file at `path` holds.
fn takes_records(path: &Path) -> bool {
    match std::fs::metadata(path) {
        // It is made, or cannot be opened either.
        Err(_) => true,
        Ok(about) if about.is_file() => about.len() == 0 || is_ours(path).unwrap_or(false),
        Ok(about) => !is_disk(&about),
    }
}

/// Whether the file at `path` begins and ends as records of ours do.
fn is_ours(path: &Path) -> std::io::Result<bool> {
    let mut file = File::open(path)?;
    let mut front = Vec::new();
    file.by_ref().take(FRONT_BYTES).read_to_end(&mut front)?;
    let mut end = [0; 2];
    file.seek(SeekFrom::End(-2))?;
    file.read_exact(&mut end)?;
    front.retain(|byte| !byte.is_ascii_whitespace());
    let front = String::from_utf8_lossy(&front);
    let after_kind = front
        .strip_prefix("{\"type\":\"")
        .and_then(|rest| rest.split_once('"'));
    let is_record = after_kind.is_some_and(|(_, rest)| rest.starts_with(",\"timestamp\":\""));
    Ok(is_record && &end == b"}\n")
}

#[cfg(unix)]
fn is_disk(about: &Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    about.file_type().is_block_device()
}

#[cfg(not(unix))]
fn is_disk(_about: &Metadata) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{ErrorRecord, Record};

    #[test]
    fn records_go_behind_records_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        assert!(takes_records(&path));
        let takes = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            takes_records(&path)
        };
        let record = Record::Error(ErrorRecord {
            sentence: "no".to_owned(),
            exit_code: 2,
        });
        for pretty in [false, true] {
            let line = record.line(pretty);
            assert!(takes(line.as_bytes()) && takes(line.repeat(3).as_bytes()));
            assert!(!takes(line.trim_end().as_bytes()));
            assert!(!takes(format!("x{line}").as_bytes()));
            assert!(!takes(format!("{line}x").as_bytes()));
        }
        assert!(takes(b""));
        for foreign in ["x", "GGUF", "{}\n", "{\"type\":\"token\"}\n", "\n"] {
            assert!(!takes(foreign.as_bytes()), "{foreign}");
        }
        assert!(takes_records(Path::new("/dev/null")));
    }
}
