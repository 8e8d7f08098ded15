//! Adapters beside weights that are paged: the bits are stock's, and the budget covers them.

use rpaged::device::{Budget, PagedDevice};

use super::case::{AMPLE_BYTES, Case, Paging, budgets, check_all, check_script, config};
use crate::harness::{Adapter, Placement, RunSpec, difference, run, run_paged, stock};
use crate::models::Model;

const MODELS: [Model; 8] = [
    Model::Dense,
    Model::DenseQ4K,
    Model::Tied,
    Model::Split,
    Model::Experts,
    Model::SlidingWindow,
    Model::Recurrent,
    Model::Hybrid,
];

const ALL: [&[Adapter]; 4] = [
    &[Adapter::Lora {
        seed: 1,
        tenths: 10,
    }],
    &[
        Adapter::Lora { seed: 1, tenths: 3 },
        Adapter::Lora {
            seed: 2,
            tenths: -15,
        },
    ],
    &[Adapter::Vector { first: 1, last: 2 }],
    &[
        Adapter::Lora { seed: 3, tenths: 5 },
        Adapter::Vector { first: 2, last: 99 },
    ],
];

fn spec(model: Model, adapters: &[Adapter]) -> RunSpec {
    RunSpec {
        ubatch: 7,
        adapters: adapters.to_vec(),
        ..RunSpec::new(model, 17, 3)
    }
}

#[test]
fn adapters_change_what_a_model_says() {
    for model in MODELS {
        let plain = stock(&spec(model, &[]));
        for adapters in ALL {
            let adapted = stock(&spec(model, adapters));
            assert!(
                difference(&plain, &adapted).is_some(),
                "{model:?} {adapters:?}"
            );
        }
    }
}

#[test]
fn adapted_models_give_the_same_bits_under_every_budget() {
    for model in MODELS {
        for adapters in [ALL[1], ALL[3]] {
            check_script(&spec(model, adapters));
        }
    }
}

#[test]
fn adapters_meet_every_setting_of_the_matrix() {
    let all = super::covering::pairwise(&super::case::AXES);
    let spec = spec(Model::Tiny, ALL[3]);
    check_all(all.iter().map(|indices| Case::of(&spec, indices)));
}

#[test]
fn the_budget_covers_adapters_and_one_too_small_for_them_is_a_sentence() {
    for adapters in &ALL[..3] {
        let (plain, with) = (spec(Model::Dense, &[]), spec(Model::Dense, adapters));
        let (minimum, _) = budgets(&plain, Paging::Both);
        let (minimum_with, _) = budgets(&with, Paging::Both);
        assert!(minimum_with > minimum, "{minimum_with} {minimum}");
        let exact = config(Model::Dense, Paging::Both, Budget::Bytes(minimum_with));
        run_paged(&exact, &with).unwrap();
        let small = config(Model::Dense, Paging::Both, Budget::Bytes(minimum_with - 1));
        let sentence = run_paged(&small, &with).unwrap_err();
        assert!(sentence.contains("below the minimum of"), "{sentence}");
    }
}

#[test]
fn what_adapters_took_is_free_when_the_model_goes() {
    let spec = spec(Model::Dense, ALL[3]);
    let ample = config(Model::Dense, Paging::Both, Budget::Bytes(AMPLE_BYTES));
    let device = PagedDevice::new(ample).unwrap();
    let before = device.report().scratch_bytes;
    for _ in 0..2 {
        run(Placement::Paged(&device), &spec).unwrap();
        // What llama.cpp keeps of the model to itself is counted until the next one.
        let kept = device.report().scratch_bytes - before;
        assert!(kept < Model::Dense.file().tensor_bytes / 4, "{kept}");
    }
}
