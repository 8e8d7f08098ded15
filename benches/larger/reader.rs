//! The rate at which the storage gives the model's file, measured without the program's
//! code: by a small reader of threads and direct reads into large pages, and by fio where it
//! is installed, which reads into small ones and may be slower for that. The faster counts.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use memmap2::MmapMut;

use super::{cache, group, interrupt};

/// Bytes of one read.
const BLOCK_BYTES: u64 = 1 << 20;

/// How often the file is read in one measurement: a short one would measure bursts.
const LOOPS: u64 = 2;

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reader {
    Fio,
    Own,
}

impl Reader {
    /// fio, if it can read `path`; says when it cannot.
    pub fn choose(path: &Path, depth: usize) -> Result<Self> {
        match fio(path, depth) {
            Ok(_) => Ok(Self::Fio),
            Err(error) => {
                interrupt::check()?;
                println!(
                    "no rate from fio ({error:#}); the storage's rate is that of {depth} threads \
                     with direct reads"
                );
                Ok(Self::Own)
            }
        }
    }

    /// What it is called in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fio => "fio",
            Self::Own => "threads",
        }
    }

    /// Bytes per second with `depth` reads in flight, in order, past the page cache.
    pub fn rate(self, path: &Path, depth: usize) -> Result<f64> {
        // Direct reads look for pages of the file there all the same.
        cache::empty(path)?;
        match self {
            Self::Fio => {
                let rate = fio(path, depth)?;
                cache::empty(path)?;
                Ok(rate.max(own(path, depth)?))
            }
            Self::Own => own(path, depth),
        }
    }
}

/// How far the kernel reads ahead on the disk of `path`, in KiB, for those who map it: stock
/// depends on it, we do not.
pub fn read_ahead_kib(path: &Path) -> Option<u64> {
    let device = fs::metadata(path).ok()?.dev();
    let device = format!("{}:{}", libc::major(device), libc::minor(device));
    let device = Path::new("/sys/dev/block").join(device);
    // A partition has its disk's.
    let found = ["queue", "../queue"]
        .iter()
        .find_map(|queue| fs::read_to_string(device.join(queue).join("read_ahead_kb")).ok());
    found?.trim().parse().ok()
}

fn fio(path: &Path, depth: usize) -> Result<f64> {
    let name = path.to_str().context("the path is not Unicode")?;
    let mut command = Command::new("fio");
    command
        .args(["--name=rate", "--rw=read", "--direct=1", "--readonly"])
        .args(["--ioengine=io_uring", "--bs=1m", "--output-format=json"])
        .args([
            format!("--iodepth={depth}"),
            format!("--loops={LOOPS}"),
            // A colon separates file names there.
            format!("--filename={}", name.replace(':', "\\:")),
        ])
        .stdin(Stdio::null());
    group::tie(&mut command);
    let output = command.output().context("fio cannot be started")?;
    interrupt::check()?;
    ensure!(
        output.status.success(),
        "fio ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    rate_in(&String::from_utf8_lossy(&output.stdout)).context("fio gives no rate")
}

/// The rate in fio's report, which other lines may precede.
fn rate_in(report: &str) -> Option<f64> {
    let json: serde_json::Value = serde_json::from_str(report.get(report.find('{')?..)?).ok()?;
    let rate = json["jobs"][0]["read"]["bw_bytes"].as_f64()?;
    (rate > 0.0).then_some(rate)
}

fn own(path: &Path, depth: usize) -> Result<f64> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .with_context(|| format!("'{}' cannot be read directly", path.display()))?;
    let bytes = file.metadata()?.len();
    let started = Instant::now();
    for _ in 0..LOOPS {
        thread::scope(|scope| -> Result<()> {
            let file = &file;
            let readers: Vec<_> = (0..depth)
                .map(|first| scope.spawn(move || read_blocks(file, bytes, first, depth)))
                .collect();
            for reader in readers {
                match reader.join() {
                    Ok(read) => read?,
                    Err(_) => bail!("a reader panicked"),
                }
            }
            Ok(())
        })?;
    }
    Ok((bytes * LOOPS) as f64 / started.elapsed().as_secs_f64())
}

/// Reads the blocks `first`, `first + step`, and so on.
fn read_blocks(file: &File, bytes: u64, first: usize, step: usize) -> Result<()> {
    // Direct reads want aligned memory, and a mapping is.
    let mut block = MmapMut::map_anon(usize::try_from(2 * BLOCK_BYTES)?)?;
    // One large page, where the system gives one: the disk then gets larger requests.
    let _ = block.advise(memmap2::Advice::HugePage);
    let block = &mut block[..usize::try_from(BLOCK_BYTES)?];
    block.fill(1);
    for index in (first as u64..bytes.div_ceil(BLOCK_BYTES)).step_by(step) {
        interrupt::check()?;
        let wanted = BLOCK_BYTES.min(bytes - index * BLOCK_BYTES);
        let read = file.read_at(block, index * BLOCK_BYTES)?;
        ensure!(read as u64 == wanted, "a block came in pieces");
    }
    Ok(())
}

/// This file's arithmetic on known values.
pub fn check_arithmetic() {
    let report = "note: a line\n{\"jobs\": [{\"read\": {\"bw_bytes\": 1500902901}}]}";
    assert_eq!(rate_in(report), Some(1_500_902_901.0));
    assert_eq!(rate_in("{\"jobs\": []}"), None);
}
