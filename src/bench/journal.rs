//! What was measured so far, as JSON Lines, so that a sweep can go on after an end.
//!
//! The first line says what the sweep is; each other one is a run, appended as soon as it
//! has ended. A line that a crash has cut is taken away. What is measured must be the same
//! when the sweep goes on: cases, models, machine, build.
//!
//! ```text
//! {"type":"sweep","version":..,"build":..,"cpus":..,"settings":..,"models":[..],"cases":[..]}
//! {"type":"run","case":0,"sample":{"round":0,"time":..,"ns":..,"paged":{..}},"model":{..}}
//! ```

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::case::Case;
use super::row::{ModelFacts, Sample};
use super::{Paging, Runs};
use crate::error::{Error, Result};
use crate::llama::bench::Build;

/// What a sweep is: the first line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sweep {
    /// rpaged's version.
    version: String,
    /// llama.cpp's commit.
    build: String,
    /// The processors.
    cpus: String,
    /// How it is paged and warmed up.
    settings: String,
    /// The models' files.
    models: Vec<ModelFile>,
    /// All cases.
    cases: Vec<Case>,
}

/// What tells a model's file from another one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct ModelFile {
    shown: String,
    bytes: u64,
    /// A checksum of its beginning: names, sizes and types of all tensors.
    beginning: u64,
}

/// One line of the journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line {
    Sweep(Box<Sweep>),
    Run {
        case: usize,
        sample: Sample,
        model: ModelFacts,
    },
}

impl Sweep {
    /// Looks at the models of `cases`.
    ///
    /// # Errors
    /// `Failed` when one cannot be read.
    pub fn new(cases: &[Case], paging: &Paging, runs: &Runs, build: &Build) -> Result<Self> {
        let mut models: Vec<ModelFile> = Vec::new();
        for case in cases {
            if !models.iter().any(|model| model.shown == case.model.shown) {
                models.push(model_file(case)?);
            }
        }
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            build: build.commit.clone(),
            cpus: build.cpus.clone(),
            settings: format!("{paging:?}, warm-up {}", runs.warm_up),
            models,
            cases: cases.to_vec(),
        })
    }

    /// What makes `self` another sweep than `other`; None when nothing does.
    fn difference(&self, other: &Self) -> Option<String> {
        let said = |what: &str, was: &str, is: &str| Some(format!("{what} was '{was}', is '{is}'"));
        if self.version != other.version {
            return said("rpaged's version", &self.version, &other.version);
        }
        if self.build != other.build {
            return said("llama.cpp's commit", &self.build, &other.build);
        }
        if self.cpus != other.cpus {
            return said("the processor", &self.cpus, &other.cpus);
        }
        let models = self.models.iter().zip(&other.models);
        if let Some((was, _)) = models.clone().find(|(was, is)| was != is) {
            return Some(format!("the model '{}' is another one now", was.shown));
        }
        if self.settings != other.settings {
            return Some("the paging flags or --no-warmup differ".to_owned());
        }
        let (was, is) = (self.cases.len(), other.cases.len());
        if was != is {
            return Some(format!("it has {was} cases, the command line makes {is}"));
        }
        let mut cases = self.cases.iter().zip(&other.cases).enumerate();
        let (index, _) = cases.find(|(_, (was, is))| !same(was, is))?;
        Some(format!("case {} of {was} is another one", index + 1))
    }
}

/// Whether two cases measure the same; the model's file is compared elsewhere.
fn same(was: &Case, is: &Case) -> bool {
    let mut was = was.clone();
    was.model.path.clone_from(&is.model.path);
    was == *is
}

/// Bytes of a model's file that are looked at.
const BEGINNING_BYTES: u64 = 1 << 20;

fn model_file(case: &Case) -> Result<ModelFile> {
    let (bytes, beginning) = size_and_beginning(&case.model.path)?;
    Ok(ModelFile {
        shown: case.model.shown.clone(),
        bytes,
        beginning,
    })
}

/// Bytes of the model's file at `path`, and a checksum of its beginning.
///
/// # Errors
/// `Failed` when it cannot be read.
pub fn size_and_beginning(path: &str) -> Result<(u64, u64)> {
    let failed = |error| Error::Failed(format!("could not read the model '{path}': {error}"));
    let file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let mut start = Vec::new();
    file.take(BEGINNING_BYTES)
        .read_to_end(&mut start)
        .map_err(failed)?;
    // FNV-1a: enough to tell files apart that nobody has forged.
    let beginning = start.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Ok((bytes, beginning))
}

/// A run of the case with this index, and its model.
type Known = (usize, Sample, ModelFacts);

/// The journal of a sweep.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Opens the journal at `path`, or begins it; returns what it holds already: the index
    /// of a case, a sample, and what its model is.
    ///
    /// # Errors
    /// `Failed` when it cannot be read or written, `Usage` when it is that of another
    /// sweep, or no journal.
    pub fn open(path: &Path, sweep: &Sweep) -> Result<(Self, Vec<Known>)> {
        let failed = |error| failed(path, &error);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(path).map_err(failed)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed)?;
        // What a crash has cut has no end of line.
        let whole = text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let text = String::from_utf8_lossy(&text[..whole]).into_owned();
        let runs = read(path, &text, sweep)?;
        file.set_len(whole as u64).map_err(failed)?;
        file.seek(std::io::SeekFrom::End(0)).map_err(failed)?;
        let mut journal = Self {
            file,
            path: path.to_owned(),
        };
        if text.is_empty() {
            journal.append(&Line::Sweep(Box::new(sweep.clone())))?;
        }
        Ok((journal, runs))
    }

    /// Adds a run.
    ///
    /// # Errors
    /// `Failed` when it cannot be written.
    pub fn add(&mut self, case: usize, sample: &Sample, model: &ModelFacts) -> Result<()> {
        self.append(&Line::Run {
            case,
            sample: sample.clone(),
            model: model.clone(),
        })
    }

    fn append(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line)
            .map_err(|error| Error::Bug(format!("a line of the journal: {error}")))?;
        text.push('\n');
        self.file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.sync_data())
            .or_else(|error| match error.kind() {
                // A pipe has nothing to synchronise.
                ErrorKind::InvalidInput => Ok(()),
                _ => Err(failed(&self.path, &error)),
            })
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Error {
    Error::Failed(format!(
        "could not use '{}' as a journal: {error}; see --resume",
        path.display()
    ))
}

/// The runs in the text of a journal.
fn read(path: &Path, text: &str, sweep: &Sweep) -> Result<Vec<Known>> {
    let name = path.display();
    let mut lines = text.lines();
    let Some(first) = lines.next() else {
        return Ok(Vec::new());
    };
    let wrong = |number: usize| {
        Error::Usage(format!(
            "'{name}' is no journal of a sweep (line {number}); give another file with --resume"
        ))
    };
    let Ok(Line::Sweep(before)) = serde_json::from_str(first) else {
        return Err(wrong(1));
    };
    if let Some(difference) = before.difference(sweep) {
        return Err(Error::Usage(format!(
            "'{name}' is the journal of another sweep: {difference}; give another file with \
             --resume"
        )));
    }
    let mut runs = Vec::new();
    for (index, line) in lines.enumerate() {
        match serde_json::from_str(line) {
            Ok(Line::Run {
                case,
                sample,
                model,
            }) if case < sweep.cases.len() && sample.ns > 0 => {
                runs.push((case, sample, model));
            }
            _ => return Err(wrong(index + 2)),
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::super::case::{Axes, ModelName};
    use super::*;

    fn sweep(generated: i32) -> Sweep {
        let model = ModelName {
            shown: "a".into(),
            path: "b".into(),
        };
        let axes = Axes {
            model: vec![model],
            n_threads: vec![2],
            n_gen: vec![generated],
            ..Axes::default()
        };
        Sweep {
            version: "1".into(),
            build: "abc".into(),
            cpus: "one".into(),
            settings: String::new(),
            models: vec![ModelFile {
                shown: "a".into(),
                bytes: 1,
                beginning: 2,
            }],
            cases: axes.cases().unwrap(),
        }
    }

    fn sample(round: u32) -> Sample {
        Sample {
            round,
            ns: 7,
            ..Sample::default()
        }
    }

    fn model() -> ModelFacts {
        ModelFacts {
            model_type: "llama".into(),
            ..ModelFacts::default()
        }
    }

    #[test]
    fn a_journal_goes_on_where_it_was_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (mut journal, runs) = Journal::open(&path, &sweep(8)).unwrap();
        assert!(runs.is_empty());
        journal.add(1, &sample(0), &model()).unwrap();
        drop(journal);
        let mut text = std::fs::read(&path).unwrap();
        text.extend(b"{\"type\":\"run\",\"case\":0,\"sam");
        std::fs::write(&path, &text).unwrap();
        let (mut journal, runs) = Journal::open(&path, &sweep(8)).unwrap();
        assert_eq!(runs, [(1, sample(0), model())]);
        journal.add(0, &sample(1), &model()).unwrap();
        let (_, runs) = Journal::open(&path, &sweep(8)).unwrap();
        assert_eq!(runs, [(1, sample(0), model()), (0, sample(1), model())]);
    }

    #[test]
    fn the_journal_of_another_sweep_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        drop(Journal::open(&path, &sweep(8)).unwrap());
        let refused = |sweep: &Sweep| Journal::open(&path, sweep).unwrap_err().to_string();
        assert!(refused(&sweep(9)).contains("case 2 of 2"));
        let mut other = sweep(8);
        other.cases.pop();
        assert!(refused(&other).contains("it has 2 cases, the command line makes 1"));
        let mut other = sweep(8);
        other.models[0].beginning = 3;
        assert!(refused(&other).contains("the model 'a'"));
        let mut other = sweep(8);
        other.cpus = "two".into();
        assert!(refused(&other).contains("was 'one', is 'two'"));
    }

    #[test]
    fn what_is_no_journal_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        std::fs::write(&path, "dear diary\n").unwrap();
        let refused = Journal::open(&path, &sweep(8)).unwrap_err();
        assert!(matches!(refused, Error::Usage(_)), "{refused}");
        assert_eq!(std::fs::read(&path).unwrap(), b"dear diary\n");
    }
}
