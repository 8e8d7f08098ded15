//! The depth of a case: the tokens that its context holds before anything is measured.
//!
//! They are computed once for a context, and with `--depth-dir` once for a model: what
//! attention is given does not change how long it takes.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::arguments::flash_attention;
use super::case::Case;
use super::journal::size_and_beginning;
use super::sessions::{Filled, Ready};
use crate::error::{Error, Result};

/// Stands behind what llama.cpp has written, which aborts the process when it reads of a file
/// that was cut.
const END: [u8; 8] = *b"\nwhole.\n";

/// Whether the context holds something else than the depth of `case`.
pub fn is_missing(ready: &mut Ready, case: &Case) -> bool {
    let is_there = |filled: Filled| filled.tokens == case.n_depth;
    if case.n_depth > 0 {
        return !ready.filled.is_some_and(is_there);
    }
    begin(ready);
    false
}

/// Empties the context.
pub fn begin(ready: &mut Ready) {
    ready.filled = None;
    ready.context.clear();
}

/// Reads the depth of `case` from its file in `folder`, if it is there and fits; whether it
/// was read.
///
/// # Errors
/// What the device recorded, or `Failed` when the model's file cannot be read.
pub fn read(ready: &mut Ready, case: &Case, folder: Option<&Path>) -> Result<bool> {
    let path = folder.map(|folder| file(folder, case)).transpose()?;
    let Some(path) = path.filter(|path| ends_whole(path).unwrap_or(false)) else {
        return Ok(false);
    };
    begin(ready);
    let fits = ready.context.load(&c_path(&path)?)?;
    let last = ready.context.positions().1;
    if !fits || last != case.n_depth - 1 {
        return Ok(false);
    }
    is_whole(ready, case);
    Ok(true)
}

/// The context has computed the depth of `case`; it is kept in `folder`, if there is one.
///
/// # Errors
/// `Failed` when the file cannot be written or the model's not be read, or what the device
/// recorded.
pub fn keep(ready: &mut Ready, case: &Case, folder: Option<&Path>) -> Result<()> {
    if let Some(folder) = folder {
        let path = file(folder, case)?;
        let part = path.with_extension(format!("{}.part", std::process::id()));
        let failed = |what: &dyn std::fmt::Display| {
            Error::Failed(format!(
                "could not write '{}'{what}; see --depth-dir",
                path.display()
            ))
        };
        let written = ready.context.save(&c_path(&part)?)?;
        let end = || OpenOptions::new().append(true).open(&part)?.write_all(&END);
        let renamed = end().and_then(|()| fs::rename(&part, &path));
        if !written || renamed.is_err() {
            drop(fs::remove_file(&part));
        }
        if !written {
            return Err(failed(&", perhaps the disk is full"));
        }
        renamed.map_err(|error| failed(&format!(": {error}")))?;
    }
    is_whole(ready, case);
    Ok(())
}

fn ends_whole(path: &Path) -> std::io::Result<bool> {
    let mut file = File::open(path)?;
    let mut end = [0; END.len()];
    file.seek(SeekFrom::End(-8))?;
    file.read_exact(&mut end)?;
    Ok(end == END)
}

fn is_whole(ready: &mut Ready, case: &Case) {
    ready.filled = Some(Filled {
        tokens: case.n_depth,
        positions: ready.context.positions(),
    });
}

/// Takes back what was added to the depth. Where memory cannot forget a part, or has lost
/// a part of the depth meanwhile (a window that slides), it has to be filled again.
pub fn empty(ready: &mut Ready, case: &Case) {
    let Some(filled) = ready.filled else {
        return;
    };
    let is_whole = ready.context.truncate(case.n_depth)
        && filled.tokens == case.n_depth
        && ready.context.positions() == filled.positions;
    if !is_whole {
        ready.filled = None;
    }
}

/// The file for all that shapes what a context holds.
fn file(folder: &Path, case: &Case) -> Result<PathBuf> {
    let name = Path::new(&case.model.shown).file_stem();
    // Models of one name and size may lie in several folders.
    let (bytes, beginning) = size_and_beginning(&case.model.path)?;
    Ok(folder.join(format!(
        "{}-{bytes}-{beginning:016x}-d{}-{}-{}-fa-{}.state",
        name.unwrap_or_default().to_string_lossy(),
        case.n_depth,
        case.type_k,
        case.type_v,
        flash_attention(case.flash_attn),
    )))
}

fn c_path(path: &Path) -> Result<CString> {
    let text = path.to_string_lossy().into_owned();
    CString::new(text).map_err(|_| Error::Usage("--depth-dir contains a NUL".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::case::{Axes, ModelName};
    use super::*;

    #[test]
    fn models_of_one_name_and_size_have_files_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let of_model = |place: &str, content: &str| {
            let model = folder.path().join(place);
            fs::create_dir_all(&model).unwrap();
            let model = model.join("model.gguf").to_string_lossy().into_owned();
            fs::write(&model, content).unwrap();
            let name = ModelName {
                shown: model.clone(),
                path: model,
            };
            let axes = Axes {
                model: vec![name],
                n_threads: vec![1],
                ..Axes::default()
            };
            file(Path::new("kept"), &axes.cases().unwrap()[0]).unwrap()
        };
        let first = of_model("a", "one model");
        assert_ne!(of_model("b", "another 1"), first);
        assert_ne!(of_model("b", "one model, longer"), first);
        assert_eq!(of_model("b", "one model"), first);
        assert!(first.starts_with("kept"), "{}", first.display());
    }
}
