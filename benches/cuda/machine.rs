//! The machine that all of it was measured on.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value, json};

/// What is asked of the driver's own tool about the GPU.
const FIELDS: [&str; 6] = [
    "name",
    "driver_version",
    "memory.total",
    "pcie.link.gen.max",
    "pcie.link.width.max",
    "compute_cap",
];

/// Processor, memory, system, GPU and driver; null what is not known.
pub fn facts(smi: Option<&Path>, device: Option<&str>) -> Value {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").ok();
    let threads = std::thread::available_parallelism().map(usize::from).ok();
    json!({
        "processor": line("/proc/cpuinfo", "model name"),
        "threads": threads,
        "memory": line("/proc/meminfo", "MemTotal"),
        "kernel": kernel.map(|text| text.trim().to_owned()),
        "gpu": smi.zip(device).and_then(|(smi, device)| gpu(smi, device)),
        "cuda": smi.and_then(|smi| said(smi, &["--version"])),
    })
}

/// What stands behind `key` in a file of the kernel's.
fn line(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn gpu(smi: &Path, device: &str) -> Option<Value> {
    let query = format!("--query-gpu={}", FIELDS.join(","));
    let text = said(smi, &[&query, "--format=csv,noheader", "-i", device])?;
    let values = text.first()?.split(',').map(|value| json!(value.trim()));
    let pairs = FIELDS.iter().map(|field| (*field).to_owned()).zip(values);
    Some(Value::Object(pairs.collect::<Map<_, _>>()))
}

fn said(program: &Path, words: &[&str]) -> Option<Vec<String>> {
    let output = Command::new(program).args(words).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.lines().map(str::to_owned).collect())
}
