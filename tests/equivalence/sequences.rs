//! Several sequences in one context, and what llama.cpp does to its memory between
//! graphs: copies, removals, shifts, clearing.

use super::case::check_script;
use crate::harness::{Cache, Entry, Flash, RunSpec, Step};
use crate::models::{Model, prompt};

const ALL_KINDS: [Model; 5] = [
    Model::Tiny,
    Model::SlidingWindow,
    Model::Recurrent,
    Model::Hybrid,
    Model::ShortConvolution,
];

/// Those whose memory can lose a part of a sequence.
const ATTENTION_ONLY: [Model; 2] = [Model::Tiny, Model::Biases];

/// Two sequences, ubatches of seven tokens.
fn two_sequences(model: Model, unified: bool, steps: Vec<Step>) -> RunSpec {
    let spec = RunSpec::new(model, 1, 0);
    RunSpec {
        context: 512,
        ubatch: 7,
        sequences: 2,
        unified,
        steps,
        ..spec
    }
}

/// Batches in which the tokens of two sequences alternate, then each goes on alone.
fn interleaved() -> Vec<Step> {
    let (first, second) = (prompt(1, 20), prompt(2, 20));
    let pairs = first.iter().zip(&second).zip(0..);
    let entries: Vec<Entry> = pairs
        .flat_map(|((first, second), position)| {
            [(*first, 0), (*second, 1)].map(|(token, sequence)| Entry {
                token,
                position,
                sequence,
            })
        })
        .collect();
    let mut steps: Vec<Step> = entries
        .chunks(16)
        .map(|some| Step::Decode(some.to_vec()))
        .collect();
    steps.push(Step::generate(0, 20, 3));
    steps.push(Step::generate(1, 20, 3));
    steps.push(Step::generate(0, 23, 2));
    steps
}

#[test]
fn two_sequences_interleaved() {
    for model in ALL_KINDS {
        for unified in [false, true] {
            check_script(&two_sequences(model, unified, interleaved()));
        }
    }
}

#[test]
fn sequence_copied_and_both_go_on() {
    let steps = vec![
        Step::feed(0, 0, &prompt(3, 17)),
        Step::Copy { from: 0, to: 1 },
        Step::feed(1, 17, &prompt(4, 5)),
        Step::feed(0, 17, &prompt(5, 5)),
        Step::generate(1, 22, 3),
    ];
    for model in ALL_KINDS {
        for unified in [false, true] {
            check_script(&two_sequences(model, unified, steps.clone()));
        }
    }
}

#[test]
fn end_of_a_sequence_removed_and_written_again() {
    let steps = vec![
        Step::feed(0, 0, &prompt(3, 17)),
        Step::Remove {
            sequence: 0,
            first: 9,
            end: -1,
        },
        Step::feed(0, 9, &prompt(4, 12)),
        Step::generate(0, 21, 3),
    ];
    for model in ATTENTION_ONLY {
        check_script(&RunSpec {
            ubatch: 7,
            ..two_sequences(model, false, steps.clone())
        });
    }
}

#[test]
fn start_of_a_sequence_dropped_and_the_keys_rotated() {
    let steps = vec![
        Step::feed(0, 0, &prompt(3, 24)),
        Step::Remove {
            sequence: 0,
            first: 2,
            end: 12,
        },
        Step::Shift {
            sequence: 0,
            first: 12,
            end: -1,
            delta: -10,
        },
        Step::feed(0, 14, &prompt(4, 8)),
        Step::generate(0, 22, 3),
    ];
    for model in ATTENTION_ONLY {
        check_script(&two_sequences(model, false, steps.clone()));
    }
    // Stock llama.cpp crashes when it shifts quantised keys whose heads are not a multiple
    // of 64 values long: only one of the models can.
    for cache in [Cache::F16, Cache::Q8] {
        for flash in [Flash::On, Flash::Off] {
            let spec = two_sequences(Model::DenseQ4K, false, steps.clone());
            check_script(&RunSpec {
                cache,
                flash,
                ..spec
            });
        }
    }
}

#[test]
fn memory_cleared_and_filled_again() {
    for data in [true, false] {
        let steps = vec![
            Step::feed(0, 0, &prompt(3, 17)),
            Step::Clear { data },
            Step::feed(0, 0, &prompt(4, 9)),
            Step::generate(0, 9, 3),
        ];
        for model in ALL_KINDS {
            check_script(&two_sequences(model, false, steps.clone()));
        }
    }
}
