//! One run of one variant in its group, as often as it takes to be undisturbed.

use std::fs::{self, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::foreign::{self, Foreign, Since};
use super::group::{self, Controller};
use super::metrics::Metrics;
use super::options::Options;
use super::rig::measure::{self, Speeds, Variant, Workload};
use super::{cache, interrupt};

/// How often a run is tried until nothing disturbs it.
const ATTEMPTS_MAX: usize = 20;

/// How long a run waits for a quiet machine.
const PATIENCE: Duration = Duration::from_secs(600);

const SIGKILL: i32 = 9;

/// What all runs of a bench share.
pub struct Runs<'a> {
    pub options: &'a Options,
    pub workload: Workload<'a>,
    /// Where groups are made; None: the runs take what they like.
    pub controller: Option<&'a Controller>,
    /// Where models and records lie.
    pub folder: &'a Path,
}

/// What is run.
pub struct Spec {
    pub variant: Variant,
    /// What its group may take; None: it is in no group.
    pub limit_bytes: Option<u64>,
    /// Its `--vram-budget`; None: nothing is paged.
    pub budget_bytes: Option<u64>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Run {
    /// None: killed, because its group's memory did not suffice.
    pub speeds: Option<Speeds>,
    /// The most memory that the process had, in bytes.
    pub peak_bytes: u64,
    /// The most that its group took, page cache included.
    pub group_peak_bytes: Option<u64>,
    /// Bytes read from the disk.
    pub read_bytes: Option<u64>,
    /// None: it wrote none.
    pub metrics: Option<Metrics>,
    /// The text it generated, as a number.
    pub text: u64,
}

impl Runs<'_> {
    /// Runs `spec`, again when something else ran meanwhile; each run becomes a record.
    pub fn run(&self, spec: &Spec, round: usize) -> Result<Run> {
        let name = spec.variant.name;
        for _ in 0..ATTEMPTS_MAX {
            interrupt::check()?;
            if !self.options.noisy {
                foreign::wait(self.workload.model, PATIENCE)?;
            }
            let since = Since::now(self.workload.model);
            let mut run = self.once(spec)?;
            let (foreign, read_bytes) = since.foreign(self.workload.model);
            run.read_bytes = read_bytes;
            let disturbed = foreign.disturbs();
            self.record(&describe(spec, round, &run, foreign))?;
            eprintln!(
                "round {round} {name:<11} {}{}",
                speeds_text(&run),
                if disturbed { "; disturbed" } else { "" }
            );
            if !disturbed || self.options.noisy {
                return Ok(run);
            }
        }
        bail!("'{name}' was disturbed {ATTEMPTS_MAX} times; --noisy measures all the same")
    }

    fn once(&self, spec: &Spec) -> Result<Run> {
        let metrics = self.folder.join("last-metrics.jsonl");
        let wants_metrics = self.options.metrics && spec.budget_bytes.is_some();
        remove(&metrics)?;
        cache::empty(self.workload.model)?;
        let group = match (self.controller, spec.limit_bytes) {
            (Some(controller), Some(bytes)) => Some(controller.group(bytes)?),
            _ => None,
        };
        let mut command = measure::command(&spec.variant, &self.workload);
        if let Some(bytes) = spec.budget_bytes {
            command.args(["--vram-budget", &format!("{bytes}b")]);
        }
        if wants_metrics {
            command.arg("--metrics-file").arg(&metrics);
        }
        group::tie(&mut command);
        if let Some(group) = &group {
            group.admit(&mut command)?;
        }
        let mut peak_bytes = 0;
        let ended = measure::finish(command, self.folder, &mut |process| {
            peak_bytes = peak_bytes.max(peak_of(process).unwrap_or(0));
            interrupt::check()
        })?;
        interrupt::check()?;
        let killed = signal_of(ended.status) == Some(SIGKILL)
            && group.as_ref().is_some_and(|group| group.kills() > 0);
        let speeds = if killed {
            None
        } else {
            Some(ended.speeds(spec.variant.name)?)
        };
        Ok(Run {
            speeds,
            peak_bytes,
            group_peak_bytes: group.and_then(|group| group.peak_bytes()),
            read_bytes: None,
            metrics: if wants_metrics && !killed {
                Some(Metrics::read(&metrics)?)
            } else {
                None
            },
            text: hash_of(&self.folder.join("last-output.txt"))?,
        })
    }

    /// Appends a record, with what all records have, to `larger.jsonl`.
    pub fn record(&self, what: &Value) -> Result<()> {
        let mut line = json!({
            "time_unix_s": SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
            "part": if self.options.kv { "kv" } else { "larger" },
            "smoke": self.options.smoke,
            "model": self.workload.model.file_stem().and_then(|name| name.to_str()),
            "model_bytes": fs::metadata(self.workload.model)?.len(),
            "threads": self.workload.threads,
            "context_tokens": self.workload.context_tokens,
            "decode_tokens": self.workload.decode_tokens,
        });
        if let (Some(line), Some(what)) = (line.as_object_mut(), what.as_object()) {
            line.extend(what.clone());
        }
        let path = self.records();
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            // In one piece, so that a line is whole.
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        written.with_context(|| format!("could not write '{}'", path.display()))
    }

    /// The file of the records.
    pub fn records(&self) -> PathBuf {
        self.folder.join("larger.jsonl")
    }
}

/// The speeds of a run that was not killed.
pub fn speeds_of(run: &Run, name: &str) -> Result<Speeds> {
    let killed = || format!("'{name}' was killed: its group's memory did not suffice");
    run.speeds.with_context(killed)
}

fn describe(spec: &Spec, round: usize, run: &Run, foreign: Foreign) -> Value {
    let plan = run.metrics.as_ref().map(|metrics| metrics.plan);
    json!({
        "variant": spec.variant.name,
        "arguments": spec.variant.arguments,
        "round": round,
        "limit_bytes": spec.limit_bytes,
        "budget_bytes": spec.budget_bytes,
        "outcome": if run.speeds.is_some() { "ended" } else { "killed" },
        "prefill_tokens_per_s": run.speeds.map(|speeds| speeds.prefill),
        "decode_tokens_per_s": run.speeds.map(|speeds| speeds.decode),
        "peak_bytes": run.peak_bytes,
        "group_peak_bytes": run.group_peak_bytes,
        "read_bytes": run.read_bytes,
        "resident_bytes": plan.map(|plan| plan.resident_bytes),
        "streamed_bytes": plan.map(|plan| plan.streamed_bytes),
        "kv_resident_bytes": plan.map(|plan| plan.kv_resident_bytes),
        "kv_streamed_bytes": plan.map(|plan| plan.kv_streamed_bytes),
        "text_hash": format!("{:016x}", run.text),
        "foreign_share": foreign.processor_share,
        "foreign_disk_bytes_per_s": foreign.disk_rate,
        "disturbed": foreign.disturbs(),
    })
}

fn speeds_text(run: &Run) -> String {
    let peak = format!("peak {} MiB", run.peak_bytes >> 20);
    match run.speeds {
        Some(speeds) => format!(
            "prefill {:7.2}, decode {:6.2} tokens/s, {peak}",
            speeds.prefill, speeds.decode
        ),
        None => format!("killed, {peak}"),
    }
}

/// The most memory that `process` had so far, in bytes.
fn peak_of(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes << 10)
}

fn signal_of(status: std::process::ExitStatus) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt;
    status.signal()
}

fn hash_of(path: &Path) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    fs::read(path)?.hash(&mut hasher);
    Ok(hasher.finish())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("could not remove '{}'", path.display()))
        }
        _ => Ok(()),
    }
}

/// All of `runs` wrote the same text.
pub fn same_text<'a>(runs: impl IntoIterator<Item = &'a Run>) -> bool {
    let mut texts = runs.into_iter().map(|run| run.text);
    let first = texts.next();
    texts.all(|text| Some(text) == first)
}

/// A variant with `flags`, and `more` from the bench's own command line.
pub fn variant(name: &'static str, flags: &[&str], more: &[String]) -> Variant {
    // Repacked weights would be a copy of the model in memory.
    let flags = ["--no-repack"].iter().chain(flags);
    let flags = flags.map(ToString::to_string);
    Variant {
        name,
        arguments: flags.chain(more.iter().cloned()).collect(),
    }
}
