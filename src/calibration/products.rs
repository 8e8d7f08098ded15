//! Matrices, attention and nodes, on ggml's CPU backend or a device's.

use std::time::Instant;

use crate::error::{Error, Result};
use crate::ggml::InnerDevice;
use crate::ggml::workload::{Work, Workload};

/// Elements of a row of the processor's matrices: a common width, and a multiple of every
/// block. Also of the nodes that do nearly nothing.
pub const COLUMNS: u32 = 2048;
/// Rows of a matrix of the processor's.
pub const ROWS: u32 = 2048;
/// Elements of a row of a device's matrices, and rows: a launch costs as much as a small one.
const DEVICE_SIDE: u32 = 4096;
/// Bytes of all matrices of a product by one token: more than caches hold.
const SET_BYTES: u64 = 96 << 20;
/// The same on a device, the largest of which have caches of 96 MiB.
const DEVICE_SET_BYTES: u64 = 192 << 20;
/// A device's own memory of which less than this is free is not measured: its driver takes
/// some for itself, and some drivers end the process when they cannot.
const DEVICE_FREE_BYTES: u64 = 768 << 20;
/// Each rate is the lower quartile of so many runs, after one that is not counted: whatever
/// else ran only made some of them slower.
const RUNS: usize = 8;
/// Unless they take longer than this together, in seconds.
const RUNS_SECONDS_MAX: f64 = 0.6;

/// What computes: the processor with so many threads, or a device.
#[derive(Clone, Copy, Debug)]
pub enum On {
    /// ggml's CPU backend.
    Processor {
        /// Its threads.
        threads: u32,
    },
    /// Another backend of ggml's.
    Device(InnerDevice),
}

impl On {
    fn name(self) -> String {
        match self {
            Self::Processor { .. } => "this CPU".to_owned(),
            Self::Device(device) => device.name(),
        }
    }

    /// Elements of a row of its matrices; they have as many rows.
    fn side(self) -> u32 {
        match self {
            Self::Processor { .. } => COLUMNS,
            Self::Device(_) => DEVICE_SIDE,
        }
    }

    fn failed(self, reason: &str) -> Error {
        Error::Failed(format!(
            "could not measure how fast {} is: {reason}",
            self.name()
        ))
    }

    /// A workload of matrices of one type, by one token: more bytes than caches hold.
    pub fn matrices(self, kind: u32, tokens: u32) -> Result<Matrices> {
        let side = u64::from(self.side());
        let row = crate::ggml::workload::row_bytes(kind, side).unwrap_or(1);
        let bytes = row * side;
        let set = match self {
            Self::Processor { .. } => SET_BYTES,
            Self::Device(_) => DEVICE_SET_BYTES,
        };
        let count = match tokens {
            1 => (set / bytes.max(1)).clamp(1, 96),
            _ => 1,
        };
        let work = Work::Matrices {
            kind,
            columns: i64::from(self.side()),
            rows: i64::from(self.side()),
            count: usize::try_from(count).unwrap_or(1),
            tokens: i64::from(tokens),
        };
        Ok(Matrices {
            work: self.workload(work)?,
            bytes: count * bytes,
            products: count * side * side * u64::from(tokens),
        })
    }

    /// Makes a workload.
    pub fn workload(self, work: Work) -> Result<Workload> {
        let made = match self {
            Self::Processor { threads } => {
                Workload::new(work, usize::try_from(threads).unwrap_or(1))
            }
            Self::Device(device) => {
                let (free, total) = device.memory_bytes();
                if !device.is_host() && total > 0 && free < DEVICE_FREE_BYTES {
                    return Err(self.failed(&format!(
                        "{} MiB of its memory are free, and measuring wants {} MiB",
                        free >> 20,
                        DEVICE_FREE_BYTES >> 20
                    )));
                }
                Workload::on(device, work, 1)
            }
        };
        made.map_err(|reason| self.failed(&reason))
    }

    /// Seconds of one run: the lower quartile of a few.
    pub fn seconds(self, workload: &mut Workload) -> Result<f64> {
        let mut run = || {
            let started = Instant::now();
            match workload.run() {
                true => Ok(started.elapsed().as_secs_f64()),
                false => Err(self.failed("a graph was not computed")),
            }
        };
        run()?;
        let mut all = Vec::with_capacity(RUNS);
        while all.len() < RUNS && (all.len() < 2 || all.iter().sum::<f64>() < RUNS_SECONDS_MAX) {
            all.push(run()?);
        }
        all.sort_by(f64::total_cmp);
        Ok(all[all.len() / 4].max(1e-9))
    }
}

/// Products with some matrices of one type.
pub struct Matrices {
    /// What computes them.
    pub work: Workload,
    /// Bytes of the matrices.
    pub bytes: u64,
    /// Elements x tokens.
    pub products: u64,
}
