//! The device for tests: without paging it computes what the CPU computes, whatever its
//! streams dawdle; paged under any budget it does too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use async_device::{AsyncDevice, Counters, Delays, Options};
use rpaged::device::{Budget, Faults, PagedDevice, PagingConfig};

use super::case::{AMPLE_BYTES, Paging, Size, budgets_under, config, run_under_changing_budgets};
use super::covering::pairwise;
use crate::harness::{
    Cache, Flash, Placement, RunSpec, Step, assert_same, difference, inner_of, run, run_paged,
    stock,
};
use crate::models::random::Random;
use crate::models::{Model, prompt};

/// What a device is like.
pub struct Flavour {
    pub asynchronous: bool,
    delays: Delays,
    pinned: bool,
    loose: bool,
}

/// With delays and without, with pinned memory and without, one that promises as little as
/// can be, and one that does everything at once.
pub const FLAVOURS: [Flavour; 5] = [
    flavour(true, Delays::None, false, false),
    flavour(true, Delays::Short, true, false),
    flavour(true, Delays::Long, false, false),
    flavour(true, Delays::Long, true, true),
    flavour(false, Delays::None, false, false),
];

const fn flavour(asynchronous: bool, delays: Delays, pinned: bool, loose: bool) -> Flavour {
    Flavour {
        asynchronous,
        delays,
        pinned,
        loose,
    }
}

/// Those of the catalogue that page in ways of their own.
const KINDS: [Model; 5] = [
    Model::Tiny,
    Model::Experts,
    Model::SlidingWindow,
    Model::Recurrent,
    Model::Hybrid,
];

pub fn device(flavour: usize, seed: u64) -> AsyncDevice {
    let flavour = &FLAVOURS[flavour];
    AsyncDevice::new(Options {
        asynchronous: flavour.asynchronous,
        delays: flavour.delays,
        seed,
        pinned: flavour.pinned,
        loose: flavour.loose,
        captures: flavour.delays == Delays::Short,
        padded: true,
        ..Options::default()
    })
    .unwrap()
}

/// Nothing was done wrong with the device, and nothing of it is left.
pub fn complaint(device: &AsyncDevice) -> Option<String> {
    let complaints = device.take_complaints();
    if !complaints.is_empty() {
        return Some(format!("{complaints:#?}"));
    }
    let left = device.counters();
    let nothing = left.buffers + left.streams + left.events == 0;
    (!nothing).then(|| format!("left behind: {left:?}"))
}

/// One run, paged over a device for tests.
#[derive(Clone, Debug)]
pub struct Run {
    pub spec: RunSpec,
    pub flavour: usize,
    pub seed: u64,
    pub paging: Paging,
    pub size: Size,
    pub prefetch: bool,
}

impl Run {
    /// The device's settings under `budget`.
    pub fn config(&self, on: &AsyncDevice, budget: u64) -> PagingConfig {
        PagingConfig {
            inner: Some(inner_of(on)),
            prefetch: self.prefetch,
            faults: self.faults(),
            ..config(self.spec.model, self.paging, Budget::Bytes(budget))
        }
    }

    /// Every second one reads the model's files again and again: through staging memory.
    fn faults(&self) -> Faults {
        Faults {
            keep_bytes_max: self.seed.is_multiple_of(2).then_some(0),
            ..Faults::default()
        }
    }

    /// The smallest legal budget, and the one that keeps everything, in bytes.
    pub fn budgets(&self) -> (u64, u64) {
        type Known = Mutex<HashMap<(RunSpec, Paging), Arc<OnceLock<(u64, u64)>>>>;
        static KNOWN: OnceLock<Known> = OnceLock::new();
        let known = KNOWN.get_or_init(Mutex::default);
        let key = (self.spec.clone(), self.paging);
        let slot = Arc::clone(known.lock().unwrap().entry(key).or_default());
        *slot.get_or_init(|| {
            let on = device(0, 1);
            budgets_under(&self.config(&on, AMPLE_BYTES), &self.spec)
        })
    }

    pub fn budget_bytes(&self) -> u64 {
        match self.size {
            Size::Above => AMPLE_BYTES,
            Size::Smallest => self.budgets().0,
            Size::Percent(percent) => {
                let (minimum, everything) = self.budgets();
                minimum + (everything - minimum) * percent / 100
            }
        }
    }

    /// Runs it; what is wrong with it, if anything, and what the device did.
    fn check(&self) -> (Option<String>, Counters) {
        let on = device(self.flavour, self.seed);
        let config = self.config(&on, self.budget_bytes());
        let wrong = match run_paged(&config, &self.spec) {
            Ok(found) => difference(&stock(&self.spec), &found),
            Err(sentence) => Some(sentence),
        };
        let both = [wrong, complaint(&on)].into_iter().flatten();
        let both: Vec<String> = both.collect();
        ((!both.is_empty()).then(|| both.join("\n")), on.counters())
    }
}

/// Runs all and panics with those that went wrong, the first few in full. Streams must have
/// waited for each other somewhere: else nothing was tried.
fn check_all(runs: impl IntoIterator<Item = Run>) {
    let (mut count, mut wrong, mut waits) = (0, Vec::new(), 0);
    for run in runs {
        count += 1;
        let (found, counters) = run.check();
        waits += counters.waits;
        wrong.extend(found.map(|sentence| format!("{sentence}\n    in {run:?}")));
    }
    let shown = wrong[..wrong.len().min(4)].join("\n  ");
    let number = wrong.len();
    assert!(
        wrong.is_empty(),
        "{number} of {count} are wrong:\n  {shown}"
    );
    assert!(waits > 0, "no stream ever waited in {count} runs");
}

/// One of several, by a seed.
pub fn pick<T: Copy, const N: usize>(among: [T; N], seed: u64) -> T {
    among[usize::try_from(seed % N as u64).unwrap()]
}

#[test]
fn all_layers_on_the_device_without_paging() {
    for (seed, model) in (1..).zip(Model::ALL) {
        for flavour in 0..FLAVOURS.len() {
            let spec = RunSpec {
                ubatch: 7,
                flash: pick([Flash::On, Flash::Off], seed),
                cache: pick([Cache::F16, Cache::Q8], seed / 2),
                ..RunSpec::new(model, 24, 3)
            };
            let on = device(flavour, seed);
            let found = run(Placement::On(&on), &spec)
                .unwrap_or_else(|failure| panic!("{failure:?}: {:#?}", on.take_complaints()));
            assert_same(&stock(&spec), &found, &(model, flavour));
            let counters = on.counters();
            assert!(counters.graphs > 0, "{counters:?}");
            assert_eq!(complaint(&on), None, "{model:?} {flavour}");
        }
    }
}

/// Settings of which any two meet, for one model.
fn check_selection(model: Model) {
    let axes = [4, 2, 3, 2, 2, 3, FLAVOURS.len()];
    let runs = pairwise(&axes)
        .into_iter()
        .zip(1..)
        .map(|(indices, seed)| Run {
            spec: RunSpec {
                ubatch: [1, 7, 512][indices[2]],
                flash: [Flash::On, Flash::Off][indices[3]],
                cache: [Cache::F16, Cache::Q8][indices[4]],
                ..RunSpec::new(model, 20, 3)
            },
            flavour: indices[6],
            seed,
            paging: [Paging::Both, Paging::Weights, Paging::States][indices[5]],
            size: [
                Size::Smallest,
                Size::Percent(30),
                Size::Percent(70),
                Size::Above,
            ][indices[0]],
            prefetch: [true, false][indices[1]],
        });
    check_all(runs);
}

#[test]
fn dense_models() {
    for model in [Model::Dense, Model::DenseF16, Model::DenseQ4K] {
        check_selection(model);
    }
}

#[test]
fn dense_models_of_other_kinds() {
    for model in [Model::DenseQ4, Model::Tied, Model::Split] {
        check_selection(model);
    }
}

#[test]
fn mixture_of_experts() {
    check_selection(Model::Experts);
}

#[test]
fn attention_of_other_kinds() {
    for model in [Model::SlidingWindow, Model::Biases, Model::FusedAttention] {
        check_selection(model);
    }
}

#[test]
fn recurrent_states() {
    for model in [Model::Recurrent, Model::Hybrid, Model::ShortConvolution] {
        check_selection(model);
    }
}

#[test]
fn many_seeds_of_delays_under_the_smallest_budget() {
    for model in KINDS {
        let runs = (1..=12).map(|seed| Run {
            spec: RunSpec {
                ubatch: 4,
                flash: pick([Flash::On, Flash::Off], seed / 2),
                ..RunSpec::new(model, 7, 3)
            },
            flavour: pick([1, 2, 3], seed),
            seed,
            paging: pick([Paging::Both, Paging::States, Paging::Weights], seed),
            size: pick([Size::Smallest, Size::Percent(10)], seed),
            prefetch: seed % 4 != 0,
        });
        check_all(runs);
    }
}

/// What llama.cpp saves, takes back, copies and clears, with copies in flight.
#[test]
fn states_saved_restored_copied_and_cleared() {
    let save = vec![
        Step::feed(0, 0, &prompt(3, 17)),
        Step::generate(0, 17, 1),
        Step::Save(0),
        Step::feed(0, 18, &prompt(4, 9)),
        Step::Restore(0),
        Step::generate(0, 18, 2),
        Step::Clear { data: true },
        Step::feed(0, 0, &prompt(5, 9)),
    ];
    let sequences = vec![
        Step::feed(0, 0, &prompt(3, 17)),
        Step::Copy { from: 0, to: 1 },
        Step::feed(1, 17, &prompt(4, 5)),
        Step::SaveSequence {
            slot: 0,
            sequence: 1,
        },
        Step::feed(0, 17, &prompt(5, 5)),
        Step::RestoreSequence {
            slot: 0,
            sequence: 0,
        },
        Step::generate(0, 22, 2),
    ];
    let mut runs = Vec::new();
    for model in KINDS {
        for (number, steps) in [&save, &sequences].into_iter().enumerate() {
            for (seed, size) in (1..).zip([Size::Smallest, Size::Percent(40)]) {
                for (flavour, paging) in [(2, Paging::Both), (3, Paging::States), (4, Paging::Both)]
                {
                    runs.push(Run {
                        spec: RunSpec {
                            context: 512,
                            ubatch: 7,
                            sequences: 2,
                            unified: number == 1 && seed == 1,
                            steps: steps.clone(),
                            ..RunSpec::new(model, 1, 0)
                        },
                        flavour,
                        seed,
                        paging,
                        size,
                        prefetch: true,
                    });
                }
            }
        }
    }
    check_all(runs);
}

/// The rows of the second sequence lie behind all of the first one's, and are fetched alone.
#[test]
fn sequences_with_rows_of_their_own() {
    let steps = vec![
        Step::feed(0, 0, &prompt(3, 17)),
        Step::feed(1, 0, &prompt(4, 9)),
        Step::feed(1, 9, &prompt(5, 5)),
        Step::feed(0, 17, &prompt(6, 5)),
    ];
    let mut runs = Vec::new();
    for (seed, model) in (1..).zip([Model::Dense, Model::Tiny, Model::SlidingWindow]) {
        for flash in [Flash::On, Flash::Off] {
            for (flavour, size) in [
                (3, Size::Smallest),
                (3, Size::Percent(40)),
                (1, Size::Smallest),
            ] {
                runs.push(Run {
                    spec: RunSpec {
                        context: 512,
                        ubatch: 7,
                        sequences: 2,
                        unified: false,
                        flash,
                        steps: steps.clone(),
                        ..RunSpec::new(model, 1, 0)
                    },
                    flavour,
                    seed,
                    paging: pick([Paging::Both, Paging::States], seed),
                    size,
                    prefetch: true,
                });
            }
        }
    }
    check_all(runs);
}

/// Kernels read rows of keys in long steps, and what is behind the last one with them.
#[test]
fn quantised_states_without_flash_attention() {
    for model in [Model::Dense, Model::DenseQ4K, Model::Tied] {
        let runs = (1..=6).map(|seed| Run {
            spec: RunSpec {
                ubatch: pick([16, 512], seed),
                flash: Flash::Off,
                cache: Cache::Q8,
                ..RunSpec::new(model, 40, 3)
            },
            flavour: pick([1, 2, 3], seed),
            seed,
            paging: pick([Paging::Both, Paging::States], seed),
            size: pick([Size::Smallest, Size::Percent(10), Size::Percent(40)], seed),
            prefetch: seed % 4 != 0,
        });
        check_all(runs);
    }
}

#[test]
fn budgets_that_change_between_tokens_change_nothing() {
    for (flavour, model) in [1, 2, 3, 4, 2].into_iter().zip(KINDS) {
        for paging in [Paging::Both, Paging::States, Paging::Weights] {
            let spec = RunSpec {
                ubatch: 32,
                context: 512,
                ..RunSpec::new(model, 40, 8)
            };
            let run = Run {
                spec: spec.clone(),
                flavour,
                seed: 9,
                paging,
                size: Size::Percent(30),
                prefetch: true,
            };
            let on = device(flavour, run.seed);
            let paged = PagedDevice::new(run.config(&on, run.budget_bytes())).unwrap();
            let mut random = Random::new(5);
            let found = run_under_changing_budgets(&paged, &spec, run.budgets(), &mut random);
            assert_same(&stock(&spec), &found, &(model, paging));
            let changes = paged.take_changes();
            let moves = changes
                .iter()
                .map(|change| change.moves.len())
                .sum::<usize>();
            assert!(moves > 0, "{model:?} {paging:?}: nothing moved");
            drop(paged);
            assert_eq!(complaint(&on), None, "{model:?} {paging:?}");
        }
    }
}

/// The n-th request, or its read, goes wrong.
#[test]
fn failed_copy_is_a_sentence_and_the_next_run_is_right() {
    let spec = RunSpec {
        ubatch: 4,
        ..RunSpec::new(Model::Tiny, 7, 3)
    };
    let faults = |number| {
        [
            Faults {
                fail_request: Some(number),
                ..Faults::default()
            },
            Faults {
                failed_read: Some(number),
                ..Faults::default()
            },
            Faults {
                refuse_request: Some(number),
                ..Faults::default()
            },
        ]
    };
    let mut failed = 0;
    for paging in [Paging::Both, Paging::Weights] {
        for number in (0..60).step_by(4) {
            for (flavour, faults) in (1..).zip(faults(number)) {
                let run_on = Run {
                    spec: spec.clone(),
                    flavour,
                    seed: number,
                    paging,
                    size: Size::Smallest,
                    prefetch: number % 8 == 0,
                };
                let on = device(flavour, number);
                let faults = Faults {
                    keep_bytes_max: (number % 8 == 0).then_some(0),
                    ..faults
                };
                let config = PagingConfig {
                    faults,
                    ..run_on.config(&on, run_on.budget_bytes())
                };
                let paged = PagedDevice::new(config).unwrap();
                let outcomes = [(); 2].map(|()| run(Placement::Paged(&paged), &spec));
                let error = paged.take_error();
                let right = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok());
                for found in right {
                    assert_same(&stock(&spec), found, &run_on);
                }
                let wrong = outcomes.iter().filter(|outcome| outcome.is_err()).count();
                assert!(wrong <= 1, "{faults:?} struck twice in {run_on:?}");
                assert_eq!(wrong == 1, error.is_some(), "{error:?} in {run_on:?}");
                failed += wrong;
                drop(paged);
                assert_eq!(complaint(&on), None, "{run_on:?}");
            }
        }
    }
    assert!(failed > 20, "only {failed} faults struck a run");
}

#[test]
fn memory_that_the_device_does_not_give_is_a_sentence() {
    let spec = RunSpec::new(Model::Dense, 20, 3);
    let on = AsyncDevice::new(Options {
        memory_bytes: 1 << 20,
        ..Options::default()
    })
    .unwrap();
    let ample = PagingConfig {
        inner: Some(inner_of(&on)),
        ..config(Model::Dense, Paging::Both, Budget::Bytes(AMPLE_BYTES))
    };
    let sentence = run_paged(&ample, &spec).unwrap_err();
    assert!(sentence.contains("--vram-budget"), "{sentence}");
    assert_eq!(complaint(&on), None);
}

#[test]
fn weights_that_are_not_paged_and_do_not_fit_hear_what_would_help() {
    let spec = RunSpec::new(Model::Tiny, 9, 1);
    let on = device(0, 1);
    let config = |paging| PagingConfig {
        inner: Some(inner_of(&on)),
        ..config(spec.model, paging, Budget::Bytes(1000))
    };
    let sentence = run_paged(&config(Paging::States), &spec).unwrap_err();
    let has = |text: &str| sentence.contains(text);
    assert!(has("VRAM budget") && has("--dynamic-layers"), "{sentence}");
    assert!(has("--device none"), "{sentence}");
    let sentence = run_paged(&config(Paging::Both), &spec).unwrap_err();
    assert!(!sentence.contains("--device none"), "{sentence}");
}
