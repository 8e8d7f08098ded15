//! Models × budgets × prefetch × ubatch × flash attention × cache format × what is paged.

use super::{check_all, gpu, models, of_vulkan, stock};
use crate::equivalence::case::{AXES, Case};
use crate::equivalence::covering::pairwise;
use crate::equivalence::each_dense_model;
use crate::harness::{Placement, RunSpec, difference, run};
use crate::models::Model;

fn check_selection(model: Model) {
    let Some(device) = gpu() else { return };
    let spec = RunSpec::new(model, 24, 4);
    // Numbers of processor threads do not matter to a GPU.
    let mut axes = AXES;
    axes[7] = 1;
    let cases = pairwise(&axes);
    check_all(device, cases.iter().map(|indices| Case::of(&spec, indices)));
}

#[test]
fn stock_gives_the_same_bits_twice_for_every_model() {
    let Some(device) = gpu() else { return };
    for model in models(device) {
        let spec = RunSpec::new(model, 24, 4);
        let again = run(Placement::Device(device), &spec).unwrap();
        assert_eq!(difference(&stock(device, &spec), &again), None, "{spec:?}");
    }
}

/// Those that crash ggml-vulkan itself on lavapipe, or have nothing to do with what computes.
fn check_elsewhere(model: Model) {
    if gpu().is_some_and(|device| !of_vulkan(device)) {
        check_selection(model);
    }
}

each_dense_model!(check_selection);

#[test]
fn model_in_three_files() {
    check_elsewhere(Model::Split);
}

#[test]
fn mixture_of_experts() {
    check_elsewhere(Model::Experts);
}

#[test]
fn recurrent_states_without_attention() {
    check_elsewhere(Model::Recurrent);
}

#[test]
fn short_convolutions_and_attention() {
    check_elsewhere(Model::ShortConvolution);
}

#[test]
fn tiny() {
    check_selection(Model::Tiny);
}

#[test]
fn recurrent_states_and_attention() {
    check_selection(Model::Hybrid);
}
