//! Copies that are late change nothing; copies that fail or are refused become a
//! sentence, and the process goes on.

use rpaged::device::{Budget, Faults, PagedDevice, PagingConfig};

use crate::equivalence::{Paging, config, minimum_budget};
use crate::harness::{
    Failure, LlamaContext, LlamaModel, Logits, Placement, RunSpec, assert_same, difference, run,
    run_paged, run_steps, stock,
};
use crate::models::Model;
use crate::models::random::Random;

/// A few graphs of the three-layer model: two of the prompt, then one by one.
fn tiny() -> RunSpec {
    RunSpec {
        ubatch: 4,
        ..RunSpec::new(Model::Tiny, 7, 3)
    }
}

/// The smallest legal device for `spec`: everything that can be late is needed at once.
fn smallest(spec: &RunSpec, paging: Paging, faults: Faults) -> PagingConfig {
    let budget = Budget::Bytes(minimum_budget(spec, paging));
    PagingConfig {
        faults,
        ..config(spec.model, paging, budget)
    }
}

/// Runs with these seeds' delays under the smallest budget and one above it.
fn check_delays(paging: Paging, prefetch: bool, seeds: std::ops::Range<u64>) {
    let spec = tiny();
    let expected = stock(&spec);
    let minimum = minimum_budget(&spec, paging);
    for seed in seeds {
        let mut random = Random::new(seed);
        let delay_us_max = [5, 40, 150][random.below(3) as usize];
        let faults = Faults {
            delay_seed: Some(seed),
            delay_us_max,
            ..Faults::default()
        };
        let config = PagingConfig {
            prefetch,
            prefetch_threads: 1 + random.below(3) as usize,
            budget: Budget::Bytes(minimum + u64::from(random.below(2)) * (minimum / 4)),
            ..smallest(&spec, paging, faults)
        };
        let found = run_paged(&config, &spec).unwrap();
        assert_same(&expected, &found, &config);
    }
}

#[test]
fn late_copies_of_weights_change_nothing() {
    check_delays(Paging::Weights, true, 0..700);
}

#[test]
fn late_copies_of_weights_and_states_change_nothing() {
    check_delays(Paging::Both, true, 10_000..10_700);
}

#[test]
fn late_copies_of_states_change_nothing() {
    check_delays(Paging::States, true, 20_000..20_700);
}

#[test]
fn late_copies_on_demand_change_nothing() {
    check_delays(Paging::Both, false, 30_000..30_700);
}

#[test]
fn late_copies_change_nothing_in_recurrent_and_windowed_models() {
    for model in [
        Model::Recurrent,
        Model::Hybrid,
        Model::SlidingWindow,
        Model::Experts,
    ] {
        let spec = RunSpec {
            ubatch: 4,
            ..RunSpec::new(model, 7, 3)
        };
        for seed in 0..25 {
            let faults = Faults {
                delay_seed: Some(seed),
                delay_us_max: 100,
                ..Faults::default()
            };
            let config = smallest(&spec, Paging::Both, faults);
            let found = run_paged(&config, &spec).unwrap();
            assert_same(&stock(&spec), &found, &config);
        }
    }
}

/// Loads, makes a context and runs; on failure, the sentence that the device kept.
fn attempt(device: &PagedDevice, spec: &RunSpec) -> Result<Logits, (Failure, String)> {
    run(Placement::Paged(device), spec).map_err(|failure| {
        let error = device
            .take_error()
            .unwrap_or_else(|| panic!("{failure:?} without a reason"));
        (failure, error.to_string())
    })
}

/// The n-th copy goes wrong, for each n until a run has fewer copies: every failure is a
/// sentence, no result is wrong, and the run after it on the same device is right.
fn check_faults(paging: Paging, prefetch: bool, faults_of: fn(u64) -> Faults) {
    let spec = tiny();
    let expected = stock(&spec);
    let (mut in_decode, mut without_failure) = (0, 0);
    for request in 0..1000 {
        let config = PagingConfig {
            prefetch,
            ..smallest(&spec, paging, faults_of(request))
        };
        let device = PagedDevice::new(config).unwrap();
        // The fault strikes once: in the first run, in the second, or later.
        let outcomes = [(); 3].map(|()| attempt(&device, &spec));
        let mut failed = 0;
        for outcome in &outcomes {
            match outcome {
                Ok(found) => assert_same(&expected, found, &request),
                Err((failure, sentence)) => {
                    failed += 1;
                    in_decode += usize::from(matches!(failure, Failure::Decode(..-1)));
                    assert!(sentence.contains("told to"), "{sentence}");
                    assert!(!sentence.ends_with('.'), "{sentence}");
                }
            }
        }
        assert!(
            failed <= 1,
            "fault {request} struck {failed} times: {outcomes:?}"
        );
        // A copy for a pass that never came may fail unnoticed; three in a row mean that
        // the fault has come to the third run.
        let struck_early = outcomes[..2].iter().any(Result::is_err);
        without_failure = if struck_early { 0 } else { without_failure + 1 };
        if without_failure == 3 {
            break;
        }
    }
    assert_eq!(without_failure, 3, "there is no end of copies");
    assert!(in_decode > 10, "only {in_decode} failures hit a decode");
}

fn fail(request: u64) -> Faults {
    Faults {
        fail_request: Some(request),
        ..Faults::default()
    }
}

fn refuse(request: u64) -> Faults {
    Faults {
        refuse_request: Some(request),
        ..Faults::default()
    }
}

#[test]
fn failed_copy_of_weights_is_an_error_and_the_next_run_is_right() {
    check_faults(Paging::Weights, true, fail);
    check_faults(Paging::Weights, false, fail);
}

#[test]
fn failed_copy_of_weights_or_states_is_an_error_and_the_next_run_is_right() {
    check_faults(Paging::Both, true, fail);
    check_faults(Paging::Both, false, fail);
}

#[test]
fn refused_copy_of_weights_is_an_error_and_the_next_run_is_right() {
    check_faults(Paging::Weights, true, refuse);
    check_faults(Paging::Weights, false, refuse);
}

#[test]
fn refused_copy_of_weights_or_states_is_an_error_and_the_next_run_is_right() {
    check_faults(Paging::Both, true, refuse);
    check_faults(Paging::Both, false, refuse);
}

#[test]
fn context_cleared_after_a_failed_copy_goes_on_or_says_that_states_are_lost() {
    let spec = tiny();
    for paging in [Paging::Weights, Paging::Both] {
        let mut went_on = 0;
        for request in 0..40 {
            let device = PagedDevice::new(smallest(&spec, paging, fail(request))).unwrap();
            let placement = Placement::Paged(&device);
            let path = &spec.model.file().path;
            let Ok(model) = LlamaModel::load(path, placement) else {
                continue;
            };
            let Ok(mut context) = LlamaContext::new(&model, &spec) else {
                continue;
            };
            if run_steps(&mut context, &spec.steps).is_ok() {
                continue;
            }
            device.take_error().expect("a failed decode is recorded");
            context.clear(true);
            match run_steps(&mut context, &spec.steps) {
                Ok(found) => {
                    went_on += 1;
                    let wrong = difference(&stock(&spec), &found);
                    assert_eq!(wrong, None, "{paging:?}, request {request}");
                }
                Err(failure) => {
                    let error = device.take_error().expect("a failed decode is recorded");
                    assert_eq!(paging, Paging::Both, "{failure:?}: {error}");
                }
            }
        }
        assert!(went_on > 0, "no run met the fault in a decode");
    }
}
