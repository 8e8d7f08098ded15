//! The cache alone, against sets of pages.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn layout(lead: usize, slice_bytes: usize, count: usize) -> Layout {
    Layout {
        lead,
        slice_bytes,
        bytes: slice_bytes * count,
        page: 100,
    }
}

fn id(tensor: u32, index: usize) -> SliceId {
    SliceId {
        tensor: TensorId(tensor),
        index,
    }
}

/// Tensors of `count` slices, each a page.
fn cache(pool_pages: usize, tensors: u32, count: usize) -> Cache {
    let mut cache = Cache::default();
    for tensor in 0..tensors {
        cache.add(TensorId(tensor), layout(0, 100, count), false);
    }
    cache.set_pool(pool_pages * 100);
    cache
}

/// One segment that reads slices; how many were absent.
fn read(cache: &mut Cache, slices: &[SliceId], named: bool) -> usize {
    let mut absent = Vec::new();
    for slice in slices {
        if named {
            cache.note_named(*slice);
        }
        if !cache.pin(*slice) {
            absent.push(*slice);
        }
    }
    cache.begin_search();
    absent.iter().for_each(|slice| cache.insert(*slice, true));
    assert!(cache.make_room(|_| true, |_, _| {}));
    cache.unpin();
    absent.len()
}

#[test]
fn pages_of_slices_are_rounded_out() {
    let layout = layout(30, 250, 4);
    assert_eq!(layout.count(), 4);
    assert_eq!(layout.pages_of(&(0..1)), 0..300);
    assert_eq!(layout.pages_of(&(1..2)), 200..600);
    assert_eq!(layout.slices_of(&(249..251)), 0..2);
    assert_eq!(layout.slices_of(&(0..usize::MAX)), 0..4);
    assert_eq!(layout.arena_bytes_max(1), 400);
    assert_eq!(layout.arena_bytes_max(9), 1100);
}

#[test]
fn a_cyclic_scan_finds_what_came_first_again() {
    let mut cache = cache(7, 10, 1);
    let pass = |cache: &mut Cache| -> usize {
        let tensors = (0..10).map(|tensor| id(tensor, 0));
        tensors.map(|slice| read(cache, &[slice], false)).sum()
    };
    assert_eq!(pass(&mut cache), 10);
    for _ in 0..5 {
        assert_eq!(pass(&mut cache), 4, "six stay, the seventh place is shared");
    }
}

#[test]
fn steps_that_name_more_than_there_is_room_for_find_the_same_again() {
    let mut cache = cache(7, 10, 1);
    for step in 0..50 {
        cache.begin_step();
        let tensors = (0..10).map(|tensor| id(tensor, 0));
        let missed: usize = tensors.map(|slice| read(&mut cache, &[slice], true)).sum();
        assert_eq!(missed, if step == 0 { 10 } else { 4 }, "step {step}");
    }
}

#[test]
fn what_steps_name_often_outlives_a_pass_over_everything() {
    let mut cache = cache(6, 3, 8);
    let often = [id(0, 1), id(1, 2), id(2, 3)];
    for _ in 0..4 {
        cache.begin_step();
        read(&mut cache, &often, true);
    }
    for tensor in 0..3 {
        for index in 0..8 {
            read(&mut cache, &[id(tensor, index)], false);
        }
    }
    cache.begin_step();
    assert_eq!(read(&mut cache, &often, true), 0);
}

#[test]
fn what_is_no_longer_named_gives_way_in_time() {
    let mut cache = cache(1, 1, 2);
    for _ in 0..8 {
        cache.begin_step();
        read(&mut cache, &[id(0, 0)], true);
    }
    let mut steps = 0;
    loop {
        cache.begin_step();
        steps += 1;
        read(&mut cache, &[id(0, 1)], true);
        assert!(steps < 20, "the old one is never forgotten");
        let kept_the_new_one = {
            cache.begin_search();
            cache.mark(id(0, 1))
        };
        if kept_the_new_one {
            break;
        }
    }
}

#[test]
fn a_slice_in_flight_or_marked_does_not_go() {
    let mut cache = cache(2, 1, 4);
    read(&mut cache, &[id(0, 0), id(0, 1)], false);
    cache.delay(id(0, 0), Ticket(5));
    cache.begin_search();
    cache.insert(id(0, 2), false);
    assert!(cache.make_room(|ticket| ticket < Ticket(5), |_, _| {}));
    assert!(cache.is_there(id(0, 0)) && !cache.is_there(id(0, 1)));
    cache.insert(id(0, 3), false);
    assert!(!cache.make_room(|ticket| ticket < Ticket(5), |_, _| {}));
    assert!(cache.make_room(|_| true, |_, _| {}));
    assert!(cache.is_there(id(0, 2)) && cache.is_there(id(0, 3)));
}

/// One thing that happens to the cache.
#[derive(Clone, Debug)]
enum Event {
    Read(Vec<(u32, usize)>, bool),
    Prefetch(u32),
    Pool(usize),
    Clear,
}

fn event() -> impl Strategy<Value = Event> {
    let slices = prop::collection::vec((0u32..3, 0usize..6), 1..5);
    prop_oneof![
        6 => (slices, prop::bool::ANY).prop_map(|(slices, named)| Event::Read(slices, named)),
        2 => (0u32..3).prop_map(Event::Prefetch),
        1 => (20usize..60).prop_map(Event::Pool),
        1 => Just(Event::Clear),
    ]
}

/// What the pages of all slices that are there should be.
fn pages_there(cache: &Cache, layouts: &[Layout]) -> BTreeSet<(u32, usize)> {
    let mut pages = BTreeSet::new();
    for (tensor, layout) in (0u32..).zip(layouts) {
        for index in 0..layout.count() {
            if cache.is_there(id(tensor, index)) {
                let bytes = layout.pages_of(&(index..index + 1));
                pages.extend(bytes.step_by(100).map(|page| (tensor, page)));
            }
        }
    }
    pages
}

proptest! {
    #[test]
    fn the_pool_is_kept_and_pages_are_counted_once(
        shapes in prop::collection::vec((0usize..100, 20usize..350), 3),
        events in prop::collection::vec(event(), 1..60),
    ) {
        let layouts: Vec<Layout> =
            shapes.iter().map(|&(lead, bytes)| layout(lead, bytes, 6)).collect();
        let mut cache = Cache::default();
        for (tensor, layout) in (0u32..).zip(&layouts) {
            cache.add(TensorId(tensor), *layout, tensor == 1);
        }
        cache.set_pool(6000);
        // The memory: which pages have been written and not given back.
        let mut memory = pages_there(&cache, &layouts);
        for event in events {
            cache.begin_search();
            let mut gone = Vec::new();
            let mut wanted = Vec::new();
            match event {
                Event::Read(slices, named) => {
                    cache.begin_step();
                    let mut slices: Vec<SliceId> =
                        slices.into_iter().map(|(tensor, index)| id(tensor, index)).collect();
                    slices.sort();
                    slices.dedup();
                    for slice in &slices {
                        if named {
                            cache.note_named(*slice);
                        }
                        if !cache.pin(*slice) {
                            wanted.push(*slice);
                        }
                    }
                    wanted.iter().for_each(|slice| cache.insert(*slice, true));
                    let fits = cache.make_room(|_| true, |id, pages| gone.push((id, pages)));
                    prop_assert_eq!(fits, cache.used_bytes() <= cache.pool_bytes());
                    for slice in &slices {
                        prop_assert!(cache.is_there(*slice), "{slice:?} was pinned and went");
                    }
                    // The pool may be too small for this one; a pager sees to it that not.
                    if !fits {
                        let pinned: BTreeSet<SliceId> = slices.iter().copied().collect();
                        for (tensor, layout) in (0u32..).zip(&layouts) {
                            for index in 0..layout.count() {
                                let slice = id(tensor, index);
                                prop_assert!(!cache.is_there(slice) || pinned.contains(&slice));
                            }
                        }
                    }
                    cache.unpin();
                }
                Event::Prefetch(tensor) => {
                    for index in 0..6 {
                        if !cache.mark(id(tensor, index)) {
                            wanted.push(id(tensor, index));
                        }
                    }
                    wanted.iter().for_each(|slice| cache.insert(*slice, false));
                    let surely = cache.has_room(|_| true);
                    let fits = cache.make_room(|_| true, |id, pages| gone.push((id, pages)));
                    prop_assert!(fits || !surely);
                }
                Event::Pool(pages) => {
                    cache.set_pool(pages * 100);
                    let fits = cache.make_room(|_| true, |id, pages| gone.push((id, pages)));
                    prop_assert!(fits);
                }
                Event::Clear => cache.clear(|id, pages| gone.push((id, pages))),
            }
            for (tensor, pages) in gone {
                for page in pages.step_by(100) {
                    memory.remove(&(tensor.0, page));
                }
            }
            for slice in wanted.iter().filter(|slice| cache.is_there(**slice)) {
                let pages = layouts[slice.tensor.0 as usize].pages_of(&(slice.index..slice.index + 1));
                memory.extend(pages.step_by(100).map(|page| (slice.tensor.0, page)));
            }
            prop_assert_eq!(&memory, &pages_there(&cache, &layouts));
            prop_assert_eq!(memory.len() * 100, cache.used_bytes());
        }
    }
}
