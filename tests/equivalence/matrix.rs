//! Models × budgets × prefetch × ubatch × flash attention × cache format × what is paged.
//!
//! The smallest model meets every combination; each other model a selection in which any
//! two settings meet.

use super::case::{AXES, Case, Size, check_all, stock_repeats};
use super::covering::{pairwise, product};
use crate::harness::RunSpec;
use crate::models::Model;

/// A prompt of four ubatches of seven tokens, the last one partly filled.
fn short(model: Model) -> RunSpec {
    RunSpec::new(model, 24, 4)
}

fn check_selection(model: Model) {
    let spec = short(model);
    check_all(
        pairwise(&AXES)
            .iter()
            .map(|indices| Case::of(&spec, indices)),
    );
}

#[test]
fn stock_gives_the_same_bits_twice_for_every_model() {
    for model in Model::ALL {
        for threads in [1, 2] {
            let spec = RunSpec {
                threads,
                ..short(model)
            };
            assert_eq!(stock_repeats(&spec), None, "{spec:?}");
        }
    }
}

#[test]
fn tiny_model_in_every_combination_of_settings() {
    // Numbers of threads and of copy workers change nothing here: they are left out.
    let spec = RunSpec::new(Model::Tiny, 9, 3);
    let cases = product(&AXES[..6]).into_iter().map(|mut indices| {
        indices.extend([0, 0]);
        Case::of(&spec, &indices)
    });
    check_all(cases);
}

each_dense_model!(check_selection);

#[test]
fn model_in_three_files() {
    check_selection(Model::Split);
}

#[test]
fn mixture_of_experts() {
    check_selection(Model::Experts);
}

#[test]
fn recurrent_states_without_attention() {
    check_selection(Model::Recurrent);
}

#[test]
fn recurrent_states_and_attention() {
    check_selection(Model::Hybrid);
}

#[test]
fn short_convolutions_and_attention() {
    check_selection(Model::ShortConvolution);
}

#[test]
fn prompt_longer_than_the_largest_ubatch() {
    for model in [Model::Tiny, Model::SlidingWindow, Model::Hybrid] {
        let spec = RunSpec {
            context: 768,
            batch: 1024,
            ..RunSpec::new(model, 600, 3)
        };
        for size in [0, 2] {
            for prefetch in [0, 1] {
                let case = Case::of(&spec, &[size, prefetch, 2, 0, 0, 0, 0, 1]);
                check_all([case]);
            }
        }
    }
}

#[test]
fn many_generated_tokens_with_two_threads() {
    let spec = RunSpec {
        threads: 2,
        ..RunSpec::new(Model::Dense, 5, 120)
    };
    let case = Case::of(&spec, &[0, 0, 2, 0, 0, 0, 0, 1]);
    check_all([
        Case {
            size: Size::Smallest,
            ..case.clone()
        },
        Case {
            size: Size::Percent(60),
            ..case
        },
    ]);
}
