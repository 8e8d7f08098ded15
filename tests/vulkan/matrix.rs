//! Models × budgets × prefetch × ubatch × flash attention × cache format × what is paged.

use super::{MODELS, check_all, gpu, stock};
use crate::equivalence::case::{AXES, Case};
use crate::equivalence::covering::pairwise;
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
    for model in MODELS {
        let spec = RunSpec::new(model, 24, 4);
        let again = run(Placement::Device(device), &spec).unwrap();
        assert_eq!(difference(&stock(device, &spec), &again), None, "{spec:?}");
    }
}

#[test]
fn tiny() {
    check_selection(Model::Tiny);
}

#[test]
fn dense_with_grouped_query_attention_in_q8_0() {
    check_selection(Model::Dense);
}

#[test]
fn dense_in_f16() {
    check_selection(Model::DenseF16);
}

#[test]
fn dense_in_q4_0() {
    check_selection(Model::DenseQ4);
}

#[test]
fn dense_in_q4_k() {
    check_selection(Model::DenseQ4K);
}

#[test]
fn tied_embeddings() {
    check_selection(Model::Tied);
}

#[test]
fn sliding_window_attention() {
    check_selection(Model::SlidingWindow);
}

#[test]
fn biases_and_layer_norm() {
    check_selection(Model::Biases);
}

#[test]
fn fused_attention_matrix() {
    check_selection(Model::FusedAttention);
}

#[test]
fn recurrent_states_and_attention() {
    check_selection(Model::Hybrid);
}
