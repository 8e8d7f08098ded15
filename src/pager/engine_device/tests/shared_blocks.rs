//! Small weights share blocks, which a device gives back as a whole only: what is counted of
//! them is what they take, whichever of them leave.

use std::collections::BTreeMap;

use super::*;
use crate::ggml::InnerDevice;
use crate::pager::block::Arena;
use crate::pager::model_index::TensorLocation;
use crate::pager::{Backing, GroupKey, Pager, PagerConfig, Place, TensorId, TensorSpec};

const LAYERS: u32 = 6;
/// Weights of a layer, by role and size in bytes.
const WEIGHTS: [(&str, usize); 4] = [
    ("attn_q.weight", 2000),
    ("ffn_up.weight", 6000),
    ("ffn_down.weight", 5000),
    ("ffn_norm.weight", 130),
];
const AMPLE: u64 = 1 << 20;

fn pager(engine: DeviceEngine, inner: InnerDevice) -> Pager {
    let config = PagerConfig {
        budget_bytes: AMPLE,
        ..PagerConfig::of_test(Arena::of(inner))
    };
    Pager::new(config, Box::new(engine))
}

/// Bytes of the blocks and the ring that the pager has taken.
fn taken(pager: &Pager) -> u64 {
    let blocks = pager.ids().filter_map(|id| match &pager.tensor(id).place {
        Place::Resident(block, _) => Some((Arc::as_ptr(block), block.bytes())),
        _ => None,
    });
    let blocks: BTreeMap<_, _> = blocks.collect();
    (blocks.values().sum::<usize>() + pager.ring.bytes()) as u64
}

#[test]
fn what_stays_of_a_shared_block_is_placed_anew() {
    let Rig {
        engine,
        inner,
        files,
        device,
    } = Rig::plain();
    let file = files.open(Access::Cached);
    let mut pager = pager(engine, inner);
    let (mut specs, mut start) = (Vec::new(), 77);
    for layer in 0..LAYERS {
        for (role, bytes) in WEIGHTS {
            let location = TensorLocation {
                file: Arc::clone(&file),
                offset: start as u64,
                bytes: bytes as u64,
            };
            start += bytes;
            specs.push(TensorSpec {
                group: GroupKey::Layer(layer),
                role: role.to_owned(),
                bytes,
                span_bytes: bytes,
                read_behind_bytes: 0,
                slice_bytes: None,
                backing: Backing::Weight(location),
            });
        }
    }
    let ids = pager.add_tensors(specs).unwrap();
    let mut known: Vec<(TensorId, Vec<u8>)> = Vec::new();
    let mut start = 77;
    for (index, id) in ids.into_iter().enumerate() {
        let bytes = WEIGHTS[index % WEIGHTS.len()].1;
        let bytes: Vec<u8> = (start..start + bytes).map(model_byte).collect();
        start += bytes.len();
        pager.write(id, 0, &bytes).unwrap();
        known.push((id, bytes));
    }
    let whole = pager.usage().arena_bytes;
    pager.set_budget(whole / 8, false).ok();
    let least = pager.least_bytes();
    let mut parts = 0;
    for step in [40, 33, 12, 25, 7, 38, 0, 19, 40] {
        let budget = least + (whole - least) * step / 40;
        pager.set_budget(budget, false).unwrap();
        let usage = pager.usage();
        assert_eq!(taken(&pager), usage.arena_bytes, "{budget}");
        assert!(usage.arena_bytes <= budget);
        // Some of a layer stays, some does not.
        let stays = |(id, _): &(TensorId, _)| !pager.is_streamed(*id);
        let layers = known.chunks(WEIGHTS.len());
        parts += layers
            .filter(|layer| layer.iter().any(stays) && !layer.iter().all(stays))
            .count();
        for (id, bytes) in &known {
            let mut found = vec![0; bytes.len()];
            pager.read(*id, 0, &mut found).unwrap();
            assert!(found == *bytes, "{id:?} within {budget}");
        }
    }
    assert!(parts > 0, "no block was left in part");
    drop(pager);
    assert_eq!(device.take_complaints(), [""; 0]);
}
