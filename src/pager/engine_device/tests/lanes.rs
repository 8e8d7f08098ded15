//! What waits between the two streams of copies, and what does not: with fences that come
//! when a test says so.

use std::time::{Duration, Instant};

use super::*;
use crate::ggml::DeviceBuffer;
use crate::pager::engine::Target;

const BYTES: usize = 10_000;
/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);
/// Long enough for what does not wait as it must to go wrong, most of the times.
const CHANCE: Duration = Duration::from_millis(15);

/// A request of one copy that comes after a fence.
fn after(fence: &Fence, direction: Direction, from: Source, to: Target) -> Request {
    Request {
        after: Some(Fence::clone(fence)),
        ..request(direction, from, to, BYTES)
    }
}

/// Submits a request that comes after nothing.
fn submit(rig: &mut Rig, direction: Direction, from: Source, to: Target) -> Ticket {
    let request = request(direction, from, to, BYTES);
    rig.engine.submit(request).unwrap()
}

/// A copy: its direction, and its two ends.
type Way = (Direction, Source, Target);

/// Submits a copy behind a fence, and another one that has the chance to pass it before the
/// fence comes; the ticket of the other one.
fn tempted(rig: &mut Rig, first: Way, other: Way) -> Ticket {
    let (fence, by_hand) = rig.by_hand();
    let first = after(&fence, first.0, first.1, first.2);
    rig.engine.submit(first).unwrap();
    let other = submit(rig, other.0, other.1, other.2);
    std::thread::sleep(CHANCE);
    by_hand.come();
    other
}

/// Blocks until what `ticket` brings is there; panics when it does not come.
fn await_arrival(rig: &Rig, ticket: Ticket) {
    let start = Instant::now();
    while !rig.engine.has_arrived(ticket) {
        assert!(
            start.elapsed() < LONG,
            "{ticket:?} waits for what it need not"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    rig.engine.await_arrival(ticket).unwrap();
}

/// A buffer full of a value.
fn full_of(rig: &Rig, value: u8) -> Arc<DeviceBuffer> {
    let buffer = rig.buffer(BYTES);
    // SAFETY: nobody else knows the buffer.
    unsafe { buffer.fill(0, BYTES, value) };
    buffer
}

/// Memory full of a value, pinned or not.
fn memory_of(value: u8, is_pinned: bool) -> Arc<HostMemory> {
    let memory = match is_pinned {
        true => pinned(BYTES),
        false => HostMemory::new(BYTES).unwrap(),
    };
    // SAFETY: nobody else knows the memory.
    unsafe { memory.fill(0..BYTES, value) };
    Arc::new(memory)
}

/// Where write-backs go: over the link, past staging memory, into a file.
fn targets(rig: &Rig) -> [(Target, Source); 3] {
    let spill = rig.files.spill();
    spill.write_all_at(&[0; BYTES], 0).unwrap();
    let [direct, staged] = [true, false].map(|is_pinned| memory_of(0, is_pinned));
    [
        (in_memory(&direct, 0), from_memory(&direct, 0)),
        (in_memory(&staged, 0), from_memory(&staged, 0)),
        (in_file(&spill, 0), from_file(&spill, 0)),
    ]
}

#[test]
fn a_fetch_passes_a_write_back_that_waits_for_what_computes() {
    for delays in [Delays::None, Delays::Long] {
        let mut rig = Rig::new(&with_pinned(), setup(0), delays, 5);
        let model = rig.files.open(Access::Cached);
        for (to, from) in targets(&rig) {
            let (written, fetched) = (full_of(&rig, 7), rig.buffer(MODEL_BYTES));
            let (fence, by_hand) = rig.by_hand();
            let out = after(&fence, Direction::Out, from_device(&written, 0), to);
            let out = rig.engine.submit(out).unwrap();
            // As much as fills all of the staging memory more than once.
            let source = from_file(&model, 0);
            let fetch = request(Direction::In, source, in_device(&fetched, 0), MODEL_BYTES);
            let fetch = rig.engine.submit(fetch).unwrap();
            await_arrival(&rig, fetch);
            let found = device_bytes(&fetched);
            assert!((0..MODEL_BYTES).all(|at| found[at] == model_byte(at)));
            assert!(rig.engine.arrival(fetch).unwrap().is_none());
            assert!(!rig.engine.has_arrived(out));
            // Tickets complete in order all the same.
            assert!(!rig.engine.is_done(fetch));
            by_hand.come();
            rig.engine.wait(fetch).unwrap();
            assert!(rig.engine.is_done(out));
            let again = full_of(&rig, 0);
            let back = submit(&mut rig, Direction::In, from, in_device(&again, 0));
            rig.engine.wait(back).unwrap();
            assert_eq!(device_bytes(&again), [7; BYTES]);
        }
        rig.check();
    }
}

#[test]
fn what_overwrites_a_place_waits_for_its_write_back() {
    for by_pattern in [false, true] {
        let mut rig = Rig::plain();
        for (to, from) in targets(&rig) {
            let place = full_of(&rig, 7);
            let source = match by_pattern {
                true => Source::Pattern(9),
                false => from_memory(&memory_of(9, true), 0),
            };
            let out = (Direction::Out, from_device(&place, 0), to);
            tempted(&mut rig, out, (Direction::In, source, in_device(&place, 0)));
            let again = full_of(&rig, 0);
            let back = submit(&mut rig, Direction::In, from, in_device(&again, 0));
            rig.engine.wait(back).unwrap();
            assert_eq!(device_bytes(&again), [7; BYTES]);
            assert_eq!(device_bytes(&place), [9; BYTES]);
        }
        rig.check();
    }
}

#[test]
fn what_reads_a_store_waits_for_what_is_written_back_there() {
    let mut rig = Rig::plain();
    for (to, from) in targets(&rig) {
        let (written, fetched) = (full_of(&rig, 7), full_of(&rig, 0));
        let out = (Direction::Out, from_device(&written, 0), to);
        let fetch = tempted(&mut rig, out, (Direction::In, from, in_device(&fetched, 0)));
        rig.engine.wait(fetch).unwrap();
        assert_eq!(device_bytes(&fetched), [7; BYTES]);
    }
    rig.check();
}

#[test]
fn what_was_just_fetched_is_written_back_when_it_is_there() {
    for by_pattern in [false, true] {
        let mut rig = Rig::plain();
        for (to, from) in targets(&rig) {
            let place = full_of(&rig, 0);
            let source = match by_pattern {
                true => Source::Pattern(7),
                false => from_memory(&memory_of(7, true), 0),
            };
            let fetch = (Direction::In, source, in_device(&place, 0));
            tempted(
                &mut rig,
                fetch,
                (Direction::Out, from_device(&place, 0), to),
            );
            let again = full_of(&rig, 0);
            let back = submit(&mut rig, Direction::In, from, in_device(&again, 0));
            rig.engine.wait(back).unwrap();
            assert_eq!(device_bytes(&again), [7; BYTES]);
        }
        rig.check();
    }
}

#[test]
fn what_is_still_to_be_fetched_is_not_overwritten_in_its_store() {
    let mut rig = Rig::plain();
    let store = memory_of(7, true);
    let (place, written) = (full_of(&rig, 0), full_of(&rig, 9));
    let fetch = (Direction::In, from_memory(&store, 0), in_device(&place, 0));
    let out = (
        Direction::Out,
        from_device(&written, 0),
        in_memory(&store, 0),
    );
    let out = tempted(&mut rig, fetch, out);
    rig.engine.wait(out).unwrap();
    assert_eq!(device_bytes(&place), [7; BYTES]);
    assert_eq!(host_bytes(&store)[..BYTES], [9; BYTES]);
    rig.check();
}

/// Reads under way are the host's: nobody waits for them on the device.
#[test]
fn what_is_still_to_be_read_is_not_overwritten_in_its_file() {
    let mut wrong = 0;
    for seed in 0..60 {
        let faults = Faults {
            delay_seed: Some(seed),
            delay_us_max: 400,
            ..Faults::default()
        };
        let setup = Setup { faults, ..setup(0) };
        let mut rig = Rig::new(&with_pinned(), setup, Delays::None, seed);
        for (to, from) in &targets(&rig)[1..] {
            let (place, written) = (full_of(&rig, 1), full_of(&rig, 9));
            submit(&mut rig, Direction::In, from.clone(), in_device(&place, 0));
            let source = from_device(&written, 0);
            let out = submit(&mut rig, Direction::Out, source, to.clone());
            rig.engine.wait(out).unwrap();
            wrong += usize::from(device_bytes(&place) != [0; BYTES]);
            // A reading into memory that nothing before has touched is the host's alone.
            if matches!(from, Source::File { .. }) {
                let memory = memory_of(1, true);
                submit(&mut rig, Direction::In, from.clone(), in_memory(&memory, 0));
                let source = from_device(&place, 0);
                let out = submit(&mut rig, Direction::Out, source, in_memory(&memory, 0));
                rig.engine.wait(out).unwrap();
                wrong += usize::from(host_bytes(&memory)[..BYTES] != [0; BYTES]);
            }
        }
        rig.check();
    }
    assert_eq!(wrong, 0);
}

#[test]
fn a_copy_on_the_host_comes_after_both_streams() {
    let mut rig = Rig::plain();
    // What comes out is copied on.
    let (written, staged, last) = (full_of(&rig, 7), memory_of(0, true), memory_of(0, false));
    let out = (
        Direction::Out,
        from_device(&written, 0),
        in_memory(&staged, 0),
    );
    let copy = (Direction::Out, from_memory(&staged, 0), in_memory(&last, 0));
    let copied = tempted(&mut rig, out, copy);
    rig.engine.wait(copied).unwrap();
    assert_eq!(host_bytes(&last)[..BYTES], [7; BYTES]);
    // What goes in is overwritten then.
    let (place, given) = (full_of(&rig, 0), memory_of(3, false));
    let fetch = (Direction::In, from_memory(&staged, 0), in_device(&place, 0));
    let copy = (
        Direction::Out,
        from_memory(&given, 0),
        in_memory(&staged, 0),
    );
    let copied = tempted(&mut rig, fetch, copy);
    rig.engine.wait(copied).unwrap();
    assert_eq!(device_bytes(&place), [7; BYTES]);
    assert_eq!(host_bytes(&staged)[..BYTES], [3; BYTES]);
    rig.check();
}

/// A request that has copies in both directions arrives with the last of them.
#[test]
fn an_arrival_is_that_of_all_of_a_request() {
    let mut rig = Rig::plain();
    let (place, store) = (full_of(&rig, 7), memory_of(0, true));
    let (fence, by_hand) = rig.by_hand();
    // The direction is that of the counters alone.
    let source = from_device(&place, 0);
    let going = after(&fence, Direction::In, source, in_memory(&store, 0));
    let going = rig.engine.submit(going).unwrap();
    let arrival = rig.engine.arrival(going).unwrap();
    let mut compute = rig.inner.backend().unwrap();
    compute.wait(&arrival.expect("it has not come"));
    let wrote = vec![9; BYTES];
    // SAFETY: the bytes live until the stream was waited for, as the buffer does.
    unsafe { compute.write(&place, 0, wrote.as_ptr(), BYTES) };
    std::thread::sleep(CHANCE);
    by_hand.come();
    rig.engine.wait(going).unwrap();
    compute.synchronize();
    assert_eq!(host_bytes(&store)[..BYTES], [7; BYTES]);
    rig.check();
}

/// A request without copies is done in its turn.
#[test]
fn tickets_complete_in_order() {
    let mut rig = Rig::plain();
    let (place, store) = (full_of(&rig, 7), memory_of(0, false));
    let (fence, by_hand) = rig.by_hand();
    let source = from_device(&place, 0);
    let out = after(&fence, Direction::Out, source, in_memory(&store, 0));
    rig.engine.submit(out).unwrap();
    let nothing = Request {
        direction: Direction::In,
        copies: Vec::new(),
        after: None,
    };
    let nothing = rig.engine.submit(nothing).unwrap();
    await_arrival(&rig, nothing);
    assert!(!rig.engine.is_done(nothing));
    by_hand.come();
    rig.engine.wait(nothing).unwrap();
    assert_eq!(host_bytes(&store)[..BYTES], [7; BYTES]);
}

#[test]
fn a_device_with_one_stream_says_so_once() {
    let mut rig = Rig::new(&with_one_stream(), setup(0), Delays::None, 3);
    let notices = rig.engine.notices();
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(notices[0].contains("on one stream"), "{notices:?}");
    assert_eq!(rig.engine.notices(), [""; 0]);
    let mut rig = Rig::plain();
    assert_eq!(rig.engine.notices(), [""; 0]);
    assert_eq!(rig.device.counters().streams, 2);
}
