//! What a GPU's memory changes about budgets, states and tensors placed by hand.

use rpaged::device::{Budget, PagedDevice, PagingConfig};

use super::{budgets, check_all, gpu, on, stock};
use crate::equivalence::case::{
    AMPLE_BYTES, Paging, config, run_under_changing_budgets, script_cases,
};
use crate::harness::{Flash, LlamaModel, Placement, RunSpec, Step, assert_same};
use crate::models::random::Random;
use crate::models::{Model, prompt};

fn spec(model: Model) -> RunSpec {
    RunSpec {
        ubatch: 32,
        context: 512,
        ..RunSpec::new(model, 70, 4)
    }
}

#[test]
fn tensors_placed_by_hand_stay_with_the_processor() {
    let Some(device) = gpu() else { return };
    for pattern in ["ffn_up", "blk\\.[02]\\.", "norm"] {
        let spec = RunSpec {
            placed: vec![pattern],
            ..spec(Model::Dense)
        };
        check_all(device, script_cases(&spec));
    }
}

#[test]
fn states_are_saved_restored_copied_and_moved() {
    let Some(device) = gpu() else { return };
    for flash in [Flash::On, Flash::Off] {
        let spec = RunSpec {
            flash,
            sequences: 2,
            steps: vec![
                Step::feed(0, 0, &prompt(7, 70)),
                Step::Save(0),
                Step::generate(0, 70, 3),
                Step::Restore(0),
                Step::SaveSequence {
                    slot: 1,
                    sequence: 0,
                },
                Step::RestoreSequence {
                    slot: 1,
                    sequence: 1,
                },
                Step::feed(1, 70, &[5, 6]),
                Step::Remove {
                    sequence: 0,
                    first: 0,
                    end: 20,
                },
                Step::Shift {
                    sequence: 0,
                    first: 20,
                    end: 70,
                    delta: -20,
                },
                Step::feed(0, 50, &[9, 10]),
                Step::Clear { data: true },
                Step::feed(0, 0, &prompt(8, 9)),
            ],
            ..spec(Model::Dense)
        };
        check_all(device, script_cases(&spec));
    }
}

#[test]
fn budgets_that_change_between_tokens_change_nothing() {
    let Some(device) = gpu() else { return };
    for (seed, paging) in [Paging::Both, Paging::Weights].into_iter().enumerate() {
        let mut random = Random::new(seed as u64 + 1);
        let steps = vec![Step::feed(0, 0, &prompt(7, 70)), Step::generate(0, 70, 12)];
        let whole = RunSpec {
            steps,
            ..spec(Model::Dense)
        };
        let expected = stock(device, &whole);
        let (minimum, everything) = budgets(device, &whole, paging);
        let paged = on(
            device,
            config(whole.model, paging, Budget::Bytes(minimum + everything / 4)),
        );
        let paged = PagedDevice::new(paged).unwrap();
        let bounds = (minimum, everything);
        let found = run_under_changing_budgets(&paged, &whole, bounds, &mut random);
        assert_same(&expected, &found, &paging);
    }
}

#[test]
fn the_budget_covers_what_lies_in_the_gpus_memory_and_nothing_else() {
    let Some(device) = gpu() else { return };
    let spec = spec(Model::Dense);
    let ample = config(spec.model, Paging::Weights, Budget::Bytes(AMPLE_BYTES));
    let scratch = |config: PagingConfig| {
        let paged = PagedDevice::new(config).unwrap();
        let memory = paged.memory();
        let path = &spec.model.file().path;
        let model = LlamaModel::load(path, Placement::Paged(&paged)).unwrap();
        // Before there is a context: nothing but what llama.cpp keeps to itself.
        let bytes = paged.report().scratch_bytes;
        drop(model);
        (bytes, memory, paged.memory_name())
    };
    let (in_memory, none, name) = scratch(ample.clone());
    assert!(
        in_memory > 0,
        "the token embedding is in the budget's memory"
    );
    assert_eq!((none, name.as_str()), (None, "memory"));
    let (in_gpu, memory, name) = scratch(on(device, ample));
    assert_eq!(in_gpu, 0, "the token embedding is in the machine's memory");
    assert!(memory.unwrap().total_bytes > 0);
    assert_eq!(name, format!("the memory of {}", device.name()));
}

#[test]
fn an_automatic_budget_is_of_the_gpus_memory() {
    let Some(device) = gpu() else { return };
    let automatic = config(Model::Tiny, Paging::Weights, Budget::Auto);
    let paged = PagedDevice::new(on(device, automatic)).unwrap();
    let (free, total) = device.memory_bytes();
    let budget = paged.report().budget_bytes;
    assert!(
        budget > 0 && budget < free && free <= total,
        "{budget} of {free}"
    );
}
