//! Stock llama.cpp's answer to a run, computed once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use super::{Logits, Placement, RunSpec, assert_sound, run};

/// The logits of `spec` on llama.cpp's own CPU backend.
pub fn stock(spec: &RunSpec) -> Arc<Logits> {
    type Answers = Mutex<HashMap<RunSpec, Arc<OnceLock<Arc<Logits>>>>>;
    static ANSWERS: OnceLock<Answers> = OnceLock::new();
    let answers = ANSWERS.get_or_init(Mutex::default);
    // The map is locked for a moment only: two tests compute at the same time.
    let slot = Arc::clone(answers.lock().unwrap().entry(spec.clone()).or_default());
    Arc::clone(slot.get_or_init(|| {
        let logits = run(Placement::Stock, spec)
            .unwrap_or_else(|failure| panic!("stock llama.cpp failed: {failure:?} in {spec:?}"));
        assert_sound(&logits, spec);
        Arc::new(logits)
    }))
}
