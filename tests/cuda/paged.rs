//! Paged models on a device over the fake driver: engine, link and driver together.

use std::sync::Arc;

use async_device::{AsyncDevice, Options};
use rpaged::device::{Budget, PagingConfig};

use super::driver::Driver;
use super::platform::Card;
use crate::equivalence::case::{AMPLE_BYTES, Paging, budgets_under, config};
use crate::harness::{Flash, RunSpec, difference, inner_of, run_paged, stock};
use crate::models::Model;

fn options() -> Options {
    Options {
        padded: true,
        ..Options::default()
    }
}

/// A device over the driver.
pub fn card() -> AsyncDevice {
    AsyncDevice::over(options(), Arc::new(Card::new())).unwrap()
}

/// How a model is paged there.
pub fn config_on(on: &AsyncDevice, spec: &RunSpec, paging: Paging, budget: u64) -> PagingConfig {
    PagingConfig {
        inner: Some(inner_of(on)),
        ..config(spec.model, paging, Budget::Bytes(budget))
    }
}

fn spec_of(model: Model, flash: Flash) -> RunSpec {
    RunSpec {
        ubatch: 4,
        flash,
        ..RunSpec::new(model, 9, 3)
    }
}

#[test]
#[ignore = "run by a test of the module above"]
fn models() {
    if std::env::var_os(super::INSIDE).is_none() {
        return;
    }
    let driver = Driver::load();
    for (model, flash) in [
        (Model::Tiny, Flash::On),
        (Model::Experts, Flash::Off),
        (Model::SlidingWindow, Flash::On),
        (Model::Hybrid, Flash::Off),
    ] {
        let spec = spec_of(model, flash);
        let on = card();
        let ample = config_on(&on, &spec, Paging::Both, AMPLE_BYTES);
        let (minimum, everything) = budgets_under(&ample, &spec);
        for budget in [minimum, minimum + (everything - minimum) / 3, AMPLE_BYTES] {
            let config = config_on(&on, &spec, Paging::Both, budget);
            let before = driver.counted();
            let found = run_paged(&config, &spec).unwrap();
            assert_eq!(
                difference(&stock(&spec), &found),
                None,
                "{model:?} {budget}"
            );
            let after = driver.counted();
            let copies = after.pinned + after.pageable - before.pinned - before.pageable;
            // What is resident crosses no link.
            let is_streamed = budget != AMPLE_BYTES;
            assert_eq!(copies > 0, is_streamed, "{model:?} {budget}: {copies}");
        }
        assert_eq!(on.take_complaints(), [""; 0], "{model:?}");
        let left = on.counters();
        assert_eq!(left.buffers + left.streams + left.events, 0, "{left:?}");
    }
    let counts = driver.counted();
    let is_pinned = std::env::var("FAKE_CUDA_PINNED").is_err();
    assert_eq!(counts.pinned > 0, is_pinned, "{counts:?}");
    if is_pinned {
        assert_eq!(counts.pageable, 0, "{counts:?}");
    }
    assert_eq!(driver.violations(), "");
}

#[test]
#[ignore = "run by a test of the module above"]
fn lost() {
    if std::env::var_os(super::INSIDE).is_none() {
        return;
    }
    let spec = spec_of(Model::Tiny, Flash::On);
    // Asked of another device: this one is lost with its first copies.
    let other = AsyncDevice::new(options()).unwrap();
    let ample = config_on(&other, &spec, Paging::Weights, AMPLE_BYTES);
    let (minimum, _) = budgets_under(&ample, &spec);
    let on = card();
    let config = config_on(&on, &spec, Paging::Weights, minimum);
    let sentence = run_paged(&config, &spec).unwrap_err();
    assert!(sentence.contains("CUDA0 was lost: '"), "{sentence}");
    assert_eq!(sentence.matches("was lost").count(), 1, "{sentence}");
}
