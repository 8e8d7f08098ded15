//! What llama.cpp saves of its memory and takes back: always the newest bytes, wherever
//! they are at that moment.

use super::case::check_script;
use crate::harness::{Cache, Flash, RunSpec, Step};
use crate::models::{Model, prompt};

const ALL_KINDS: [Model; 5] = [
    Model::Tiny,
    Model::SlidingWindow,
    Model::Recurrent,
    Model::Hybrid,
    Model::ShortConvolution,
];

fn spec(model: Model, steps: Vec<Step>) -> RunSpec {
    let spec = RunSpec::new(model, 1, 0);
    RunSpec {
        context: 512,
        ubatch: 7,
        sequences: 2,
        steps,
        ..spec
    }
}

#[test]
fn whole_state_saved_and_restored_amid_generation() {
    let steps = vec![
        Step::feed(0, 0, &prompt(3, 17)),
        Step::generate(0, 17, 2),
        Step::Save(0),
        Step::feed(0, 19, &prompt(4, 9)),
        Step::Restore(0),
        Step::feed(0, 19, &prompt(5, 5)),
        Step::generate(0, 24, 3),
    ];
    for model in ALL_KINDS {
        check_script(&spec(model, steps.clone()));
    }
}

#[test]
fn state_restored_after_the_memory_was_cleared() {
    let steps = vec![
        Step::feed(0, 0, &prompt(3, 17)),
        Step::Save(0),
        Step::Clear { data: true },
        Step::Restore(0),
        Step::generate(0, 17, 3),
    ];
    for model in ALL_KINDS {
        check_script(&spec(model, steps.clone()));
    }
}

#[test]
fn sequence_saved_and_restored_as_another() {
    let steps = vec![
        Step::feed(0, 0, &prompt(3, 17)),
        Step::SaveSequence {
            slot: 0,
            sequence: 0,
        },
        Step::feed(1, 0, &prompt(4, 6)),
        Step::feed(0, 17, &prompt(5, 4)),
        Step::RestoreSequence {
            slot: 0,
            sequence: 1,
        },
        Step::generate(0, 21, 2),
        Step::feed(1, 17, &prompt(6, 4)),
        Step::generate(1, 21, 2),
    ];
    for model in ALL_KINDS {
        for unified in [false, true] {
            check_script(&RunSpec {
                unified,
                ..spec(model, steps.clone())
            });
        }
    }
}

#[test]
fn transposed_and_quantised_caches_saved_and_restored() {
    let steps = vec![
        Step::feed(0, 0, &prompt(3, 17)),
        Step::Save(0),
        Step::feed(0, 17, &prompt(4, 9)),
        Step::Restore(0),
        Step::generate(0, 17, 3),
    ];
    for flash in [Flash::On, Flash::Off] {
        for cache in [Cache::F16, Cache::Q8] {
            check_script(&RunSpec {
                flash,
                cache,
                ..spec(Model::Dense, steps.clone())
            });
        }
    }
}
