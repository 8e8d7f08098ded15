//! What else used the machine meanwhile: processor time, and the disk that the model is on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::interrupt;
use super::rig::quiet;

/// The share of the processors that others may take during a run that counts. The kernel's
/// own work on what the run reads (interrupts, reclaim) is among it.
pub const PROCESSOR_SHARE_MAX: f64 = 0.06;

/// Bytes per second that others may move on the disk meanwhile.
pub const DISK_RATE_MAX: f64 = (16 << 20) as f64;

const SECTOR_BYTES: u64 = 512;

/// What others took.
#[derive(Clone, Copy, Debug)]
pub struct Foreign {
    pub processor_share: f64,
    /// None where it cannot be known.
    pub disk_rate: Option<f64>,
}

impl Foreign {
    /// Whether it is too much.
    pub fn disturbs(&self) -> bool {
        self.processor_share > PROCESSOR_SHARE_MAX
            || self.disk_rate.is_some_and(|rate| rate > DISK_RATE_MAX)
    }
}

/// A moment from which on is counted.
pub struct Since {
    time: Instant,
    ticks: Option<quiet::Ticks>,
    disk: Option<Disk>,
}

impl Since {
    /// Counts from now on; `path` is on the disk in question.
    pub fn now(path: &Path) -> Self {
        Self {
            time: Instant::now(),
            ticks: quiet::Ticks::now(),
            disk: Disk::now(path),
        }
    }

    /// What others took since then, and what this process and its children have read.
    pub fn foreign(&self, path: &Path) -> (Foreign, Option<u64>) {
        let both = self.disk.zip(Disk::now(path));
        let disk_rate = both.map(|(before, after)| {
            let own = after.own() - before.own();
            let all = after.all_bytes - before.all_bytes;
            all.saturating_sub(own) as f64 / self.time.elapsed().as_secs_f64()
        });
        let foreign = Foreign {
            processor_share: quiet::foreign_share_since(self.ticks),
            disk_rate,
        };
        let read = both.map(|(before, after)| after.own_read - before.own_read);
        (foreign, read)
    }
}

/// Waits until nothing else runs.
pub fn wait(path: &Path, patience: Duration) -> Result<()> {
    let started = Instant::now();
    loop {
        interrupt::check()?;
        let since = Since::now(path);
        let is_calm = quiet::wait(Duration::ZERO);
        if is_calm && !since.foreign(path).0.disturbs() {
            return Ok(());
        }
        ensure!(
            started.elapsed() <= patience,
            "something else keeps this machine busy; --noisy measures all the same"
        );
    }
}

/// Bytes since the machine, or this process, started.
#[derive(Clone, Copy)]
struct Disk {
    all_bytes: u64,
    /// Of this process and of its children that have ended.
    own_read: u64,
    own_written: u64,
}

impl Disk {
    fn now(path: &Path) -> Option<Self> {
        let device = fs::metadata(path).ok()?.dev();
        let (major, minor) = (libc::major(device), libc::minor(device));
        let all = fs::read_to_string("/proc/diskstats").ok()?;
        let own = fs::read_to_string("/proc/self/io").ok()?;
        Self::read(&all, &own, [major, minor])
    }

    fn read(all: &str, own: &str, device: [u32; 2]) -> Option<Self> {
        let device = device.map(|number| number.to_string());
        let line = all.lines().find(|line| {
            let words = line.split_whitespace().take(2);
            words.eq(device.iter().map(String::as_str))
        })?;
        let field = |index| line.split_whitespace().nth(index)?.parse::<u64>().ok();
        let (read, written) = (field(5)?, field(9)?);
        let own = |name| {
            let line = own.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse().ok()
        };
        Some(Self {
            all_bytes: (read + written) * SECTOR_BYTES,
            own_read: own("read_bytes:")?,
            own_written: own("write_bytes:")?,
        })
    }

    fn own(&self) -> u64 {
        self.own_read + self.own_written
    }
}

/// This file's reading on known texts.
pub fn check_reading() {
    let all = " 254 0 vda 9 0 100 7 5 0 20 3 0\n 254 16 vdb 9 0 1 7 5 0 2 3 0\n";
    let own = "rchar: 1\nread_bytes: 4096\nwrite_bytes: 512\ncancelled_write_bytes: 1\n";
    let read = Disk::read(all, own, [254, 0]);
    let read = read.map(|disk| (disk.all_bytes, disk.own()));
    assert_eq!(read, Some((120 * SECTOR_BYTES, 4608)));
    assert!(Disk::read(all, own, [254, 1]).is_none());
}
