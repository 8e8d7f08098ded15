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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::device::rehearsal::Notebook;
    use crate::device::{Budget, Cold, Faults, PagingConfig, Storage};

    #[test]
    fn a_panic_becomes_a_sentence_and_later_slots_refuse() {
        let model = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/demo/stories-q8_0.gguf");
        let config = PagingConfig {
            model,
            weights: true,
            kv: false,
            budget: Budget::ModelShare(1.0),
            prefetch: true,
            prefetch_threads: 1,
            prefetch_depth: 1,
            pinned_layers: Vec::new(),
            kv_page_tokens: 256,
            spill_folder: None,
            storage: Storage::Auto,
            lock: false,
            lazy_bytes_min: None,
            cold: Cold::Stream,
            inner: None,
            resident_layers_max: None,
            poison: false,
            faults: Faults::default(),
        };
        let shared = Shared::new(config, Notebook::default()).unwrap();
        assert_eq!(guard(&shared, 0, |_| Ok(7)), 7);
        let failed = guard(&shared, 0, |_| Err(Error::Failed("no luck".to_owned())));
        assert_eq!(failed, 0);
        assert_eq!(shared.take_error().unwrap().to_string(), "no luck");
        assert_eq!(guard(&shared, 0, |_| panic!("out of luck")), 0);
        assert_eq!(
            guard(&shared, 0, |_| Ok(7)),
            0,
            "nothing is trusted any more"
        );
        let error = shared.take_error().unwrap();
        assert_eq!(error.exit_code(), 70);
        assert!(error.to_string().contains("out of luck"), "{error}");
    }
}
