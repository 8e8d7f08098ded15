use super::*;
use proptest::prelude::*;

const SHAPE: Shape = Shape {
    ring_bytes: 40,
    segment_bytes: 20,
    cache_bytes: 100,
    cache_segment_bytes: 50,
};

fn read(node: usize, tensor: u32, bytes: usize) -> Use {
    Use {
        node,
        tensor: TensorId(tensor),
        range: 0..bytes,
        written: None,
        state: None,
        cache: None,
    }
}

fn all(count: usize, uses: &[Use]) -> Nodes<'_> {
    Nodes {
        count,
        uses,
        hosts: &[],
    }
}

fn bytes(_: TensorId, range: &Range<usize>) -> usize {
    range.len()
}

fn cut_at(schedule: &Schedule) -> Vec<usize> {
    let segments = schedule.segments()[1..].iter();
    segments.map(|segment| segment.nodes.start).collect()
}

#[test]
fn a_graph_without_streamed_tensors_is_one_segment() {
    let mut schedule = Schedule::default();
    schedule
        .rebuild(all(7, &[]), SHAPE, bytes, |_| false)
        .unwrap();
    assert_eq!(schedule.segments().len(), 1);
    assert_eq!(schedule.segments()[0].nodes, 0..7);
}

#[test]
fn the_cut_lies_before_the_last_norm_of_the_gap() {
    let uses = [read(2, 0, 10), read(3, 1, 10), read(9, 2, 10)];
    let mut schedule = Schedule::default();
    let norm = |node| node == 5 || node == 7;
    schedule
        .rebuild(all(12, &uses), SHAPE, bytes, norm)
        .unwrap();
    assert_eq!(cut_at(&schedule), [7]);
    schedule
        .rebuild(all(12, &uses), SHAPE, bytes, |_| false)
        .unwrap();
    assert_eq!(cut_at(&schedule), [9]);
}

#[test]
fn needs_of_one_tensor_become_their_hull_and_writes_stay_apart() {
    let mut write = read(1, 0, 10);
    write.range = 20..30;
    write.written = Some(22..25);
    let mut schedule = Schedule::default();
    let uses = [read(0, 0, 10), write];
    schedule
        .rebuild(all(3, &uses), SHAPE, bytes, |_| false)
        .unwrap();
    let segment = &schedule.segments()[0];
    assert_eq!(schedule.needs(segment)[0].range, 0..30);
    assert_eq!(schedule.writes(segment), [(TensorId(0), 22..25)]);
}

#[test]
fn the_states_of_a_layer_stay_together() {
    let state = |node, layer, tensor| Use {
        state: Some(GroupKey::Layer(layer)),
        ..read(node, tensor, 15)
    };
    let uses = [
        read(0, 0, 10),
        state(1, 1, 1),
        state(2, 1, 2),
        state(3, 2, 3),
        read(4, 4, 10),
    ];
    let mut schedule = Schedule::default();
    schedule
        .rebuild(all(5, &uses), SHAPE, bytes, |_| false)
        .unwrap();
    assert_eq!(cut_at(&schedule), [1, 3, 4]);
}

#[test]
fn a_node_that_reads_more_than_the_ring_says_how_much() {
    let mut schedule = Schedule::default();
    let uses = [read(1, 0, 25), read(1, 1, 25)];
    let refused = schedule.rebuild(all(2, &uses), SHAPE, bytes, |_| false);
    assert_eq!(refused, Err(TooLarge { bytes: 50 }));
}

/// Ranges that neither touch nor overlap, from lengths of gaps and of ranges.
fn hosts_of(lengths: &[(usize, usize)]) -> Vec<Range<usize>> {
    let mut end = 0;
    let ranges = lengths.iter().map(|(gap, length)| {
        let start = end + gap;
        end = start + length;
        start..end
    });
    ranges.filter(|host| host.end <= 60).collect()
}

proptest! {
    #[test]
    fn segments_cover_the_graph_and_hold_every_use_in_a_place_of_its_own(
        mut nodes in prop::collection::vec(
            (0usize..60, 0u32..9, 1usize..20, prop::bool::weighted(0.2)), 0..40),
        ring_bytes in 40usize..100,
        lengths in prop::collection::vec((0usize..12, 1usize..6), 0..8),
    ) {
        let hosts = hosts_of(&lengths);
        let is_on_host = |node: usize| hosts.iter().any(|host| host.contains(&node));
        nodes.sort_unstable();
        nodes.dedup_by_key(|used| used.0);
        let uses: Vec<Use> = nodes
            .iter()
            .map(|&(node, tensor, bytes, state)| Use {
                state: state.then_some(GroupKey::Layer(tensor)),
                ..read(node, tensor, bytes)
            })
            .collect();
        let mut schedule = Schedule::default();
        let shape = Shape { ring_bytes, segment_bytes: ring_bytes / 2, ..SHAPE };
        let graph = Nodes { hosts: &hosts, ..all(60, &uses) };
        schedule.rebuild(graph, shape, bytes, |node| node % 3 == 0).unwrap();
        let (mut end, mut on_host) = (0, 0);
        for segment in schedule.segments() {
            prop_assert_eq!(segment.nodes.start, end);
            end = segment.nodes.end;
            let needs = schedule.needs(segment);
            if let Some(host) = segment.host {
                prop_assert_eq!(&segment.nodes, &hosts[host]);
                prop_assert!(needs.is_empty() && schedule.writes(segment).is_empty());
                prop_assert_eq!(host, on_host);
                on_host += 1;
                continue;
            }
            prop_assert!(!segment.nodes.clone().any(is_on_host));
            for used in uses.iter().filter(|used| segment.nodes.contains(&used.node)) {
                prop_assert!(needs.iter().any(|need| need.tensor == used.tensor
                    && need.range.start <= used.range.start
                    && used.range.end <= need.range.end));
            }
            let mut places: Vec<Range<usize>> =
                needs.iter().map(|need| need.at..need.at + need.range.len()).collect();
            places.sort_by_key(|place| place.start);
            prop_assert!(places.windows(2).all(|pair| pair[0].end <= pair[1].start));
            prop_assert!(places.last().is_none_or(|place| place.end <= ring_bytes));
        }
        // Nothing is needed that only host segments use.
        let of_device = uses.iter().filter(|used| !is_on_host(used.node));
        let used: Vec<TensorId> = of_device.map(|used| used.tensor).collect();
        for segment in schedule.segments() {
            let needs = schedule.needs(segment);
            prop_assert!(needs.iter().all(|need| used.contains(&need.tensor)));
        }
        prop_assert_eq!(end, 60);
        prop_assert_eq!(on_host, hosts.len());
    }
}
