//! The host's copy of what streams.

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::kept::Found;
use super::*;
use crate::pager::storage::StoreFile;

/// Streams the whole model into a buffer, checks it, and says how many bytes were read
/// from the file for that.
fn pass(rig: &mut Rig, file: &Arc<StoreFile>) -> u64 {
    let buffer = rig.buffer(MODEL_BYTES);
    let read = |rig: &Rig| rig.engine.reads.lock().counters().storage_bytes;
    let before = (read(rig), rig.engine.counters());
    for (start, bytes) in [(0, 30_000), (30_000, 5), (30_005, MODEL_BYTES - 30_005)] {
        let offset = start as u64;
        let (from, to) = (from_file(file, offset), in_device(&buffer, start));
        rig.engine
            .submit(request(Direction::In, from, to, bytes))
            .unwrap();
    }
    rig.engine.wait(rig.engine.newest()).unwrap();
    let found = device_bytes(&buffer);
    assert!((0..MODEL_BYTES).all(|at| found[at] == model_byte(at)));
    let after = (read(rig), rig.engine.counters());
    let bytes = after.0 - before.0;
    assert_eq!(after.1.storage_bytes - before.1.storage_bytes, bytes);
    assert_eq!(after.1.link_bytes - before.1.link_bytes, MODEL_BYTES as u64);
    bytes
}

#[test]
fn what_fits_is_read_once() {
    for manner in [with_pinned(), Manner::default()] {
        let mut rig = Rig::new(&manner, setup(1 << 20), Delays::Short, 5);
        let model = rig.files.open(Access::Direct);
        rig.engine.notices();
        assert_eq!(pass(&mut rig, &model), MODEL_BYTES as u64);
        assert_eq!(pass(&mut rig, &model), 0);
        assert_eq!(pass(&mut rig, &model), 0);
        let notices = rig.engine.notices();
        assert_eq!(notices.len(), 1, "{notices:?}");
        assert!(notices[0].contains("kept in"), "{notices:?}");
        rig.check();
    }
}

#[test]
fn what_does_not_fit_is_read_each_time() {
    let keep_bytes = 4 * SMALL.slab_bytes as u64 + 100;
    let mut rig = Rig::new(&with_pinned(), setup(keep_bytes), Delays::Short, 5);
    let model = rig.files.open(Access::Direct);
    assert_eq!(pass(&mut rig, &model), MODEL_BYTES as u64);
    let again = pass(&mut rig, &model);
    assert!(again >= MODEL_BYTES as u64 - keep_bytes, "{again}");
    assert!(again < MODEL_BYTES as u64 - keep_bytes / 2, "{again}");
    assert_eq!(pass(&mut rig, &model), again);
    let notices = rig.engine.notices();
    assert_eq!(notices.len(), 2, "{notices:?}");
    assert!(notices[1].contains("do not hold all"), "{notices:?}");
}

#[test]
fn where_no_more_can_be_pinned_the_rest_is_staged() {
    // The staging memory, and two slabs.
    let manner = Manner {
        pinned_max: Some(3),
        ..Manner::default()
    };
    let mut rig = Rig::new(&manner, setup(1 << 20), Delays::Short, 5);
    let model = rig.files.open(Access::Cached);
    assert_eq!(pass(&mut rig, &model), MODEL_BYTES as u64);
    let again = pass(&mut rig, &model);
    assert!(again > 0 && again < MODEL_BYTES as u64, "{again}");
    let notices = rig.engine.notices();
    assert_eq!(notices.len(), 2, "{notices:?}");
    assert!(notices[1].contains("pins no more"), "{notices:?}");
}

#[test]
fn what_is_spilled_is_never_kept() {
    let mut rig = Rig::new(&with_pinned(), setup(1 << 20), Delays::Short, 5);
    let (spill, buffer) = (rig.files.spill(), rig.buffer(9000));
    for value in [1, 2] {
        spill.write_all_at(&[value; 9000], 0).unwrap();
        let (from, to) = (from_file(&spill, 0), in_device(&buffer, 0));
        let ticket = rig
            .engine
            .submit(request(Direction::In, from, to, 9000))
            .unwrap();
        rig.engine.wait(ticket).unwrap();
        assert_eq!(device_bytes(&buffer), vec![value; 9000]);
    }
}

#[test]
fn memory_that_a_file_is_read_into_keeps_the_order_of_requests() {
    const BYTES: usize = 20_000;
    for seed in 0..20 {
        let mut rig = Rig::new(&with_pinned(), setup(0), Delays::Short, seed);
        let model = rig.files.open(Access::Direct);
        let memory = Arc::new(pinned(BYTES.next_multiple_of(BLOCK_BYTES)));
        let buffers = [0, 1].map(|_| rig.buffer(BYTES));
        // The first reading is into memory that nothing has touched; the second one is into
        // memory that the link copies from.
        for (start, buffer) in [0, 7_000].into_iter().zip(&buffers) {
            let (from, to) = (from_file(&model, start), in_memory(&memory, 0));
            rig.engine
                .submit(request(Direction::In, from, to, BYTES))
                .unwrap();
            let (from, to) = (from_memory(&memory, 0), in_device(buffer, 0));
            rig.engine
                .submit(request(Direction::In, from, to, BYTES))
                .unwrap();
        }
        rig.engine.wait(rig.engine.newest()).unwrap();
        for (start, buffer) in [0, 7_000].into_iter().zip(&buffers) {
            let found = device_bytes(buffer);
            assert!((0..BYTES).all(|at| found[at] == model_byte(start + at)));
        }
        let counters = rig.engine.counters();
        assert_eq!(counters.storage_bytes, 2 * BYTES as u64);
        assert_eq!(counters.link_bytes, 2 * BYTES as u64);
        rig.check();
    }
}

/// Where each byte of a file is kept: address of the memory, place in there, and what
/// brought it.
type Known = Vec<Option<(usize, usize, Ticket)>>;

/// Which reading each block of a memory was taken for.
type Taken = HashMap<(usize, usize), Ticket>;

const FILE_BYTES: usize = 80_000;

/// Searches for bytes and keeps what is absent, as the reader does.
fn ask(
    kept: &mut Kept,
    known: &mut Known,
    (blocks, memories): (&mut Taken, &mut Vec<Arc<HostMemory>>),
    file: &Arc<StoreFile>,
    (offset, bytes, ticket): (usize, usize, Ticket),
) {
    let mut done = 0;
    while done < bytes {
        let at = offset + done;
        let count = match kept.find(file, at as u64, bytes - done) {
            Found::Kept(extent) => {
                for step in 0..extent.bytes {
                    let (memory, place, read) = known[at + step].expect("it was put there");
                    let expected = (Arc::as_ptr(&extent.memory).addr(), extent.at + step);
                    assert_eq!(((memory, place), read), (expected, extent.read));
                }
                extent.bytes
            }
            Found::Absent(count) => {
                assert!(known[at..at + count].iter().all(Option::is_none));
                let memory = |bytes| Ok(pinned(bytes));
                match kept.room(at as u64, count, memory).unwrap() {
                    None => count,
                    Some(mut extent) => {
                        assert!(extent.at + extent.bytes <= extent.memory.bytes());
                        assert_eq!(extent.at % BLOCK_BYTES, at % BLOCK_BYTES);
                        let memory = Arc::as_ptr(&extent.memory).addr();
                        // While it lives, no other one has its address.
                        memories.push(Arc::clone(&extent.memory));
                        let end = extent.at + extent.bytes - 1;
                        for block in extent.at / BLOCK_BYTES..=end / BLOCK_BYTES {
                            let other = blocks.insert((memory, block), ticket);
                            assert_eq!(other, None, "a block of its own");
                        }
                        extent.read = ticket;
                        for step in 0..extent.bytes {
                            known[at + step] = Some((memory, extent.at + step, ticket));
                        }
                        let count = extent.bytes;
                        kept.add(file, at as u64, extent);
                        count
                    }
                }
            }
        };
        assert!(count > 0 && count <= bytes - done);
        done += count;
    }
}

#[test]
fn what_a_failed_reading_leaves_is_given_again() {
    let file = Model::new(&std::env::temp_dir(), 1).open(Access::Cached);
    let slab_bytes = 4 * BLOCK_BYTES;
    let mut kept = Kept::new(Arc::new(Room::new(slab_bytes as u64)), slab_bytes);
    for round in 1..50 {
        let mut taken = 0;
        // All of it in two pieces, the first of them not from the begin of a block.
        for (offset, bytes) in [
            (100, BLOCK_BYTES),
            (20 * BLOCK_BYTES as u64, usize::MAX / 2),
        ] {
            let memory = |bytes| match round {
                1 => Ok(pinned(bytes)),
                _ => panic!("more memory is asked for in round {round}"),
            };
            while let Some(mut extent) = kept.room(offset, bytes - taken, memory).unwrap() {
                extent.read = Ticket(round);
                taken += extent.bytes;
                kept.add(&file, offset + taken as u64, extent);
                if bytes == BLOCK_BYTES {
                    break;
                }
            }
        }
        assert!(taken > slab_bytes / 2, "{taken} bytes in round {round}");
        kept.forget(Ticket(round));
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(60)
    })]

    #[test]
    fn bytes_are_found_where_they_were_put(
        asked in prop::collection::vec((0usize..60_000, 1usize..20_000, any::<bool>()), 1..40),
        slabs in 0u64..20,
    ) {
        let files = Model::new(&std::env::temp_dir(), 1);
        let file = files.open(Access::Cached);
        let slab_bytes = 2 * BLOCK_BYTES;
        let mut kept = Kept::new(Arc::new(Room::new(slabs * slab_bytes as u64)), slab_bytes);
        let mut known: Known = vec![None; FILE_BYTES];
        let (mut blocks, mut memories) = (HashMap::new(), Vec::new());
        for (index, (offset, bytes, fails)) in (1u64..).zip(asked) {
            let what = (offset, bytes, Ticket(index));
            ask(&mut kept, &mut known, (&mut blocks, &mut memories), &file, what);
            if fails {
                kept.forget(Ticket(index));
                let failed = |(_, _, read): &mut (usize, usize, Ticket)| *read == Ticket(index);
                for place in &mut known {
                    place.take_if(failed);
                }
                blocks.retain(|_, read| *read != Ticket(index));
            }
        }
        prop_assert!(blocks.len() as u64 <= slabs * 2);
    }
}
