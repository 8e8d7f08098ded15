//! The file in the cache folder: found, read, judged, written.
//!
//! One file for each machine, number of threads, file system and device that computes. What
//! is there and does not fit (another processor, another version, older than 30 days,
//! damaged) is measured anew; what cannot be written is used all the same, and said.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Calibration, FORMAT, Machine, Wanted, measure};
use crate::error::{Error, Result};

/// Older ones are measured anew, in seconds.
pub const AGE_SECONDS_MAX: u64 = 30 * 24 * 3600;

/// Where rates come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// This file in place of that in the cache folder.
    pub file: Option<PathBuf>,
    /// Measure anew, whatever is there.
    pub anew: bool,
}

/// This program's version and llama.cpp's.
pub fn program() -> String {
    let llama = crate::llama::build_info().unwrap_or_default();
    format!(
        "rpaged {} with llama.cpp {llama}",
        env!("CARGO_PKG_VERSION")
    )
    .trim()
    .to_owned()
}

/// The folder for what can be made again, as the system has it; None where there is none.
pub fn cache_folder() -> Option<PathBuf> {
    let variable = |name: &str| {
        let value = std::env::var_os(name).filter(|value| !value.is_empty());
        value.map(PathBuf::from).filter(|path| path.is_absolute())
    };
    let base = variable("XDG_CACHE_HOME").or_else(|| match std::env::consts::OS {
        "windows" => variable("LOCALAPPDATA"),
        "macos" => variable("HOME").map(|home| home.join("Library/Caches")),
        _ => variable("HOME").map(|home| home.join(".cache")),
    });
    base.map(|base| base.join("rpaged"))
}

/// The name of the file for a machine: a hash of what it is.
fn file_name(machine: &Machine) -> String {
    // As it was named before a device could be a part of it: what was measured holds.
    let text = format!("{machine:?}").replace(", device: None }", " }");
    // FNV-1a: the name only has to differ for different machines.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("calibration-{hash:016x}.json")
}

/// The file for a machine; None where there is no cache folder.
pub(super) fn path_for(machine: &Machine) -> Option<PathBuf> {
    Some(cache_folder()?.join(file_name(machine)))
}

/// The rates that are wanted: from their file as far as it has them, else measured and
/// written there. With them come sentences that the user should read.
///
/// # Errors
/// `Failed` when measuring fails.
pub fn rates(
    wanted: &Wanted,
    origin: &Origin,
    progress: impl FnMut(&str),
) -> Result<(Calibration, Vec<String>)> {
    let mut notices = Vec::new();
    let path = origin.file.clone();
    let path = path.or_else(|| path_for(&wanted.machine));
    let known = path.as_deref().filter(|_| !origin.anew);
    let known = known.and_then(|path| match read(path, &wanted.machine, now()) {
        Ok(found) => found,
        Err(reason) => {
            let name = path.display();
            notices.push(format!(
                "the calibration in '{name}' is measured anew: {reason}"
            ));
            None
        }
    });
    if let Some(known) = known.as_ref().filter(|known| known.has(wanted)) {
        return Ok((known.clone(), notices));
    }
    let measured = measure(wanted, known.clone(), progress)?;
    notices.extend(refusal(known.as_ref(), &measured));
    let written = match &path {
        Some(path) => write(path, &measured),
        None => Err(Error::Failed(
            "there is no cache folder for the calibration; set HOME or XDG_CACHE_HOME".to_owned(),
        )),
    };
    if let Err(error) = written {
        notices.push(format!("{error}; the next run measures again"));
    }
    Ok((measured, notices))
}

/// What was measured before, if it has all that is wanted.
pub fn known(wanted: &Wanted) -> Option<Calibration> {
    let path = path_for(&wanted.machine)?;
    let found = read(&path, &wanted.machine, now()).ok().flatten();
    found.filter(|found| found.has(wanted))
}

/// What a device was found not to compute with, in words; None where it was nothing new.
fn refusal(before: Option<&Calibration>, after: &Calibration) -> Option<String> {
    let is_new = |kind: &&String| before.is_none_or(|found| !found.refused_kinds.contains(*kind));
    let kinds: Vec<&str> = after
        .refused_kinds
        .iter()
        .filter(is_new)
        .map(String::as_str)
        .collect();
    let device = after.machine.device.as_ref()?;
    (!kinds.is_empty()).then(|| {
        format!(
            "{} did not compute with matrices of type {}: the slowest type that it did stands for \
             them; 'rpaged-cli plan --recalibrate' tries again",
            device.name,
            kinds.join(", ")
        )
    })
}

pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// What is in the file at `path`; None when there is none.
///
/// # Errors
/// Why it does not do.
pub fn read(
    path: &Path,
    machine: &Machine,
    now_seconds: u64,
) -> std::result::Result<Option<Calibration>, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("it cannot be read ({error})")),
    };
    let found: Calibration =
        serde_json::from_str(&text).map_err(|error| format!("it is damaged ({error})"))?;
    let age = now_seconds.saturating_sub(found.date_seconds);
    if found.format != FORMAT || found.program != program() {
        return Err("it is of another version".to_owned());
    }
    if found.machine != *machine {
        return Err("it is of another machine, or of other threads".to_owned());
    }
    if age > AGE_SECONDS_MAX {
        return Err(format!("it is {} days old", age / 86_400));
    }
    if !is_sound(&found) {
        return Err("it holds a rate that cannot be".to_owned());
    }
    Ok(Some(found))
}

/// Whether all rates are positive numbers.
fn is_sound(found: &Calibration) -> bool {
    let kinds = found.kinds.values().flat_map(|kind| {
        let batches = kind.products_per_second.values();
        batches
            .chain(std::iter::once(&kind.bytes_per_second))
            .copied()
    });
    let link = found.link.as_ref();
    let contentions = [found.contention_decode, found.contention_prefill];
    let beside = link.map(|link| link.processor_contention);
    let contentions = contentions.into_iter().chain(std::iter::once(beside));
    let slowdowns = contentions
        .flatten()
        .flat_map(|both| [both.copy_slowdown, both.compute_slowdown]);
    let of_link = link.into_iter().flat_map(|link| {
        let rates = link.processor_bytes_per_second.values().copied();
        let others = [link.pageable_bytes_per_second, link.handover_seconds];
        rates.chain(link.pinned_bytes_per_second).chain(others)
    });
    let others = [
        found.memory_bytes_per_second,
        found.attention_per_second,
        found.node_seconds,
        found.element_seconds,
    ];
    let mut all = kinds
        .chain(slowdowns)
        .chain(found.attention_batch_per_second.values().copied())
        .chain(found.storage_bytes_per_second)
        .chain(of_link)
        .chain(others);
    all.all(|rate| rate.is_finite() && rate > 0.0)
}

/// Writes the file in one piece: a reader finds the old one or the new one.
///
/// # Errors
/// `Failed`, naming the file.
pub fn write(path: &Path, calibration: &Calibration) -> Result<()> {
    let failed = |error: std::io::Error| {
        let name = path.display();
        Error::Failed(format!(
            "could not write the calibration to '{name}': {error}"
        ))
    };
    let text = serde_json::to_string_pretty(calibration)
        .map_err(|error| Error::Bug(format!("a calibration is no JSON: {error}")))?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let part = path.with_extension(format!("part-{}", std::process::id()));
    let written = std::fs::File::create(&part)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&part, path));
    written.map_err(|error| {
        drop(std::fs::remove_file(&part));
        failed(error)
    })
}

#[cfg(test)]
#[path = "tests.rs"]
pub(super) mod tests;
