//! Tensors that the user places by hand: they are not paged, the rest is, and the bits are
//! stock's.

use rpaged::device::{Budget, PagedDevice, Report};

use super::case::{AMPLE_BYTES, Case, Paging, check_all, check_script, config};
use crate::harness::{LlamaContext, LlamaModel, Placement, RunSpec, run_steps};
use crate::models::Model;

fn spec(model: Model, placed: &[&'static str]) -> RunSpec {
    RunSpec {
        ubatch: 7,
        placed: placed.to_vec(),
        ..RunSpec::new(model, 17, 3)
    }
}

/// One expression for each kind of placing: single tensors, whole layers, experts, norms.
const PATTERNS: [&str; 5] = ["ffn_up", "blk\\.[02]\\.", "exps", "norm", "output|attn"];

#[test]
fn what_is_placed_by_hand_changes_no_bit() {
    for model in [
        Model::Dense,
        Model::DenseQ4K,
        Model::Tied,
        Model::SlidingWindow,
    ] {
        for pattern in [0, 1, 3, 4] {
            check_script(&spec(model, &PATTERNS[pattern..=pattern]));
        }
    }
    for model in [Model::Experts, Model::Recurrent, Model::Hybrid] {
        check_script(&spec(model, &PATTERNS[1..=2]));
    }
}

#[test]
fn placing_meets_every_setting_of_the_matrix() {
    let all = super::covering::pairwise(&super::case::AXES);
    let spec = spec(Model::Tiny, &["ffn_(up|gate)", "blk\\.1\\."]);
    check_all(all.iter().map(|indices| Case::of(&spec, indices)));
}

#[test]
fn what_is_placed_by_hand_is_not_in_the_plan_but_in_the_budget() {
    let report = |placed: &[&'static str]| -> Report {
        let spec = spec(Model::Experts, placed);
        let ample = config(spec.model, Paging::Weights, Budget::Bytes(AMPLE_BYTES));
        let device = PagedDevice::new(ample).unwrap();
        let model = LlamaModel::of(&spec, Placement::Paged(&device)).unwrap();
        let mut context = LlamaContext::new(&model, &spec).unwrap();
        run_steps(&mut context, &spec.steps).unwrap();
        device.report()
    };
    let weights = |report: Report| report.resident_bytes + report.streamed_bytes;
    let (all, without) = (report(&[]), report(&["exps"]));
    let experts = weights(all) - weights(without);
    assert!(experts > all.model_bytes / 3, "{experts}");
    assert_eq!(all.scratch_bytes + experts, without.scratch_bytes);
}
