//! A GPU that CUDA or Vulkan knows computes, in its own memory: the bits are those of stock
//! llama.cpp on the same GPU.
//!
//! Where there is none, each test says so and passes. `RPAGED_TEST_DEVICE` names another than
//! the first. Mesa's lavapipe, a driver that computes on the processor, is one when
//! `GGML_VK_VISIBLE_DEVICES` names it; see `.ci/vulkan`. With Vulkan, mixtures of experts are
//! left out: ggml-vulkan itself crashes on lavapipe with them. See `.ci/cuda` for CUDA.
#![allow(unsafe_code, reason = "asks ggml for its devices")]

mod matrix;
mod settings;

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, OnceLock};

use ggml_sys as sys;
use rpaged::device::{Budget, PagingConfig};
use rpaged::ggml::InnerDevice;

use crate::equivalence::case::{AMPLE_BYTES, Case, Paging, Size, budgets_under, config};
use crate::harness::{Logits, Placement, RunSpec, assert_sound, difference, run, run_paged};
use crate::models::Model;

/// Those that ggml-vulkan computes on any driver.
const OF_VULKAN: [Model; 8] = [
    Model::Dense,
    Model::DenseF16,
    Model::DenseQ4,
    Model::DenseQ4K,
    Model::Tied,
    Model::SlidingWindow,
    Model::Biases,
    Model::Tiny,
];

/// The models that are tested with.
fn models(device: InnerDevice) -> Vec<Model> {
    match of_vulkan(device) {
        true => OF_VULKAN.into(),
        false => Model::ALL.into(),
    }
}

fn of_vulkan(device: InnerDevice) -> bool {
    device.name().starts_with("Vulkan")
}

/// The GPU; None, and a reason on standard error, without one.
fn gpu() -> Option<InnerDevice> {
    let named = std::env::var("RPAGED_TEST_DEVICE").ok();
    let names = named.map_or(vec!["CUDA0".into(), "Vulkan0".into()], |name| vec![name]);
    let device = names.iter().find_map(|name| {
        let name = CString::new(name.as_str()).unwrap();
        // SAFETY:
        // - the name ends with NUL.
        let raw = unsafe { sys::ggml_backend_dev_by_name(name.as_ptr()) };
        // SAFETY:
        // - null, or one of ggml's devices, which live as long as the process.
        unsafe { InnerDevice::from_raw(raw) }
    });
    if device.is_none() {
        eprintln!("skipped: there is no {} here", names.join(" or "));
    }
    device
}

/// The logits of `spec` by stock llama.cpp on `device`, computed once.
fn stock(device: InnerDevice, spec: &RunSpec) -> Arc<Logits> {
    type Answers = Mutex<HashMap<RunSpec, Arc<OnceLock<Arc<Logits>>>>>;
    static ANSWERS: OnceLock<Answers> = OnceLock::new();
    let answers = ANSWERS.get_or_init(Mutex::default);
    let slot = Arc::clone(answers.lock().unwrap().entry(spec.clone()).or_default());
    Arc::clone(slot.get_or_init(|| {
        let logits = run(Placement::Device(device), spec)
            .unwrap_or_else(|failure| panic!("stock llama.cpp failed: {failure:?} in {spec:?}"));
        assert_sound(&logits, spec);
        Arc::new(logits)
    }))
}

/// The smallest budget for `spec` on `device`, and the one that keeps everything, in bytes.
fn budgets(device: InnerDevice, spec: &RunSpec, paging: Paging) -> (u64, u64) {
    type Known = Mutex<HashMap<(RunSpec, Paging), (u64, u64)>>;
    static KNOWN: OnceLock<Known> = OnceLock::new();
    let known = KNOWN.get_or_init(Mutex::default);
    let key = (spec.clone(), paging);
    if let Some(found) = known.lock().unwrap().get(&key) {
        return *found;
    }
    let ample = on(
        device,
        config(spec.model, paging, Budget::Bytes(AMPLE_BYTES)),
    );
    let found = budgets_under(&ample, spec);
    known.lock().unwrap().insert(key, found);
    found
}

/// The same with `device` below the paging.
fn on(device: InnerDevice, config: PagingConfig) -> PagingConfig {
    PagingConfig {
        inner: Some(device),
        ..config
    }
}

/// How the paged device is set up for `case` on `device`.
fn config_of(device: InnerDevice, case: &Case) -> PagingConfig {
    let (minimum, everything) = budgets(device, &case.spec, case.paging);
    let budget = match case.size {
        Size::Smallest => minimum,
        Size::Percent(percent) => minimum + (everything - minimum) * percent / 100,
        Size::Above => AMPLE_BYTES,
    };
    PagingConfig {
        prefetch: case.prefetch,
        prefetch_threads: case.workers,
        ..on(
            device,
            config(case.spec.model, case.paging, Budget::Bytes(budget)),
        )
    }
}

/// Runs all cases and panics with those that went wrong, the first few in full.
fn check_all(device: InnerDevice, cases: impl IntoIterator<Item = Case>) {
    let (mut count, mut wrong) = (0, Vec::new());
    for case in cases {
        count += 1;
        let expected = stock(device, &case.spec);
        let sentence = match run_paged(&config_of(device, &case), &case.spec) {
            Ok(found) => difference(&expected, &found),
            Err(sentence) => Some(sentence),
        };
        if let Some(sentence) = sentence {
            let (spec, size) = (&case.spec, case.size);
            wrong.push(format!(
                "{sentence}\n    in {:?} ubatch {} flash {:?} cache {:?} paging {:?} budget \
                 {size:?} prefetch {}",
                spec.model, spec.ubatch, spec.flash, spec.cache, case.paging, case.prefetch
            ));
        }
    }
    let shown = wrong[..wrong.len().min(8)].join("\n  ");
    assert!(
        wrong.is_empty(),
        "{} of {count} cases are wrong:\n  {shown}",
        wrong.len()
    );
}
