//! What stands between ggml's calls and ours: no panic crosses the border, and what a
//! callback cannot report is recorded until somebody asks.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::shared::Shared;
use crate::error::{Error, Result};

/// Runs one callback. After a panic, or an error that it could not report, `fallback`
/// is what ggml gets; after a panic every later callback gets its fallback at once.
pub fn guard<T>(shared: &Shared, fallback: T, call: impl FnOnce(&Shared) -> Result<T>) -> T {
    if shared.is_broken() {
        return fallback;
    }
    match catch_unwind(AssertUnwindSafe(|| call(shared))) {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => {
            shared.record(error);
            fallback
        }
        Err(panic) => {
            let what = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "no message".to_owned());
            shared.break_down(Error::Bug(format!("the paged device has a bug: {what}")));
            fallback
        }
    }
}
