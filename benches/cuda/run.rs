//! One run of a program, which ends when its time is over, and what it took of the GPU.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// How often the GPU is asked what is in use.
const SAMPLE: Duration = Duration::from_millis(250);

/// What a run of a program left.
pub struct Output {
    /// None when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub seconds: f64,
    /// The most of the GPU's memory that was in use beyond what was before, in bytes.
    pub vram_bytes: Option<u64>,
}

impl Output {
    /// What it printed; an error with its last words when it failed.
    pub fn printed(self) -> Result<Self> {
        if self.code != Some(0) {
            let lines = self.stderr.lines().filter(|line| !line.trim().is_empty());
            let last: Vec<&str> = lines.rev().take(3).collect();
            bail!("ended with {:?}: {}", self.code, last.join(" / "));
        }
        Ok(self)
    }
}

/// Runs programs until a time is over, and notes each run.
pub struct Runner {
    folder: PathBuf,
    end: Instant,
    smi: Option<PathBuf>,
    /// The GPU whose memory is asked for, as the driver's own tool takes it.
    gpu: Option<String>,
    /// Set for each program.
    variables: Vec<(&'static str, String)>,
    /// Command line, time, result and memory of each, in order.
    runs: Rc<RefCell<Vec<Value>>>,
}

impl Runner {
    /// Keeps what programs print in `folder` until the next one runs; `device` is the one
    /// whose memory they take.
    pub fn new(folder: &Path, end: Instant, device: &str) -> Self {
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        // What is measured of the machine stays with the results.
        let cache = folder.join("cache").to_string_lossy().into_owned();
        Self {
            folder: folder.to_owned(),
            end,
            smi: find("nvidia-smi"),
            gpu: gpu_of(device, visible.as_deref()),
            // The driver's own tool counts by the bus, too.
            variables: vec![
                ("XDG_CACHE_HOME", cache),
                ("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned()),
            ],
            runs: Rc::default(),
        }
    }

    /// Has each program see this variable.
    pub fn set(&mut self, name: &'static str, value: &str) {
        self.variables.push((name, value.to_owned()));
    }

    /// The driver's own tool, where there is one.
    pub fn smi(&self) -> Option<&Path> {
        self.smi.as_deref()
    }

    /// The GPU, as that tool takes it; None when the device is none of its.
    pub fn gpu(&self) -> Option<&str> {
        self.gpu.as_deref()
    }

    /// All runs so far.
    pub fn runs(&self) -> Vec<Value> {
        self.runs.borrow().clone()
    }

    /// The same, ending earlier.
    pub fn until(&self, end: Instant) -> Self {
        Self {
            folder: self.folder.clone(),
            end: end.min(self.end),
            smi: self.smi.clone(),
            gpu: self.gpu.clone(),
            variables: self.variables.clone(),
            runs: Rc::clone(&self.runs),
        }
    }

    /// Seconds that are left.
    pub fn seconds_left(&self) -> f64 {
        self.end
            .saturating_duration_since(Instant::now())
            .as_secs_f64()
    }

    /// Runs `program` with these words, for as long as there is time.
    pub fn run<W: AsRef<OsStr>>(&self, program: &Path, words: &[W]) -> Result<Output> {
        self.run_with(program, words, &[])
    }

    /// The same with these environment variables.
    pub fn run_with<W: AsRef<OsStr>>(
        &self,
        program: &Path,
        words: &[W],
        variables: &[(&str, &str)],
    ) -> Result<Output> {
        let words: Vec<&OsStr> = words.iter().map(AsRef::as_ref).collect();
        let ended = self.finish(program, &words, variables);
        let shown = words.iter().map(|word| word.to_string_lossy());
        let command = [program.to_string_lossy()].into_iter().chain(shown);
        let command: Vec<_> = command.map(|word| quoted(&word)).collect();
        let mut run = json!({"command": command.join(" ")});
        match &ended {
            Ok(output) => {
                run["exit_code"] = json!(output.code);
                run["seconds"] = json!(output.seconds);
                run["vram_bytes"] = json!(output.vram_bytes);
            }
            Err(error) => run["error"] = json!(format!("{error:#}")),
        }
        self.runs.borrow_mut().push(run);
        ended
    }

    fn finish(
        &self,
        program: &Path,
        words: &[&OsStr],
        variables: &[(&str, &str)],
    ) -> Result<Output> {
        ensure!(self.seconds_left() > 1.0, "no time was left for it");
        let names = ["last-output.txt", "last-log.txt"];
        let [stdout, stderr] = names.map(|name| self.folder.join(name));
        let before = self.vram_bytes();
        let started = Instant::now();
        let mut child = Command::new(program)
            .args(words)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?)
            .spawn()
            .with_context(|| format!("could not start '{}'", program.display()))?;
        let (mut peak, mut sampled) = (before, started);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > self.end {
                child.kill()?;
                child.wait()?;
                bail!(
                    "stopped after {:.0} s: its time was over",
                    started.elapsed().as_secs_f64()
                );
            }
            if sampled.elapsed() > SAMPLE {
                peak = peak.max(self.vram_bytes());
                sampled = Instant::now();
            }
            sleep(Duration::from_millis(5));
        };
        let text = |path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(Output {
            code: status.code(),
            stdout: text(stdout)?,
            stderr: text(stderr)?,
            seconds: started.elapsed().as_secs_f64(),
            vram_bytes: peak
                .zip(before)
                .map(|(peak, before)| peak.saturating_sub(before)),
        })
    }

    /// Bytes of the GPU's memory in use, as the driver's own tool says.
    fn vram_bytes(&self) -> Option<u64> {
        let words = [
            "--query-gpu=memory.used",
            "--format=csv,noheader,nounits",
            "-i",
            self.gpu()?,
        ];
        let output = Command::new(self.smi.as_ref()?).args(words).output().ok()?;
        let mib: u64 = String::from_utf8(output.stdout).ok()?.trim().parse().ok()?;
        Some(mib << 20)
    }
}

/// What the driver's own tool calls the device `CUDA0` or its like: a number, or what
/// `CUDA_VISIBLE_DEVICES` calls it.
fn gpu_of(device: &str, visible: Option<&str>) -> Option<String> {
    let index: usize = device.strip_prefix("CUDA")?.parse().ok()?;
    match visible.map(str::trim) {
        None | Some("") => Some(index.to_string()),
        Some(list) => list
            .split(',')
            .nth(index)
            .map(|name| name.trim().to_owned()),
    }
}

/// The reading of device names, on known ones.
pub fn check_arithmetic() {
    let gpu = |device, visible| gpu_of(device, visible);
    assert_eq!(gpu("CUDA1", None).as_deref(), Some("1"));
    assert_eq!(gpu("CUDA1", Some("3, GPU-5a")).as_deref(), Some("GPU-5a"));
    assert_eq!(gpu("CUDA0", Some("3")).as_deref(), Some("3"));
    assert_eq!(gpu("CUDA2", Some("3,4")), None);
    assert_eq!(gpu("none", None).or(gpu("ASYNC0", None)), None);
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./=%,:+".contains(letter);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// A program on the path, or in the CUDA toolkit.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let toolkit = std::env::var_os("CUDA_PATH").map_or("/usr/local/cuda".into(), PathBuf::from);
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.push(toolkit.join("bin"));
    let paths = folders.into_iter().map(|folder| folder.join(name));
    paths.into_iter().find(|path| path.is_file())
}
