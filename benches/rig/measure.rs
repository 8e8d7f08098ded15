//! One run of `rpaged-cli`: its command line, and the speeds it reports at its end.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// What is measured: a name for tables, and the flags that make it.
pub struct Variant {
    pub name: &'static str,
    pub arguments: Vec<String>,
}

/// What each run is given beside the variant's flags.
pub struct Workload<'a> {
    pub model: &'a Path,
    pub prompt: &'a Path,
    pub context_tokens: u32,
    pub decode_tokens: u32,
    pub threads: u32,
}

/// Speeds as the run itself reports them, in tokens per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speeds {
    pub prefill: f64,
    pub decode: f64,
}

impl Speeds {
    /// The mean of two runs.
    pub fn mean(self, other: Self) -> Self {
        Self {
            prefill: f64::midpoint(self.prefill, other.prefill),
            decode: f64::midpoint(self.decode, other.decode),
        }
    }
}

/// A run that takes longer hangs.
const RUN_SECONDS_MAX: u64 = 1800;

/// A run that has ended, in whatever way.
pub struct Ended {
    pub status: ExitStatus,
    /// What it wrote to standard error.
    pub log: String,
}

impl Ended {
    /// The speeds it reports; an error with its last words when it failed.
    pub fn speeds(&self, name: &str) -> Result<Speeds> {
        if !self.status.success() {
            let last = self.log.lines().rev().take(5).collect::<Vec<_>>();
            bail!("'{name}' ended with {}: {}", self.status, last.join(" / "));
        }
        speeds(&self.log).with_context(|| format!("'{name}' reports no speeds"))
    }
}

/// Writes a prompt of `tokens` tokens to `path`: the tokenizer makes one of each byte, and
/// one begins the text.
pub fn write_prompt(path: &Path, tokens: u32) -> Result<()> {
    let bytes = usize::try_from(tokens)?.saturating_sub(1);
    let text = "once ".repeat(bytes / 5 + 1);
    fs::write(path, text.get(..bytes).unwrap_or_default())
        .with_context(|| format!("could not write '{}'", path.display()))
}

/// The command line of a run.
pub fn command(variant: &Variant, workload: &Workload<'_>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rpaged-cli"));
    command
        .arg("-m")
        .arg(workload.model)
        .arg("-f")
        .arg(workload.prompt)
        .args(["-c", &workload.context_tokens.to_string()])
        .args(["-n", &workload.decode_tokens.to_string()])
        .args(["-t", &workload.threads.to_string()])
        .args(["-s", "1", "--temp", "0", "--ignore-eos", "-no-cnv"])
        .args(&variant.arguments);
    // What is measured is what the command line says.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LLAMA_ARG_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs `command` to its end. What it prints lies in `folder` until the next run, as
/// `last-output.txt` and `last-log.txt`. `watch` is called with its process id every few
/// milliseconds; an error of it ends the run.
pub fn finish(
    mut command: Command,
    folder: &Path,
    watch: &mut dyn FnMut(u32) -> Result<()>,
) -> Result<Ended> {
    let (output, log) = (folder.join("last-output.txt"), folder.join("last-log.txt"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(File::create(&output)?)
        .stderr(File::create(&log)?)
        .spawn()
        .with_context(|| format!("could not start {:?}", command.get_program()))?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let too_long = started.elapsed() > Duration::from_secs(RUN_SECONDS_MAX);
        let watched = watch(child.id()).and_then(|()| {
            ensure!(!too_long, "a run took more than {RUN_SECONDS_MAX} s");
            Ok(())
        });
        if let Err(error) = watched {
            child.kill()?;
            child.wait()?;
            return Err(error);
        }
        sleep(Duration::from_millis(20));
    };
    let log = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    Ok(Ended { status, log })
}

/// The speeds in the two closing lines of llama.cpp's log.
fn speeds(log: &str) -> Option<Speeds> {
    let mut prefill = None;
    let mut decode = None;
    for line in log.lines() {
        let slot = if line.contains("prompt eval time =") {
            &mut prefill
        } else if line.contains("  eval time =") {
            &mut decode
        } else {
            continue;
        };
        let number = line.split_once("per token,").map(|(_, after)| after.trim());
        *slot = number
            .and_then(|text| text.split(' ').next())
            .and_then(|text| text.parse::<f64>().ok())
            .filter(|speed| speed.is_finite());
    }
    Some(Speeds {
        prefill: prefill?,
        decode: decode?,
    })
}

/// The middle of `values`, and the middle distance from it (MAD).
pub fn median_and_mad(values: &[f64]) -> (f64, f64) {
    let middle = median(values);
    let distances: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
    (middle, median(&distances))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.get(sorted.len() / 2), sorted.len() % 2) {
        (None, _) => f64::NAN,
        (Some(&upper), 1) => upper,
        (Some(&upper), _) => f64::midpoint(sorted[sorted.len() / 2 - 1], upper),
    }
}

/// The arithmetic of this file on known values: a bench has no test harness of its own.
pub fn check_arithmetic() {
    let log = "common_perf_print: prompt eval time =    100.00 ms /   512 tokens \
               (    0.20 ms per token,  5120.00 tokens per second)\n\
               common_perf_print:        eval time =   1000.00 ms /    31 runs   \
               (   32.26 ms per token,    31.00 tokens per second)\n";
    assert_eq!(
        speeds(log),
        Some(Speeds {
            prefill: 5120.0,
            decode: 31.0
        })
    );
    assert_eq!(speeds("prompt eval time = nothing"), None);
    assert_eq!(median_and_mad(&[3.0, 1.0, 2.0, 10.0]), (2.5, 1.0));
    assert_eq!(median_and_mad(&[3.0, 1.0, 2.0]), (2.0, 1.0));
}
