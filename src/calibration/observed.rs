//! What runs observe, folded into what was measured.

use std::path::Path;

use super::{Calibration, Machine, store};
use crate::error::Result;

/// Less says little about a disk.
const BYTES_MIN: u64 = 1 << 30;
/// A run's part in the rate that holds from then on.
const WEIGHT: f64 = 0.5;

/// What a run that waited for its transfers has read of its model while it decoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observed {
    /// Bytes read from files.
    pub bytes: u64,
    /// Time during which something was being read, in seconds.
    pub seconds: f64,
}

/// Folds what a run on `machine` observed into the rates in its file, where it was measured
/// before; whether it did. An unreadable or stale file stays as it is: `plan` says why and
/// measures anew.
///
/// # Errors
/// `Failed` when the file cannot be written.
pub fn note(machine: &Machine, observed: Observed) -> Result<bool> {
    match store::path_for(machine) {
        Some(path) => note_in(&path, machine, observed),
        None => Ok(false),
    }
}

fn note_in(path: &Path, machine: &Machine, observed: Observed) -> Result<bool> {
    if observed.bytes < BYTES_MIN || observed.seconds <= 0.0 {
        return Ok(false);
    }
    let Ok(Some(mut rates)) = store::read(path, machine, store::now()) else {
        return Ok(false);
    };
    if !fold(&mut rates, observed) {
        return Ok(false);
    }
    store::write(path, &rates)?;
    Ok(true)
}

/// The mean of both rates, geometric: twice as fast counts as much as half as fast.
fn fold(rates: &mut Calibration, observed: Observed) -> bool {
    let Some(known) = rates.storage_bytes_per_second else {
        return false;
    };
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    let beside_computing = observed.bytes as f64 / observed.seconds;
    let slowdown = rates
        .contention_decode
        .map_or(1.0, |both| both.copy_slowdown);
    let alone = beside_computing * slowdown;
    rates.storage_bytes_per_second = Some(known.powf(1.0 - WEIGHT) * alone.powf(WEIGHT));
    rates.observed_runs += 1;
    true
}

#[cfg(test)]
mod tests {
    use super::super::store::tests::{calibration, machine};
    use super::*;

    #[test]
    fn a_run_moves_the_rate_half_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rates.json");
        let mut rates = calibration();
        rates.date_seconds = store::now();
        store::write(&path, &rates).unwrap();
        // 2e9 was measured, copying is 1.1 times slower beside computing.
        let observed = Observed {
            bytes: 5_000_000_000,
            seconds: 11.0,
        };
        assert!(note_in(&path, &machine(), observed).unwrap());
        let found = store::read(&path, &machine(), store::now())
            .unwrap()
            .unwrap();
        let rate = found.storage_bytes_per_second.unwrap();
        assert!((rate - 1e9).abs() < 1e3, "{rate}");
        assert_eq!(found.observed_runs, 1);
    }

    #[test]
    fn what_says_little_or_fits_nothing_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rates.json");
        let observed = Observed {
            bytes: 5_000_000_000,
            seconds: 10.0,
        };
        assert!(!note_in(&path, &machine(), observed).unwrap());
        assert!(!path.exists(), "what was never measured is not made up");
        std::fs::write(&path, "no JSON").unwrap();
        assert!(!note_in(&path, &machine(), observed).unwrap());
        let mut rates = calibration();
        rates.date_seconds = store::now();
        store::write(&path, &rates).unwrap();
        let short = Observed {
            bytes: 1000,
            seconds: 1e-3,
        };
        assert!(!note_in(&path, &machine(), short).unwrap());
        let found = store::read(&path, &machine(), store::now());
        assert_eq!(found.unwrap().unwrap(), rates);
    }
}
