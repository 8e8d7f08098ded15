//! Settings of the pager that change when and how bytes travel: none of them changes a bit,
//! nor does a budget that changes while running.

use rpaged::device::report::Reason;
use rpaged::device::{Budget, Cold, PagedDevice, PagingConfig, Storage};

use super::case::{
    AMPLE_BYTES, Paging, budgets, budgets_under, config, run_under_changing_budgets,
};
use crate::harness::{
    Cache, Flash, LlamaContext, LlamaModel, Placement, RunSpec, Step, assert_same, likeliest,
    run_paged, run_steps, stock,
};
use crate::models::random::Random;
use crate::models::{Model, prompt};

const MODELS: [Model; 6] = [
    Model::Dense,
    Model::DenseQ4K,
    Model::Experts,
    Model::SlidingWindow,
    Model::Recurrent,
    Model::Hybrid,
];

fn spec(model: Model) -> RunSpec {
    RunSpec {
        ubatch: 32,
        context: 512,
        ..RunSpec::new(model, 70, 4)
    }
}

/// A device with a quarter of the way from the smallest budget to everything.
fn tight(spec: &RunSpec, paging: Paging) -> PagingConfig {
    let (minimum, everything) = budgets(spec, paging);
    let budget = minimum + (everything - minimum) / 4;
    config(spec.model, paging, Budget::Bytes(budget))
}

fn check(config: &PagingConfig, spec: &RunSpec) {
    let found = run_paged(config, spec).unwrap_or_else(|sentence| panic!("{sentence}: {config:?}"));
    assert_same(&stock(spec), &found, config);
}

#[test]
fn pages_of_any_size_change_nothing() {
    for model in MODELS {
        for kv_page_tokens in [16, 48, 512, 8192] {
            for paging in [Paging::Both, Paging::States] {
                let spec = spec(model);
                let ample = PagingConfig {
                    kv_page_tokens,
                    ..config(model, paging, Budget::Bytes(AMPLE_BYTES))
                };
                // Larger pages need more.
                let (minimum, everything) = budgets_under(&ample, &spec);
                let budget = Budget::Bytes(minimum + (everything - minimum) / 4);
                check(&PagingConfig { budget, ..ample }, &spec);
            }
        }
    }
}

#[test]
fn rings_of_any_depth_change_nothing() {
    for model in MODELS {
        for prefetch_depth in [2, 3, 64] {
            let spec = spec(model);
            let config = PagingConfig {
                prefetch_depth,
                ..tight(&spec, Paging::Both)
            };
            check(&config, &spec);
        }
    }
}

#[test]
fn files_read_past_the_page_cache_give_the_same_bytes() {
    for model in Model::ALL {
        for prefetch in [true, false] {
            let spec = spec(model);
            let direct = PagingConfig {
                storage: Storage::Direct,
                prefetch,
                // Blocks of the file are the unit of the arena then, which takes more.
                budget: Budget::Bytes(budgets(&spec, Paging::Both).1 * 3 / 2),
                resident_layers_max: Some(1),
                ..tight(&spec, Paging::Both)
            };
            check(&direct, &spec);
        }
    }
}

#[test]
fn pinned_layers_stay_and_an_unknown_one_is_a_sentence() {
    let spec = spec(Model::Dense);
    let (minimum, everything) = budgets(&spec, Paging::Weights);
    let pinned = PagingConfig {
        pinned_layers: vec![0, 3],
        ..config(
            Model::Dense,
            Paging::Weights,
            Budget::Bytes(minimum + (everything - minimum) / 2),
        )
    };
    check(&pinned, &spec);
    let device = PagedDevice::new(pinned.clone()).unwrap();
    let model = LlamaModel::load(&spec.model.file().path, Placement::Paged(&device)).unwrap();
    let mut context = LlamaContext::new(&model, &spec).unwrap();
    run_steps(&mut context, &spec.steps).unwrap();
    let report = device.report();
    assert!(
        report.resident_layers >= 2 && report.streamed_bytes > 0,
        "{report:?}"
    );

    let unknown = PagingConfig {
        pinned_layers: vec![6],
        ..pinned
    };
    let sentence = run_paged(&unknown, &spec).unwrap_err();
    assert!(
        sentence.contains("'--pin-layers'") && sentence.contains("0 to 5"),
        "{sentence}"
    );
}

#[test]
fn budgets_that_change_between_tokens_change_nothing() {
    for (seed, model) in MODELS.into_iter().enumerate() {
        for paging in [Paging::Both, Paging::States, Paging::Weights] {
            let steps = vec![Step::feed(0, 0, &prompt(7, 70)), Step::generate(0, 70, 12)];
            let spec = RunSpec {
                steps,
                ..spec(model)
            };
            let device = PagedDevice::new(tight(&spec, paging)).unwrap();
            let bounds = budgets(&spec, paging);
            let mut random = Random::new(seed as u64 + 1);
            let found = run_under_changing_budgets(&device, &spec, bounds, &mut random);
            assert_same(&stock(&spec), &found, &(model, paging));
            let changes = device.take_changes();
            let pressed = |change: &&_| change_reason(change) == Reason::Pressure;
            assert_eq!(changes.iter().filter(pressed).count(), 12);
            let moved: u64 = changes
                .iter()
                .flat_map(|change| &change.moves)
                .map(|m| m.bytes)
                .sum();
            assert!(moved > 0, "{model:?} {paging:?}: nothing moved");
        }
    }
}

fn change_reason(change: &rpaged::device::report::Change) -> Reason {
    change.reason
}

#[test]
fn a_budget_that_nothing_fits_leaves_the_plan_as_it_was() {
    let spec = spec(Model::Dense);
    let (minimum, _) = budgets(&spec, Paging::Both);
    let device = PagedDevice::new(tight(&spec, Paging::Both)).unwrap();
    let model = LlamaModel::load(&spec.model.file().path, Placement::Paged(&device)).unwrap();
    let mut context = LlamaContext::new(&model, &spec).unwrap();
    let (first, rest) = spec.steps.split_at(1);
    let mut found = run_steps(&mut context, first).unwrap();
    let before = device.report();
    let refused = device.set_budget(minimum / 2, Reason::Budget).unwrap_err();
    assert_eq!(refused.exit_code(), 4, "{refused}");
    let after = device.report();
    assert_eq!(before.resident_bytes, after.resident_bytes);
    assert_eq!(before.budget_bytes, after.budget_bytes);
    let Step::Generate { count, .. } = rest[0] else {
        panic!("the second step generates")
    };
    for position in 70..70 + count {
        let token = likeliest(found.last().unwrap());
        found.extend(run_steps(&mut context, &[Step::feed(0, position, &[token])]).unwrap());
    }
    assert_same(&stock(&spec), &found, &"after a refusal");
}

#[test]
fn a_context_takes_memory_for_the_tokens_that_are_there() {
    for flash in [Flash::On, Flash::Off] {
        let spec = RunSpec {
            context: 32 << 10,
            batch: 512,
            ubatch: 128,
            flash,
            ..RunSpec::new(Model::Tiny, 1000, 1)
        };
        let ample = PagingConfig {
            cold: Cold::Auto,
            ..config(spec.model, Paging::Both, Budget::Bytes(1 << 30))
        };
        let device = PagedDevice::new(ample).unwrap();
        let model = LlamaModel::load(&spec.model.file().path, Placement::Paged(&device)).unwrap();
        let mut context = LlamaContext::new(&model, &spec).unwrap();
        assert_eq!(device.report().kv_resident_bytes, 0);
        let steps = [
            Step::feed(0, 0, &prompt(7, 500)),
            Step::feed(0, 500, &prompt(8, 500)),
        ];
        run_steps(&mut context, &steps).unwrap();
        let report = device.report();
        // Three layers; keys and values of 32 values each; llama.cpp reads 1,024 rows.
        let row_bytes = 3 * 2 * 32 * 2;
        let rows = report.kv_resident_bytes / row_bytes;
        let notices = device.take_notices();
        if flash == Flash::On {
            assert_eq!(rows, 1024, "{report:?}");
            assert!(notices.is_empty(), "{notices:?}");
        } else {
            // Values are read across their rows: all of them are in use.
            assert_eq!(rows, (1024 + (32 << 10)) / 2, "{report:?}");
            assert!(
                notices.len() == 1 && notices[0].contains("-fa on"),
                "{notices:?}"
            );
        }
        context.clear(true);
        assert_eq!(device.report().kv_resident_bytes, 0);
    }
}

#[test]
fn a_quarter_of_a_long_cache_moves_what_the_plan_says() {
    let spec = RunSpec {
        context: 8192,
        batch: 512,
        ubatch: 512,
        flash: Flash::On,
        cache: Cache::F16,
        steps: (0..15)
            .map(|part| Step::feed(0, part * 512, &prompt(part as u64, 512)))
            .chain([Step::generate(0, 15 * 512, 4)])
            .collect(),
        ..RunSpec::new(Model::Dense, 1, 0)
    };
    let expected = stock(&spec);
    let (_, everything) = budgets(&spec, Paging::States);
    let cache: u64 = 6 * 2 * (15 * 512 + 256) * 128;
    let quarter = Budget::Bytes(everything - cache * 3 / 4);
    let device = PagedDevice::new(config(spec.model, Paging::States, quarter)).unwrap();
    let model = LlamaModel::load(&spec.model.file().path, Placement::Paged(&device)).unwrap();
    let mut context = LlamaContext::new(&model, &spec).unwrap();
    let (tokens, prompts) = (&spec.steps[15..], &spec.steps[..15]);
    let mut found = run_steps(&mut context, prompts).unwrap();
    let Step::Generate { position, .. } = tokens[0] else {
        panic!("the last step generates")
    };
    let mut before = written_back(&device);
    for position in position..position + 4 {
        let token = likeliest(found.last().unwrap());
        found.extend(run_steps(&mut context, &[Step::feed(0, position, &[token])]).unwrap());
        let now = written_back(&device);
        let report = device.report();
        let streamed_rows = report.kv_streamed_bytes / ((15 * 512 + 256) * 128);
        assert_eq!(now - before, streamed_rows * 128, "{report:?}");
        assert!(report.kv_streamed_bytes >= cache / 2, "{report:?}");
        assert!(report.pass_bytes <= report.kv_streamed_bytes, "{report:?}");
        let least = report.kv_streamed_bytes - report.ring_bytes;
        assert!(report.pass_bytes >= least, "{report:?}");
        before = now;
    }
    assert_same(&expected, &found, &"a quarter of the cache");
}

/// Bytes written back, once no more have come for a while.
fn written_back(device: &PagedDevice) -> u64 {
    let mut bytes = device.report().bytes_out();
    loop {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let now = device.report().bytes_out();
        if now == bytes {
            return now;
        }
        bytes = now;
    }
}
