//! Matrices, attention and nodes on ggml's CPU backend.

use std::time::Instant;

use crate::error::{Error, Result};
use crate::ggml::workload::{Work, Workload};

/// Elements of a row of the matrices: a common width, and a multiple of every block.
pub const COLUMNS: u32 = 2048;
/// Rows of a matrix.
pub const ROWS: u32 = 2048;
/// Bytes of all matrices of a product by one token: more than caches hold.
const SET_BYTES: u64 = 96 << 20;
/// Each rate is the lower quartile of so many runs, after one that is not counted: whatever
/// else ran only made some of them slower.
const RUNS: usize = 8;
/// Unless they take longer than this together, in seconds.
const RUNS_SECONDS_MAX: f64 = 0.6;

fn failed(reason: String) -> Error {
    Error::Failed(format!("could not measure how fast this CPU is: {reason}"))
}

/// A workload of matrices of one type, by one token: more bytes than caches hold.
pub fn matrices(kind: u32, tokens: u32, threads: u32) -> Result<(Workload, u64)> {
    let row = crate::ggml::workload::row_bytes(kind, u64::from(COLUMNS)).unwrap_or(1);
    let bytes = row * u64::from(ROWS);
    let count = match tokens {
        1 => (SET_BYTES / bytes.max(1)).clamp(1, 96),
        _ => 1,
    };
    let work = Work::Matrices {
        kind,
        columns: i64::from(COLUMNS),
        rows: i64::from(ROWS),
        count: usize::try_from(count).unwrap_or(1),
        tokens: i64::from(tokens),
    };
    Ok((workload(work, threads)?, count * bytes))
}

/// Makes a workload.
pub fn workload(work: Work, threads: u32) -> Result<Workload> {
    Workload::new(work, usize::try_from(threads).unwrap_or(1)).map_err(failed)
}

/// Seconds of one run: the lower quartile of a few.
pub fn seconds(workload: &mut Workload) -> Result<f64> {
    let mut run = || {
        let started = Instant::now();
        match workload.run() {
            true => Ok(started.elapsed().as_secs_f64()),
            false => Err(failed("a graph was not computed".to_owned())),
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
