#![allow(
    unsafe_code,
    reason = "plays the inner backend, which writes by address"
)]
//! The pager against an oracle that keeps everything: random budgets, delays, accesses
//! from outside between passes; each byte that a segment sees must be the oracle's.

use std::io::Write;
use std::sync::Arc;

use proptest::prelude::*;

use super::engine_host::{Faults, HostEngine};
use super::storage::{Access, StoreFile};
use super::*;

const LAYERS: u32 = 5;
const WEIGHT_BYTES: usize = 700;
const STATE_BYTES: usize = 320;
const ROW_BYTES: usize = 16;

/// A pager over weights in a file and states in memory, and what they should hold.
struct Stage {
    pager: Pager,
    weights: Vec<TensorId>,
    states: Vec<TensorId>,
    file: Vec<u8>,
    oracle: Vec<Vec<u8>>,
    _folder: tempfile::TempDir,
}

impl Stage {
    fn new(budget_bytes: u64, faults: Faults) -> Result<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let bytes: Vec<u8> = (0..LAYERS as usize * WEIGHT_BYTES)
            .map(|index| u8::try_from(index * 7 % 251).unwrap())
            .collect();
        std::fs::File::create(&path)
            .unwrap()
            .write_all(&bytes)
            .unwrap();
        let file = Arc::new(StoreFile::open(&path, Access::Direct).unwrap());
        let config = PagerConfig {
            limits: Limits {
                budget_bytes,
                resident_groups_max: None,
            },
            poison: true,
            alignment: 64,
            states_follow: true,
        };
        let engine = HostEngine::new(1, faults).unwrap();
        let mut pager = Pager::new(config, Box::new(engine));
        let offset = |layer: u32| layer as usize * WEIGHT_BYTES;
        let weights = pager.add_tensors(
            (0..LAYERS)
                .map(|layer| {
                    let location = TensorLocation {
                        file: Arc::clone(&file),
                        offset: offset(layer) as u64,
                        bytes: WEIGHT_BYTES as u64,
                    };
                    spec(layer, WEIGHT_BYTES, Backing::Weight(location))
                })
                .collect(),
        )?;
        for (id, layer) in weights.iter().zip(0..) {
            pager.write(*id, 0, &bytes[offset(layer)..][..WEIGHT_BYTES])?;
        }
        let store = Arc::new(HostMemory::new(LAYERS as usize * STATE_BYTES).unwrap());
        let states = pager.add_tensors(
            (0..LAYERS)
                .map(|layer| {
                    let base = layer as usize * STATE_BYTES;
                    spec(layer, STATE_BYTES, Backing::State(Arc::clone(&store), base))
                })
                .collect(),
        )?;
        let oracle = vec![vec![0; STATE_BYTES]; LAYERS as usize];
        Ok(Self {
            pager,
            weights,
            states,
            file: bytes,
            oracle,
            _folder: folder,
        })
    }

    /// One pass: each layer reads its weight and a part of its state, and writes a row.
    fn pass(&mut self, seed: usize, prefetch: bool) -> Result<()> {
        for layer in 0..LAYERS as usize {
            let row = (seed + layer * 3) % (STATE_BYTES / ROW_BYTES);
            let written = row * ROW_BYTES..(row + 1) * ROW_BYTES;
            if let Some(group) = self.pager.streamed_group(self.weights[layer]) {
                let needs = self.needs(layer, written.end);
                self.pager.require(group, &needs)?;
                let next = (layer + 1) % LAYERS as usize;
                if let Some(ahead) = self.pager.streamed_group(self.weights[next])
                    && prefetch
                {
                    let needs = self.needs(next, STATE_BYTES / 2);
                    self.pager
                        .prefetch([(ahead, needs.as_slice())].into_iter())?;
                }
                self.pager.wait_ready(group)?;
            }
            let weight = self.bytes_at(self.weights[layer], 0..WEIGHT_BYTES);
            assert_eq!(weight, &self.file[layer * WEIGHT_BYTES..][..WEIGHT_BYTES]);
            let state = self.bytes_at(self.states[layer], 0..written.end);
            assert_eq!(state, &self.oracle[layer][..written.end], "layer {layer}");

            let (address, _) = self.pager.locate(self.states[layer]);
            self.pager.touch(self.states[layer]);
            for byte in written.clone() {
                let value = u8::try_from((seed + byte) % 256).unwrap();
                self.oracle[layer][byte] = value;
                // SAFETY: the state is in its slot, pinned, or resident.
                unsafe { ((address + byte) as *mut u8).write(value) };
            }
            let write = Need {
                tensor: self.states[layer],
                range: written,
            };
            self.pager.write_back(&[write])?;
            self.pager.unpin();
        }
        Ok(())
    }

    fn needs(&self, layer: usize, state_end: usize) -> [Need; 2] {
        [
            Need {
                tensor: self.weights[layer],
                range: 0..WEIGHT_BYTES,
            },
            Need {
                tensor: self.states[layer],
                range: 0..state_end,
            },
        ]
    }

    fn bytes_at(&self, id: TensorId, range: Range<usize>) -> &[u8] {
        let (address, _) = self.pager.locate(id);
        let start = (address + range.start) as *const u8;
        // SAFETY: the tensor is in its slot, pinned and waited for, or resident.
        unsafe { std::slice::from_raw_parts(start, range.len()) }
    }

    /// What llama.cpp does between graphs: sets, clears and reads states.
    fn outside(&mut self, seed: usize) {
        let layer = seed % LAYERS as usize;
        let id = self.states[layer];
        let at = (seed * 5) % (STATE_BYTES - 40);
        match seed % 4 {
            0 => {
                let bytes = [u8::try_from(seed % 251).unwrap(); 40];
                self.pager.write(id, at, &bytes).unwrap();
                self.oracle[layer][at..at + 40].copy_from_slice(&bytes);
            }
            1 => {
                self.pager.fill(id, at..at + 40, 9).unwrap();
                self.oracle[layer][at..at + 40].fill(9);
            }
            2 => {
                self.pager.clear(id, 0).unwrap();
                self.oracle[layer].fill(0);
            }
            _ => {}
        }
        for (id, expected) in self.states.iter().zip(&self.oracle) {
            let mut bytes = vec![1; STATE_BYTES];
            self.pager.read(*id, 0, &mut bytes).unwrap();
            assert_eq!(&bytes, expected);
        }
    }
}

fn spec(layer: u32, bytes: usize, backing: Backing) -> TensorSpec {
    TensorSpec {
        group: GroupKey::Layer(layer),
        bytes,
        span_bytes: bytes,
        backing,
    }
}

/// Bytes that one layer takes in the arena.
const LAYER_BYTES: u64 = 704 + 320;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_byte_is_the_oracles(
        budget in 2 * LAYER_BYTES..7 * LAYER_BYTES,
        seeds in prop::collection::vec(0usize..1000, 1..12),
        delay_seed in 0u64..1000,
        prefetch in prop::bool::ANY,
    ) {
        let faults =
            Faults { delay_seed: Some(delay_seed), delay_us_max: 60, ..Faults::default() };
        let mut stage = Stage::new(budget, faults).unwrap();
        prop_assert!(stage.pager.usage().arena_bytes <= budget);
        for seed in seeds {
            stage.pass(seed, prefetch).unwrap();
            if seed % 3 == 0 {
                stage.outside(seed);
            }
        }
        stage.outside(3);
    }
}

#[test]
fn a_budget_below_the_minimum_names_it() {
    let refused = Stage::new(2 * LAYER_BYTES - 1, Faults::default())
        .err()
        .unwrap();
    assert_eq!(refused.exit_code(), 4);
    let sentence = refused.to_string();
    assert!(
        sentence.contains("minimum") && sentence.contains("--vram-budget"),
        "{sentence}"
    );
}

#[test]
fn each_pass_moves_exactly_what_is_streamed() {
    let mut stage = Stage::new(3 * LAYER_BYTES, Faults::default()).unwrap();
    let usage = stage.pager.usage();
    assert_eq!(usage.resident_layers, 1);
    assert_eq!(usage.streamed_weight_bytes, 4 * WEIGHT_BYTES as u64);
    stage.pass(0, false).unwrap();
    stage.pager.drain().unwrap();
    stage.pager.start_counting();
    stage.pass(1, false).unwrap();
    stage.pager.drain().unwrap();
    let moved = stage.pager.usage().engine;
    let row_ends: usize = (0..LAYERS as usize)
        .filter(|&layer| stage.pager.streamed_group(stage.states[layer]).is_some())
        .map(|layer| (1 + layer * 3) % 20 * 16 + 16)
        .sum();
    assert_eq!(moved.storage_bytes, 4 * WEIGHT_BYTES as u64);
    assert_eq!(moved.link_bytes, row_ends as u64);
    assert_eq!(moved.write_back_bytes, 4 * ROW_BYTES as u64);
}

#[test]
fn a_failed_fetch_is_a_sentence_and_the_next_pass_is_right() {
    for request in 0..8 {
        let faults = Faults {
            fail_request: Some(request),
            ..Faults::default()
        };
        let mut stage = Stage::new(2 * LAYER_BYTES, faults).unwrap();
        let outcome = (0..2).try_for_each(|seed| stage.pass(seed, true));
        let error = outcome.expect_err("one of the requests fails");
        assert_eq!(error.exit_code(), 1, "{error}");
        stage.pager.unpin();
        if stage.pager.check_states().is_ok() {
            // A fetch failed: nothing is lost but the pass.
            stage.outside(3);
            stage.pass(5, true).unwrap();
        }
    }
}

#[test]
fn a_failed_write_back_is_remembered() {
    let faults = Faults {
        fail_request: Some(2),
        ..Faults::default()
    };
    let mut stage = Stage::new(2 * LAYER_BYTES, faults).unwrap();
    // Requests 0 and 1 fetch, 2 writes the first layer's row back.
    assert!(stage.pass(0, true).is_err());
    assert!(stage.pager.check_states().is_err());
}

#[test]
fn nobody_can_read_the_addresses_that_llama_cpp_knows() {
    let reservation = memory::Reservation::new(10_000).unwrap();
    let region = region::query(reservation.base() as *const u8).unwrap();
    assert_eq!(region.protection(), region::Protection::NONE);
}
