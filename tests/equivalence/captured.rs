//! On a device that replays graphs, as ggml-cuda does: a new plan is seen, and without one
//! nothing is captured anew.

use async_device::{AsyncDevice, Counters, Delays, Options};
use rpaged::device::report::Reason;
use rpaged::device::{Budget, PagedDevice, PagingConfig};

use super::case::{AMPLE_BYTES, Paging, budgets_under, config};
use crate::harness::{
    LlamaContext, LlamaModel, Logits, Placement, RunSpec, Step, assert_same, inner_of, likeliest,
    run_steps, stock,
};
use crate::models::Model;

const PROMPT_TOKENS: usize = 40;

fn device(delays: Delays) -> AsyncDevice {
    AsyncDevice::new(Options {
        captures: true,
        padded: true,
        delays,
        seed: 11,
        ..Options::default()
    })
    .unwrap()
}

fn spec(model: Model, generated: i32) -> RunSpec {
    RunSpec {
        ubatch: 32,
        context: 512,
        ..RunSpec::new(model, PROMPT_TOKENS, generated)
    }
}

fn paging(on: &AsyncDevice, model: Model, paging: Paging, budget: u64) -> PagingConfig {
    PagingConfig {
        inner: Some(inner_of(on)),
        ..config(model, paging, Budget::Bytes(budget))
    }
}

/// The smallest budget, and the one that keeps everything, in bytes.
fn budgets(spec: &RunSpec, what: Paging) -> (u64, u64) {
    let on = device(Delays::None);
    budgets_under(&paging(&on, spec.model, what, AMPLE_BYTES), spec)
}

/// Runs the prompt, then a token after each list of `budgets`, which are set one after the
/// other; with the counters after each token.
fn generate(
    config: PagingConfig,
    on: &AsyncDevice,
    spec: &RunSpec,
    budgets: &[Vec<u64>],
) -> (Logits, Vec<Counters>) {
    let paged = PagedDevice::new(config).unwrap();
    let path = &spec.model.file().path;
    let model = LlamaModel::load(path, Placement::Paged(&paged)).unwrap();
    let mut context = LlamaContext::new(&model, spec).unwrap();
    let mut found = run_steps(&mut context, &spec.steps[..1]).unwrap();
    let mut counters = Vec::new();
    for (position, budgets) in (0..).zip(budgets) {
        for budget in budgets {
            paged.set_budget(*budget, Reason::Pressure).unwrap();
        }
        let position = i32::try_from(PROMPT_TOKENS).unwrap() + position;
        let step = Step::feed(0, position, &[likeliest(found.last().unwrap())]);
        found.extend(run_steps(&mut context, &[step]).unwrap());
        counters.push(on.counters());
    }
    (found, counters)
}

#[test]
fn replayed_graphs_see_a_new_plan() {
    for (model, delays) in [
        (Model::Tiny, Delays::None),
        (Model::Dense, Delays::Short),
        (Model::Experts, Delays::None),
        (Model::Hybrid, Delays::Short),
    ] {
        for what in [Paging::Weights, Paging::Both] {
            let spec = spec(model, 32);
            let (minimum, everything) = budgets(&spec, what);
            let between = |percent| minimum + (everything - minimum) * percent / 100;
            let all = AMPLE_BYTES;
            // Long enough under each to be captured and replayed; back to where a graph of the
            // same nodes was captured before, and there and back between two tokens: then the
            // graph is the same, and its weights may lie elsewhere.
            let sizes: [&[u64]; 8] = [
                &[all],
                &[between(50)],
                &[all],
                &[minimum, all],
                &[between(50), all],
                &[minimum],
                &[between(80), minimum],
                &[minimum, between(30), all],
            ];
            let stays = [const { Vec::new() }; 3];
            let sizes = sizes.map(|first| [&[first.to_vec()][..], &stays].concat());
            let sizes = sizes.concat();
            let on = device(delays);
            let config = paging(&on, model, what, all);
            let (found, counters) = generate(config, &on, &spec, &sizes);
            let complaints = on.take_complaints();
            assert!(complaints.is_empty(), "{model:?} {what:?}: {complaints:#?}");
            assert_same(&stock(&spec), &found, &(model, what));
            let last = counters.last().unwrap();
            assert!(last.captures > 1 && last.replays > 1, "{model:?}: {last:?}");
        }
    }
}

#[test]
fn captures_last_while_nothing_is_planned_anew() {
    for model in [
        Model::Tiny,
        Model::Dense,
        Model::Hybrid,
        Model::SlidingWindow,
    ] {
        for what in [Paging::Weights, Paging::Both] {
            let spec = spec(model, 12);
            let (minimum, everything) = budgets(&spec, what);
            for percent in [0, 30, 70, 100] {
                let budget = minimum + (everything - minimum) * percent / 100;
                let on = device(Delays::None);
                let config = paging(&on, model, what, budget);
                let (found, counters) = generate(config, &on, &spec, &[const { Vec::new() }; 12]);
                assert_same(&stock(&spec), &found, &(model, what, percent));
                // The first tokens plan, warm up and capture.
                let (early, late) = (counters[3], counters[11]);
                let launched = late.graphs - early.graphs;
                let replayed = late.replays - early.replays;
                assert!(launched >= 8, "{launched}");
                assert_eq!(
                    (replayed, late.captures - early.captures),
                    (launched, 0),
                    "{model:?} {what:?} with {percent} % of the budget: {late:?}"
                );
            }
        }
    }
}
