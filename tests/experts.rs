//! Models of experts move single experts: those that a token names and that are absent.

use rpaged::device::report::Reason;
use rpaged::device::{Budget, Faults, PagedDevice, PagingConfig, Report, Storage};

use crate::equivalence::{AMPLE_BYTES, Paging, budgets, config};
use crate::harness::{
    Entry, LlamaContext, LlamaModel, Placement, RunSpec, Step, assert_same, run_paged, run_steps,
    stock,
};
use crate::models::{Model, prompt};

/// An expert of one tensor of the model: 64 times 128 values in blocks of 34 bytes for 32
/// of them.
const EXPERT_BYTES: u64 = 64 * 128 / 32 * 34;
/// Layers, tensors of experts in each, experts that a token uses of each.
const NAMED: u64 = 4 * 3 * 2;
/// All experts of all tensors.
const EXPERTS: u64 = 4 * 3 * 8;

/// Nothing is fetched ahead: what moves, moves because it was named or needed.
fn on_demand(budget_bytes: u64) -> PagingConfig {
    PagingConfig {
        prefetch: false,
        ..config(Model::Experts, Paging::Weights, Budget::Bytes(budget_bytes))
    }
}

/// The budget that leaves room for `experts` of the model's, give or take some.
fn budget_for(spec: &RunSpec, experts: u64) -> u64 {
    let (_, everything) = budgets(spec, Paging::Weights);
    everything - (EXPERTS - experts) * EXPERT_BYTES
}

fn decode(context: &mut LlamaContext<'_>, token: i32, position: i32) {
    let entry = Entry {
        token,
        position,
        sequence: 0,
    };
    context.decode(&[entry]).unwrap();
}

/// Runs `check` with a context on a device.
fn with_context(
    config: PagingConfig,
    spec: &RunSpec,
    check: impl FnOnce(&PagedDevice, &mut LlamaContext<'_>),
) {
    let device = PagedDevice::new(config).unwrap();
    let model = LlamaModel::load(&spec.model.file().path, Placement::Paged(&device)).unwrap();
    let mut context = LlamaContext::new(&model, spec).unwrap();
    check(&device, &mut context);
}

/// What happened between two reports: hits, misses, bytes in.
fn between(before: &Report, after: &Report) -> (u64, u64, u64) {
    (
        after.expert_hits - before.expert_hits,
        after.expert_misses - before.expert_misses,
        after.bytes_in() - before.bytes_in(),
    )
}

#[test]
fn a_token_moves_the_experts_that_it_names_and_that_are_absent() {
    let spec = RunSpec::new(Model::Experts, 5, 0);
    for experts in [16, 40, 64, 90] {
        with_context(
            on_demand(budget_for(&spec, experts)),
            &spec,
            |device, context| {
                let steps = [Step::feed(0, 0, &prompt(1, 5))];
                run_steps(context, &steps).unwrap();
                let mut before = device.report();
                assert_eq!(before.ring_bytes, 0, "{before:?}");
                let mut misses_sum = 0;
                for position in 5..40 {
                    decode(context, position * 7 % 100, position);
                    let now = device.report();
                    let (hits, misses, bytes) = between(&before, &now);
                    assert_eq!(hits + misses, NAMED);
                    assert_eq!(bytes, misses * EXPERT_BYTES);
                    assert_eq!(now.pass_bytes, bytes);
                    assert!(now.arena_bytes_used <= now.budget_bytes, "{now:?}");
                    misses_sum += misses;
                    before = now;
                }
                assert!(misses_sum > 0, "{experts} experts: {before:?}");
                assert!(misses_sum < 35 * NAMED, "{experts} experts: {before:?}");
            },
        );
    }
}

#[test]
fn experts_that_tokens_name_again_and_again_stay_over_a_long_prompt() {
    let spec = RunSpec {
        ubatch: 16,
        ..RunSpec::new(Model::Experts, 5, 0)
    };
    with_context(
        on_demand(budget_for(&spec, 64)),
        &spec,
        |device, context| {
            // The same token at the same place names the same experts.
            let again = |context: &mut LlamaContext<'_>| {
                decode(context, 17, 0);
                assert!(context.remove(0, 0, -1));
            };
            (0..3).for_each(|_| again(context));
            let before = device.report();
            again(context);
            let settled = device.report();
            assert_eq!(between(&before, &settled), (NAMED, 0, 0));
            // Passes over all experts, of which there is not room for all.
            run_steps(context, &[Step::feed(0, 0, &prompt(3, 64))]).unwrap();
            let scanned = device.report();
            let (hits, misses, bytes) = between(&settled, &scanned);
            assert_eq!(hits + misses, 4 * EXPERTS, "four ubatches");
            // Half of them stay, and what a step has named is among those from the start.
            assert!(hits >= NAMED + 3 * EXPERTS / 2 && misses > 0, "{hits} hits");
            assert_eq!(bytes, misses * EXPERT_BYTES);
            assert!(context.remove(0, 0, -1));
            again(context);
            assert_eq!(between(&scanned, &device.report()), (NAMED, 0, 0));
        },
    );
}

#[test]
fn the_cache_follows_the_budget_between_tokens() {
    let spec = RunSpec::new(Model::Experts, 9, 12);
    let expected = stock(&spec);
    let (minimum, everything) = budgets(&spec, Paging::Both);
    for prefetch in [true, false] {
        let config = PagingConfig {
            prefetch,
            ..config(Model::Experts, Paging::Both, Budget::Bytes(AMPLE_BYTES))
        };
        with_context(config, &spec, |device, context| {
            let mut rows = run_steps(context, &spec.steps[..1]).unwrap();
            for position in 9i32..21 {
                let part = u64::from(position.unsigned_abs()) * 37 % 101;
                let budget = minimum + (everything - minimum) * part / 100;
                device.set_budget(budget, Reason::Budget).unwrap();
                let report = device.report();
                assert!(report.arena_bytes_used <= budget, "{report:?}");
                let token = crate::harness::likeliest(rows.last().unwrap());
                let entry = Entry {
                    token,
                    position,
                    sequence: 0,
                };
                rows.extend(context.decode(&[entry]).unwrap());
                let report = device.report();
                assert!(report.arena_bytes_used <= budget, "{report:?}");
            }
            assert_same(&expected, &rows, &"a budget that changes");
            // With room for everything, all of it comes back.
            device.set_budget(AMPLE_BYTES, Reason::Budget).unwrap();
            let report = device.report();
            assert_eq!(report.streamed_bytes, 0, "{report:?}");
            assert!(report.is_all_resident());
        });
    }
}

#[test]
fn experts_read_past_the_page_cache_are_the_same() {
    for ubatch in [1, 7, 512] {
        let spec = RunSpec {
            ubatch,
            ..RunSpec::new(Model::Experts, 24, 6)
        };
        let (minimum, everything) = budgets(&spec, Paging::Both);
        for part in [0, 20, 50, 80] {
            for (prefetch, seed) in [(true, None), (false, None), (true, Some(part))] {
                // Blocks are larger than what tensors are aligned to otherwise.
                let budget = minimum + (everything - minimum) * part / 100 + (1 << 19);
                let config = PagingConfig {
                    prefetch,
                    storage: Storage::Direct,
                    faults: Faults {
                        delay_seed: seed,
                        delay_us_max: 100,
                        ..Faults::default()
                    },
                    ..config(Model::Experts, Paging::Both, Budget::Bytes(budget))
                };
                let found = run_paged(&config, &spec).unwrap();
                assert_same(&stock(&spec), &found, &config);
            }
        }
    }
}

#[test]
fn an_expert_that_cannot_be_read_is_a_sentence_and_the_next_try_works() {
    let spec = RunSpec::new(Model::Experts, 5, 0);
    let budget = budget_for(&spec, 32);
    let expected = {
        let spec = RunSpec::new(Model::Experts, 5, 3);
        stock(&spec)
    };
    let mut failures = 0;
    for request in 0..40 {
        let config = PagingConfig {
            faults: Faults {
                fail_request: Some(request),
                ..Faults::default()
            },
            ..on_demand(budget)
        };
        with_context(config, &spec, |device, context| {
            let steps = &RunSpec::new(Model::Experts, 5, 3).steps;
            if run_steps(context, steps).is_ok() {
                return;
            }
            failures += 1;
            let sentence = device.take_error().unwrap().to_string();
            assert!(!sentence.is_empty());
            context.clear(true);
            let rows = run_steps(context, steps).unwrap();
            assert_same(&expected, &rows, &sentence);
        });
    }
    assert!(failures > 0);
}
