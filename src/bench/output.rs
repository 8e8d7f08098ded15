//! Where results go: standard output, standard error, a file, a picture.
//!
//! Each place is tried before the first run: hours later is too late.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::case::Axes;
use super::formats::{self, Format, Frame};
use super::row::Row;
use super::runner::Results;
use super::{Paging, Plan, plot};
use crate::error::{Error, Result};
use crate::llama::bench::Build;

/// The places.
pub struct Outputs {
    stdout: Option<Format>,
    stderr: Option<Format>,
    file: Option<(PathBuf, Format)>,
    plot: Option<(PathBuf, plot::Picture)>,
    build: Build,
    paging: Paging,
    defaults: Axes,
    ours: bool,
}

impl Outputs {
    /// Tries them.
    ///
    /// # Errors
    /// `Usage` for a kind of picture that is not known, `Failed` for a place where nothing
    /// can be written.
    pub fn new(plan: &Plan, threads_default: i32, build: Build) -> Result<Self> {
        let results = &plan.results;
        let picture = results.plot.as_ref().map(|path| {
            let picture = plot::Picture::of(path)?;
            if plan.budgets.is_empty() {
                return Err(Error::Usage(
                    "'--plot' draws speeds over budgets; give some with --vram-budgets".into(),
                ));
            }
            try_place(path, "--plot")?;
            Ok((path.clone(), picture))
        });
        if let Some((path, _)) = &results.file {
            try_place(path, "--output-file")?;
        }
        Ok(Self {
            stdout: results.stdout,
            stderr: results.stderr,
            file: results.file.clone(),
            plot: picture.transpose()?,
            build,
            paging: plan.paging.clone(),
            defaults: Axes {
                n_threads: vec![threads_default],
                ..Axes::default()
            },
            ours: !plan.budgets.is_empty(),
        })
    }

    /// llama.cpp's build.
    pub fn build(&self) -> &Build {
        &self.build
    }

    fn text(&self, format: Format, rows: &[Row]) -> String {
        let frame = Frame {
            build: &self.build,
            paging: &self.paging,
            defaults: &self.defaults,
            ours: self.ours,
        };
        formats::write(format, rows, &frame)
    }

    /// After a run: the file holds what is known.
    ///
    /// # Errors
    /// `Failed` when it cannot be written.
    pub fn save(&self, rows: impl FnOnce() -> Vec<Row>) -> Result<()> {
        match &self.file {
            // A pipe would show it again and again.
            Some((path, format)) if !is_special(path) => replace(
                path,
                self.text(*format, &told(rows())).as_bytes(),
                "--output-file",
            ),
            _ => Ok(()),
        }
    }

    /// At the end: everything, everywhere.
    ///
    /// # Errors
    /// `OutputClosed` when nobody reads standard output, `Failed` when something cannot be
    /// written.
    pub fn finish(&self, results: &Results) -> Result<()> {
        let rows = told(results.rows.clone());
        if rows.is_empty() {
            return Ok(());
        }
        if let Some((path, format)) = &self.file {
            replace(path, self.text(*format, &rows).as_bytes(), "--output-file")?;
        }
        if let Some(format) = self.stderr {
            // Whether anybody reads it is not known.
            drop(std::io::stderr().write_all(self.text(format, &rows).as_bytes()));
        }
        if let Some(format) = self.stdout {
            let mut out = std::io::stdout().lock();
            out.write_all(self.text(format, &rows).as_bytes())
                .and_then(|()| out.flush())
                .map_err(|error| match error.kind() {
                    std::io::ErrorKind::BrokenPipe => Error::OutputClosed,
                    _ => Error::Failed(format!("could not write to standard output: {error}")),
                })?;
        }
        match &self.plot {
            Some((path, picture)) if rows.iter().any(has_point) => {
                replace(path, &picture.draw(&rows, &self.paging)?, "--plot")
            }
            Some(_) => {
                self.say("nothing to draw: no paged case ran");
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// A sentence on standard error.
    pub fn say(&self, sentence: &str) {
        drop(writeln!(std::io::stderr(), "{sentence}"));
    }
}

fn has_point(row: &Row) -> bool {
    row.case.is_paged() && !row.samples.is_empty()
}

/// The rows of which something is known.
fn told(mut rows: Vec<Row>) -> Vec<Row> {
    rows.retain(|row| !row.samples.is_empty() || row.failure.is_some());
    rows
}

/// Whether something is at `path` that is no regular file, as a pipe.
fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| !found.is_file())
}

fn failed(path: &Path, flag: &str, error: &std::io::Error) -> Error {
    Error::Failed(format!(
        "could not write '{}': {error}; see {flag}",
        path.display()
    ))
}

/// Whether `path` can be written; what is there stays as it is.
fn try_place(path: &Path, flag: &str) -> Result<()> {
    let was_there = path.exists();
    if is_special(path) && !path.is_dir() {
        return Ok(());
    }
    let mut options = OpenOptions::new();
    let opened = options.write(true).create(true).truncate(false).open(path);
    opened.map_err(|error| failed(path, flag, &error))?;
    if !was_there {
        drop(fs::remove_file(path));
    }
    Ok(())
}

/// Writes `bytes` to `path` in one step, so that an end in the middle leaves the old ones.
fn replace(path: &Path, bytes: &[u8], flag: &str) -> Result<()> {
    let failed = |error| failed(path, flag, &error);
    if is_special(path) {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).open(path).map_err(failed)?;
        return file.write_all(bytes).map_err(failed);
    }
    // What a link leads to is replaced, not the link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = target.with_file_name(name);
    fs::write(&part, bytes)
        .and_then(|()| fs::rename(&part, &target))
        .map_err(|error| {
            drop(fs::remove_file(&part));
            failed(error)
        })
}
