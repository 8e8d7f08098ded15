//! Weights without room in the device's memory, computed by the processor in decode: the
//! device for tests computes as the processor does, so the bits are stock's.

use std::sync::atomic::{AtomicI64, Ordering};

use rpaged::device::report::Reason;
use rpaged::device::{Cold, Faults, PagedDevice, PagingConfig, Report};
use rpaged::planner::cold::Reach;

use super::asynchronous::{FLAVOURS, Run, complaint, device, pick};
use super::case::{Paging, Size};
use crate::harness::{
    Failure, LlamaContext, LlamaModel, Logits, Placement, RunSpec, Step, assert_same, likeliest,
    run, run_steps, stock,
};
use crate::models::random::Random;
use crate::models::{Model, prompt};

/// Gated and not, with biases and without, with norms after the block, in all formats, in
/// several files, with layers of different kinds.
const MODELS: [Model; 11] = [
    Model::Dense,
    Model::DenseF16,
    Model::DenseQ4,
    Model::DenseQ4K,
    Model::Tied,
    Model::Split,
    Model::SlidingWindow,
    Model::Biases,
    Model::FusedAttention,
    Model::Hybrid,
    Model::ShortConvolution,
];

const PROMPT_TOKENS: usize = 20;

/// A prompt, three tokens, five at once, two tokens.
fn spec(model: Model) -> RunSpec {
    let steps = vec![
        Step::feed(0, 0, &prompt(7, PROMPT_TOKENS)),
        Step::generate(0, 20, 3),
        Step::feed(0, 23, &prompt(8, 5)),
        Step::generate(0, 28, 2),
    ];
    RunSpec {
        steps,
        ..RunSpec::new(model, PROMPT_TOKENS, 0)
    }
}

/// A device that says after each step how it stands, and what it did between.
struct Watched {
    logits: Logits,
    reports: Vec<Report>,
    complaint: Option<String>,
}

impl Watched {
    /// Runs the steps one by one; `before` is told each step's number.
    fn new(run: &Run, cold: Cold, mut before: impl FnMut(usize, &PagedDevice)) -> Self {
        let on = device(run.flavour, run.seed);
        let config = PagingConfig {
            cold,
            faults: Faults::default(),
            ..run.config(&on, run.budget_bytes())
        };
        let paged = PagedDevice::new(config).unwrap();
        let loaded = LlamaModel::of(&run.spec, Placement::Paged(&paged)).unwrap();
        let mut context = LlamaContext::new(&loaded, &run.spec).unwrap();
        let (mut logits, mut reports) = (Logits::new(), Vec::new());
        let steps = run.spec.steps.iter().flat_map(singly);
        for (number, step) in steps.enumerate() {
            before(number, &paged);
            let step = match step {
                Step::Generate { position, .. } => {
                    Step::feed(0, position, &[likeliest(logits.last().unwrap())])
                }
                other => other,
            };
            let outcome = run_steps(&mut context, &[step]);
            let rows = outcome.unwrap_or_else(|failure| {
                let (error, wrong) = (paged.take_error(), on.take_complaints());
                panic!("{failure:?}: {error:?}, {wrong:#?} in {run:?}")
            });
            logits.extend(rows);
            reports.push(paged.report());
        }
        drop(context);
        drop(loaded);
        drop(paged);
        Self {
            logits,
            reports,
            complaint: complaint(&on),
        }
    }

    fn check(&self, run: &Run) {
        assert_same(&stock(&run.spec), &self.logits, run);
        assert_eq!(self.complaint, None, "{run:?}");
    }

    fn last(&self) -> &Report {
        self.reports.last().unwrap()
    }
}

/// Experts are copied whole, and a token reads a few of them.
#[test]
fn experts() {
    check_model(Model::Experts, 1);
}

/// Each generated token as a step of its own.
fn singly(step: &Step) -> Vec<Step> {
    match step {
        Step::Generate {
            sequence,
            position,
            count,
        } => (*position..position + count)
            .map(|position| Step::generate(*sequence, position, 1))
            .collect(),
        other => vec![other.clone()],
    }
}

fn run_of(model: Model, seed: u64, size: Size) -> Run {
    Run {
        spec: spec(model),
        flavour: pick([1, 2, 3, 4, 0], seed),
        seed,
        paging: pick([Paging::Both, Paging::Weights], seed),
        size,
        prefetch: !seed.is_multiple_of(4),
    }
}

/// Cold weights are computed by the processor, and only in graphs of few tokens; what it
/// computes with does not cross the link.
fn check_model(model: Model, first_seed: u64) {
    let sizes = [Size::Smallest, Size::Percent(30), Size::Percent(70)];
    let mut computed = 0;
    for (seed, size) in (first_seed..).zip(sizes) {
        for share in [1.0, 0.5] {
            let run = run_of(model, seed, size);
            let found = Watched::new(&run, Cold::Cpu, |_, paged| paged.set_host_share(share));
            found.check(&run);
            assert_eq!(found.reports[0].host_bytes, 0, "in prefill: {run:?}");
            let last = found.last();
            assert!(last.host_bytes >= 6 * last.host_pass_bytes, "{last:?}");
            computed += last.host_bytes;
            let streamed = Watched::new(&run, Cold::Stream, |_, _| {});
            streamed.check(&run);
            assert_eq!(streamed.last().host_bytes, 0, "{run:?}");
            let (less, more) = (last.traffic.link_bytes, streamed.last().traffic.link_bytes);
            // A device without streams has no link to speak of: files are read each time.
            let saved = last.host_pass_bytes > 0 && streamed.last().pass_bytes > 0;
            let saved = saved && FLAVOURS[run.flavour].asynchronous;
            assert!(!saved || less < more, "{less} of {more} bytes in {run:?}");
            if size == Size::Smallest {
                assert!(last.host_pass_bytes > 0, "nothing computed in {run:?}");
                assert!(last.pass_bytes < streamed.last().pass_bytes, "{run:?}");
            }
        }
    }
    assert!(computed > 0, "{model:?}");
}

/// Where all that the processor may not compute with has room, nothing crosses the link in
/// decode: the best static placement is among the plans.
#[test]
fn what_the_processor_cannot_compute_with_stays_before_the_rest() {
    for (seed, percent) in (1..).zip([65, 75, 85, 90]) {
        let run = run_of(Model::Dense, seed, Size::Percent(percent));
        let found = Watched::new(&run, Cold::Cpu, |_, _| {});
        found.check(&run);
        let last = found.last();
        assert!(last.host_pass_bytes > 0, "all fits: {run:?}");
        assert_eq!(last.pass_bytes, 0, "{last:?} in {run:?}");
    }
}

/// The processor goes on with attention and the output where it is told to: the same bits,
/// and less crosses the link; nothing does where only these are cold.
#[test]
fn attention_and_output_after_feed_forward_blocks() {
    let sizes = [Size::Smallest, Size::Percent(30)];
    let models = MODELS.iter().chain(&[Model::Experts]);
    let mut more = 0;
    for (seed, model) in (1..).zip(models) {
        for (share, size) in [(1.0, sizes[0]), (0.9, sizes[1])] {
            let run = run_of(*model, seed, size);
            let reached = |reach: Reach| {
                let found = Watched::new(&run, Cold::Cpu, |_, paged| {
                    paged.set_host_reach(reach);
                    paged.set_host_share(share);
                });
                found.check(&run);
                found
            };
            let (all, blocks) = (reached(Reach::All), reached(Reach::FeedForward));
            let (all, blocks) = (all.last(), blocks.last());
            if size == Size::Smallest {
                assert!(all.host_pass_bytes > blocks.host_pass_bytes, "{run:?}");
                assert!(all.pass_bytes < blocks.pass_bytes, "{run:?}");
            }
            more += u32::from(share < 1.0 && all.host_pass_bytes > blocks.host_pass_bytes);
            let only_weights = run.paging == Paging::Weights && *model == Model::Dense;
            assert!(
                !only_weights || share < 1.0 || all.pass_bytes == 0,
                "{all:?} in {run:?}"
            );
        }
    }
    assert!(more > 0, "a part of attention is never computed with");
}

#[test]
fn gated_blocks() {
    for (seed, model) in (1..).step_by(3).zip(&MODELS[..3]) {
        check_model(*model, seed);
    }
}

#[test]
fn wide_tied_and_split_models() {
    for (seed, model) in (2..).step_by(3).zip(&MODELS[3..6]) {
        check_model(*model, seed);
    }
}

#[test]
fn norms_behind_biases_and_blocks_without_gates() {
    for (seed, model) in (3..).step_by(3).zip(&MODELS[6..9]) {
        check_model(*model, seed);
    }
}

#[test]
fn layers_of_different_kinds() {
    for (seed, model) in (4..).step_by(3).zip(&MODELS[9..]) {
        check_model(*model, seed);
    }
}

/// All of the delays and orders that the flavours have, many times.
#[test]
fn many_seeds_of_delays() {
    for seed in 1..=16 {
        let model = pick([Model::Dense, Model::Biases, Model::SlidingWindow], seed);
        let run = Run {
            flavour: usize::try_from(seed).unwrap() % FLAVOURS.len(),
            ..run_of(model, seed, Size::Smallest)
        };
        let found = Watched::new(&run, Cold::Cpu, |_, paged| {
            paged.set_host_reach(pick(
                [Reach::FeedForward, Reach::FeedForward, Reach::All],
                seed,
            ));
        });
        found.check(&run);
        assert!(found.last().host_bytes > 0, "{run:?}");
    }
}

/// The share changes before each token.
#[test]
fn share_that_changes_between_tokens_changes_nothing() {
    for (seed, model) in (1..).zip(MODELS) {
        let run = run_of(model, seed, Size::Smallest);
        let mut shares = [1.0, 0.0, 0.3, 1.0, 0.7, 0.0, 0.5].into_iter().cycle();
        let found = Watched::new(&run, Cold::Auto, |_, paged| {
            paged.set_host_reach(pick([Reach::All, Reach::FeedForward], seed));
            paged.set_host_share(shares.next().unwrap());
        });
        found.check(&run);
        let parts = found.reports.iter().map(|report| report.host_pass_bytes);
        let parts: Vec<u64> = parts.collect();
        assert_eq!((parts[1], parts[5]), (0, 0), "{parts:?} in {run:?}");
        assert!(parts[2] <= parts[3] && parts[3] > 0, "{parts:?} in {run:?}");
    }
}

/// Budgets that grow and shrink while there are copies: what becomes resident has none any
/// more, and what leaves gets one.
#[test]
fn budgets_that_change_between_tokens_change_nothing() {
    for (seed, model) in (1..).zip(MODELS) {
        let run = run_of(model, seed, Size::Percent(30));
        let (minimum, everything) = run.budgets();
        let mut random = Random::new(seed);
        let mut copies = Vec::new();
        let found = Watched::new(&run, Cold::Cpu, |number, paged| {
            paged.set_host_reach(pick([Reach::FeedForward, Reach::All], seed));
            copies.push(paged.report().host_copy_bytes);
            let part = match number {
                0..3 => u64::from(random.below(400)),
                // Everything is resident, then hardly anything.
                3 => 1000,
                _ => 0,
            };
            let budget = minimum + (everything - minimum) * part / 1000;
            paged.set_budget(budget, Reason::Pressure).unwrap();
        });
        found.check(&run);
        let parts = found.reports.iter().map(|report| report.host_pass_bytes);
        let parts: Vec<u64> = parts.collect();
        assert!(copies[3] > 0, "{copies:?} in {run:?}");
        assert_eq!((parts[3], copies[4]), (0, 0), "{parts:?} in {run:?}");
        assert!(parts[6] > 0, "{parts:?} in {run:?}");
    }
}

/// Where memory has room for a part of the copies, that part is computed with.
#[test]
fn copies_take_no_more_memory_than_there_is() {
    for (seed, keep_bytes) in (1..).zip([0, 100 << 10, 200 << 10, 400 << 10]) {
        let run = run_of(Model::Dense, seed, Size::Smallest);
        let on = device(run.flavour, run.seed);
        let config = PagingConfig {
            cold: Cold::Cpu,
            faults: Faults {
                keep_bytes_max: Some(keep_bytes),
                ..Faults::default()
            },
            ..run.config(&on, run.budget_bytes())
        };
        let paged = PagedDevice::new(config).unwrap();
        // What attention of a layer takes is less than a feed-forward block.
        let reach = pick([Reach::All, Reach::FeedForward], seed);
        let least = if reach == Reach::All { 100 } else { 200 } << 10;
        paged.set_host_reach(reach);
        let found = crate::harness::run(Placement::Paged(&paged), &run.spec).unwrap();
        assert_same(&stock(&run.spec), &found, &run);
        let report = paged.report();
        assert_eq!(report.host_bytes > 0, keep_bytes >= least, "{report:?}");
        drop(paged);
        assert_eq!(complaint(&on), None, "{run:?}");
    }
}

/// Failed reads and copies are a sentence, and the next run is right.
#[test]
fn failed_copy_is_a_sentence_and_the_next_run_is_right() {
    let mut failed = 0;
    for number in 0..30 {
        let run_on = run_of(Model::Dense, number, Size::Smallest);
        let faults = match number % 3 {
            0 => Faults {
                fail_request: Some(number),
                ..Faults::default()
            },
            1 => Faults {
                failed_read: Some(number),
                ..Faults::default()
            },
            _ => Faults {
                refuse_request: Some(number),
                ..Faults::default()
            },
        };
        let on = device(run_on.flavour, number);
        let config = PagingConfig {
            cold: Cold::Cpu,
            faults,
            ..run_on.config(&on, run_on.budget_bytes())
        };
        let paged = PagedDevice::new(config).unwrap();
        let mut wrong = 0;
        for _ in 0..2 {
            match run(Placement::Paged(&paged), &run_on.spec) {
                Ok(found) => assert_same(&stock(&run_on.spec), &found, &run_on),
                Err(_) => {
                    wrong += 1;
                    assert!(paged.take_error().is_some(), "{faults:?} in {run_on:?}");
                }
            }
        }
        assert!(wrong <= 1, "{faults:?} struck twice in {run_on:?}");
        failed += wrong;
        drop(paged);
        assert_eq!(complaint(&on), None, "{run_on:?}");
    }
    assert!(failed > 10, "only {failed} faults struck a run");
}

/// A copy that failed to be filled is not computed with: the same tokens again are right.
#[test]
fn copies_whose_filling_failed_are_filled_again() {
    let mut failed = 0;
    for number in 0..40 {
        let run = Run {
            paging: Paging::Weights,
            ..run_of(Model::Dense, 2 * number + 1, Size::Smallest)
        };
        let on = device(run.flavour, run.seed);
        let config = PagingConfig {
            cold: Cold::Cpu,
            faults: Faults {
                fail_request: Some(number),
                ..Faults::default()
            },
            ..run.config(&on, run.budget_bytes())
        };
        let paged = PagedDevice::new(config).unwrap();
        let Ok(loaded) = LlamaModel::of(&run.spec, Placement::Paged(&paged)) else {
            continue;
        };
        // What leaves for the context's scratch memory has others placed anew.
        let Ok(mut context) = LlamaContext::new(&loaded, &run.spec) else {
            assert!(paged.take_error().is_some(), "{run:?}");
            continue;
        };
        let mut logits = Logits::new();
        // Without a prompt the copies are filled by the first token that computes with them.
        let tokens = prompt(7, 12);
        for (position, token) in (0..).zip(&tokens) {
            let step = Step::feed(0, position, &[*token]);
            let rows = run_steps(&mut context, std::slice::from_ref(&step));
            let rows = rows.or_else(|_| {
                failed += 1;
                assert!(paged.take_error().is_some(), "{run:?}");
                run_steps(&mut context, &[step])
            });
            logits.extend(rows.unwrap());
        }
        let steps = (0..).zip(&tokens);
        let steps = steps.map(|(position, token)| Step::feed(0, position, &[*token]));
        let spec = RunSpec {
            steps: steps.collect(),
            ..run.spec.clone()
        };
        assert_same(&stock(&spec), &logits, &run);
        drop(context);
        drop(loaded);
        drop(paged);
        assert_eq!(complaint(&on), None, "{run:?}");
    }
    assert!(failed > 10, "only {failed} requests failed");
}

/// Runs `run` with all that it asks answered by `patience`, as often as `again` wants after
/// an outcome; nothing that was computed before is left to the next time.
fn run_patiently(
    run: &Run,
    cold: Cold,
    patience: &AtomicI64,
    mut again: impl FnMut(Result<Logits, Failure>) -> bool,
) {
    let on = device(run.flavour, run.seed);
    let config = PagingConfig {
        cold,
        ..run.config(&on, run.budget_bytes())
    };
    let paged = PagedDevice::new(config).unwrap();
    let loaded = LlamaModel::of(&run.spec, Placement::Paged(&paged)).unwrap();
    let mut context = LlamaContext::new(&loaded, &run.spec).unwrap();
    context.stop_after(patience);
    while again(run_steps(&mut context, &run.spec.steps)) {
        context.clear(true);
    }
    drop(context);
    drop(loaded);
    drop(paged);
    assert_eq!(complaint(&on), None, "{run:?}");
}

/// What the processor computes asks before each node whether to stop; wherever that is, the
/// next run is right.
#[test]
fn a_computation_that_was_stopped_anywhere_leaves_nothing_behind() {
    const AMPLE: i64 = 1 << 40;
    let run = run_of(Model::Dense, 1, Size::Percent(30));
    let expected = stock(&run.spec);
    let questions = |cold| {
        let patience = AtomicI64::new(AMPLE);
        run_patiently(&run, cold, &patience, |outcome| {
            assert_same(&expected, &outcome.unwrap(), &run);
            false
        });
        AMPLE - patience.into_inner()
    };
    let (streamed, computed) = (questions(Cold::Stream), questions(Cold::Cpu));
    // A block that the processor computes adds two cuts at most: six blocks in six decodes.
    assert!(computed > streamed + 72, "{computed} after {streamed}");
    let patience = AtomicI64::new(0);
    let mut allowed = 0;
    run_patiently(&run, Cold::Cpu, &patience, |outcome| {
        let stopped = match outcome {
            Ok(found) => {
                assert_same(&expected, &found, &run);
                false
            }
            Err(failure) => {
                assert!(matches!(failure, Failure::Decode(2)), "{failure:?}");
                true
            }
        };
        allowed += 7;
        patience.store(allowed, Ordering::Relaxed);
        stopped
    });
    assert!(allowed >= computed, "{allowed} of {computed}");
}
