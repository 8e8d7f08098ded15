//! No panic crosses into C: it becomes a complaint.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::shared::Shared;

/// Runs `call`; what it fails with is a complaint, and `fallback` the answer.
pub fn guard<T>(shared: &Shared, fallback: T, call: impl FnOnce() -> Result<T, String>) -> T {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => value,
        Ok(Err(sentence)) => {
            shared.complain(sentence);
            fallback
        }
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            let text = text.unwrap_or_else(|| "no message".to_owned());
            shared.complain(format!("the device for tests has a bug: {text}"));
            fallback
        }
    }
}
