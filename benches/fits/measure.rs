//! One run of `rpaged-cli`: its command line, and the speeds it reports at its end.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What is measured: a name for tables, and the flags that make it.
pub struct Variant {
    pub name: &'static str,
    pub arguments: Vec<String>,
}

/// What each run is given beside the variant's flags.
pub struct Workload<'a> {
    pub model: &'a Path,
    pub prompt: &'a Path,
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

/// Runs `rpaged-cli` once. What it prints lies in `folder` until the next run.
pub fn run(variant: &Variant, workload: &Workload<'_>, folder: &Path) -> Result<Speeds> {
    let (output, log) = (folder.join("last-output.txt"), folder.join("last-log.txt"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_rpaged-cli"))
        .arg("-m")
        .arg(workload.model)
        .arg("-f")
        .arg(workload.prompt)
        .args(["-n", &workload.decode_tokens.to_string()])
        .args(["-t", &workload.threads.to_string()])
        .args([
            "-c",
            "1024",
            "-s",
            "1",
            "--temp",
            "0",
            "--ignore-eos",
            "-no-cnv",
        ])
        .args(&variant.arguments)
        .stdin(Stdio::null())
        .stdout(File::create(&output)?)
        .stderr(File::create(&log)?)
        .spawn()
        .context("could not start rpaged-cli")?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > Duration::from_secs(RUN_SECONDS_MAX) {
            child.kill()?;
            bail!("'{}' ran for more than {RUN_SECONDS_MAX} s", variant.name);
        }
        sleep(Duration::from_millis(20));
    };
    let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    if !status.success() {
        let last = text.lines().rev().take(5).collect::<Vec<_>>();
        bail!(
            "'{}' ended with {status}: {}",
            variant.name,
            last.join(" / ")
        );
    }
    speeds(&text).with_context(|| format!("no speeds in '{}'", log.display()))
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
