//! The budget is kept, its minimum is exact, and what cannot be done is said.

use rpaged::device::{Budget, PagedDevice, PagingConfig, Report};
use rpaged::error::Error;

use super::case::{AMPLE_BYTES, Paging, config, minimum_budget};
use crate::harness::{
    LlamaContext, LlamaModel, Placement, RunSpec, assert_same, run, run_steps, stock,
};
use crate::models::Model;

fn spec(model: Model) -> RunSpec {
    RunSpec::new(model, 10, 3)
}

/// Runs `spec`; the report while the context lives.
fn report_of(config: &PagingConfig, spec: &RunSpec) -> Report {
    let device = PagedDevice::new(config.clone()).unwrap();
    let model = LlamaModel::load(&spec.model.file().path, Placement::Paged(&device)).unwrap();
    let mut context = LlamaContext::new(&model, spec).unwrap();
    let logits = run_steps(&mut context, &spec.steps).unwrap();
    assert_same(&stock(spec), &logits, &spec.model);
    device.report()
}

#[test]
fn smallest_budget_works_and_one_byte_less_is_refused_in_a_sentence() {
    for model in Model::ALL {
        let spec = spec(model);
        for paging in [Paging::Weights, Paging::States, Paging::Both] {
            let minimum = minimum_budget(&spec, paging);
            let enough = config(model, paging, Budget::Bytes(minimum));
            report_of(&enough, &spec);

            let device =
                PagedDevice::new(config(model, paging, Budget::Bytes(minimum - 1))).unwrap();
            assert!(
                run(Placement::Paged(&device), &spec).is_err(),
                "{model:?} {paging:?}"
            );
            let error = device.take_error().expect("a refused budget is recorded");
            assert!(matches!(error, Error::Memory(_)), "{error:?}");
            let sentence = error.to_string();
            assert!(sentence.contains("below the minimum of"), "{sentence}");
            assert!(sentence.contains("--vram-budget"), "{sentence}");
        }
    }
}

#[test]
fn arena_stays_within_every_budget() {
    for model in Model::ALL {
        let spec = spec(model);
        let minimum = minimum_budget(&spec, Paging::Both);
        let mut before = None::<Report>;
        for eighth in 0..=10 {
            let budget = minimum + model.file().tensor_bytes / 8 * eighth;
            let report = report_of(&config(model, Paging::Both, Budget::Bytes(budget)), &spec);
            assert_eq!(report.budget_bytes, budget);
            assert!(report.arena_bytes_used <= budget, "{model:?}: {report:?}");
            assert_eq!(report.model_bytes, model.file().tensor_bytes, "{model:?}");
            if let Some(before) = before {
                let weights = |report: Report| report.resident_bytes + report.streamed_bytes;
                assert_eq!(weights(before), weights(report), "{model:?}: {report:?}");
                assert_eq!(before.layers, report.layers);
            }
            before = Some(report);
        }
        let ample = report_of(
            &config(model, Paging::Both, Budget::Bytes(AMPLE_BYTES)),
            &spec,
        );
        assert_eq!(
            (ample.streamed_bytes, ample.bytes_in()),
            (0, 0),
            "{model:?}"
        );
        assert_eq!(ample.resident_layers, ample.layers, "{model:?}");
    }
}

#[test]
fn share_of_the_model_is_a_budget() {
    let spec = RunSpec {
        ubatch: 8,
        ..spec(Model::Dense)
    };
    let half = config(Model::Dense, Paging::Weights, Budget::ModelShare(0.5));
    let report = report_of(&half, &spec);
    assert_eq!(report.budget_bytes, Model::Dense.file().tensor_bytes / 2);
    assert!(
        report.streamed_bytes > 0 && report.resident_bytes > 0,
        "{report:?}"
    );
}

#[test]
fn upper_bound_on_resident_layers_is_kept_under_an_ample_budget() {
    let spec = spec(Model::Dense);
    for layers_max in [0, 1, 3, 7, 100] {
        let ample = config(Model::Dense, Paging::Both, Budget::Bytes(AMPLE_BYTES));
        let bounded = PagingConfig {
            resident_layers_max: Some(layers_max),
            ..ample
        };
        let report = report_of(&bounded, &spec);
        assert_eq!(
            report.resident_layers,
            layers_max.min(report.layers),
            "{report:?}"
        );
    }
}

#[test]
fn two_contexts_take_turns_on_one_device() {
    let spec = spec(Model::Dense);
    let minimum = minimum_budget(&spec, Paging::Both);
    // The second context's cache comes on top of the first one's.
    let device = PagedDevice::new(config(
        Model::Dense,
        Paging::Both,
        Budget::Bytes(2 * minimum),
    ))
    .unwrap();
    let path = &Model::Dense.file().path;
    let model = LlamaModel::load(path, Placement::Paged(&device)).unwrap();
    let mut contexts = [(); 2].map(|()| LlamaContext::new(&model, &spec).unwrap());
    let mut rows = [Vec::new(), Vec::new()];
    for step in &spec.steps[..1] {
        for (context, rows) in contexts.iter_mut().zip(&mut rows) {
            rows.extend(run_steps(context, std::slice::from_ref(step)).unwrap());
        }
    }
    for rows in &rows {
        assert_same(
            &stock(&spec)[..rows.len()].to_vec(),
            rows,
            &"the context in turn",
        );
    }
}

#[test]
fn one_context_after_another_on_one_model() {
    let spec = spec(Model::Hybrid);
    let minimum = minimum_budget(&spec, Paging::Both);
    let smallest = config(Model::Hybrid, Paging::Both, Budget::Bytes(minimum));
    let device = PagedDevice::new(smallest).unwrap();
    let path = &Model::Hybrid.file().path;
    let model = LlamaModel::load(path, Placement::Paged(&device)).unwrap();
    for _ in 0..3 {
        let mut context = LlamaContext::new(&model, &spec).unwrap();
        let logits = run_steps(&mut context, &spec.steps).unwrap();
        assert_same(&stock(&spec), &logits, &"one context after another");
    }
}
