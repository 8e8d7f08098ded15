//! From a graph to segments: which nodes run together, which bytes of streamed tensors
//! must be in the ring while they do, and where in the ring. Pure: it sees uses, not
//! tensors.
//!
//! ```text
//!  nodes   n n n n n n n n n n n n n n n n n
//!  uses      A   A A       B B   B     C C
//!  segments |----- A -----|---- B ----|- C -|
//!                         ▲ cut before the norm in the gap, where no backend fuses
//!  ring     |AAAAAAA|BBBBBBBBBB|        C begins anew at the ring's start, and is fetched
//!           |CCCC|                      there as soon as A has run
//! ```
//!
//! A segment takes no more than its share of the ring, so that what the next one needs
//! fits beside it. The same graph gets the same places each time: addresses repeat from
//! token to token.

use std::ops::Range;

use crate::pager::{GroupKey, Need, TensorId};

/// One access of a node to a streamed tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// Index of the node in the graph.
    pub node: usize,
    /// The tensor.
    pub tensor: TensorId,
    /// The bytes that must be there, in units of transfer.
    pub range: Range<usize>,
    /// The bytes that the node writes.
    pub written: Option<Range<usize>>,
    /// The layer whose state it is; None for a weight. The states of a layer that are used
    /// one after the other stay together, because attention reads them at once.
    pub state: Option<GroupKey>,
}

/// What the schedule has to know of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its bytes.
    pub ring_bytes: usize,
    /// Bytes that one segment should take at most.
    pub segment_bytes: usize,
}

/// Nodes that run in one launch of the inner backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The nodes, by index in the graph.
    pub nodes: Range<usize>,
    /// Its range of `Schedule::needs`.
    pub needs: Range<usize>,
    /// Its range of `Schedule::writes`.
    pub writes: Range<usize>,
}

/// A graph cut into segments. Kept from graph to graph, so that a pass allocates nothing.
#[derive(Debug, Default)]
pub struct Schedule {
    segments: Vec<Segment>,
    needs: Vec<Need>,
    writes: Vec<(TensorId, Range<usize>)>,
    // The segment at hand: its needs, and those it would have with the next node.
    current: Vec<Need>,
    candidate: Vec<Need>,
    // Where in the ring the next segment may begin.
    place: usize,
}

/// A node reads more at once than the ring can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// Bytes of the ring that it would take.
    pub bytes: usize,
}

impl Schedule {
    /// The segments, in order; together they cover the graph.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// What a segment needs.
    pub fn needs(&self, segment: &Segment) -> &[Need] {
        &self.needs[segment.needs.clone()]
    }

    /// What a segment writes to streamed tensors.
    pub fn writes(&self, segment: &Segment) -> &[(TensorId, Range<usize>)] {
        &self.writes[segment.writes.clone()]
    }

    /// What a pass moves in: all needs but those that keep their place to themselves, and so
    /// are still there when the next pass asks for them.
    pub fn moving(&self) -> impl Iterator<Item = &Need> {
        let shares = |(index, need): &(usize, &Need)| {
            let mut others = self.needs.iter().enumerate();
            others.any(|(other, taker)| other != *index && taker.overlaps(&need.place()))
        };
        self.needs
            .iter()
            .enumerate()
            .filter(shares)
            .map(|(_, need)| need)
    }

    /// What will be needed after a segment, in the order of need, wrapping to the start
    /// of the pass: the next pass will begin like this one.
    pub fn upcoming(&self, segment: &Segment) -> impl Iterator<Item = &Need> {
        let (before, after) = self.needs.split_at(segment.needs.end);
        after.iter().chain(before)
    }

    /// Schedules a graph of `node_count` nodes. `uses` is ordered by node; `ring_bytes_of`
    /// says how much of the ring a range of a tensor takes, `is_norm` of a node whether a
    /// norm begins there.
    ///
    /// # Errors
    /// When a node reads more at once than the ring holds.
    pub fn rebuild(
        &mut self,
        node_count: usize,
        uses: &[Use],
        shape: Shape,
        ring_bytes_of: impl Fn(TensorId, &Range<usize>) -> usize,
        is_norm: impl Fn(usize) -> bool,
    ) -> Result<(), TooLarge> {
        self.segments.clear();
        self.needs.clear();
        self.writes.clear();
        self.current.clear();
        self.place = 0;
        let bytes_of = |needs: &[Need]| -> usize {
            let bytes = |need: &Need| ring_bytes_of(need.tensor, &need.range);
            needs.iter().map(bytes).sum()
        };
        let (mut nodes_start, mut uses_start) = (0, 0);
        let mut first = 0;
        for of_node in uses.chunk_by(|a, b| a.node == b.node) {
            let known = self.current.len();
            self.candidate.clone_from(&self.current);
            merge(&mut self.candidate, of_node);
            let bytes = bytes_of(&self.candidate);
            let layer = uses[..first].last().and_then(|last| last.state);
            let joins = layer.is_some() && of_node.iter().all(|used| used.state == layer);
            let too_much = bytes > shape.ring_bytes
                || (bytes > shape.segment_bytes && self.candidate.len() > known && !joins);
            if too_much && known > 0 {
                let after_last = uses[first - 1].node + 1;
                let mut gap = after_last..of_node[0].node;
                let cut = gap.rfind(|node| is_norm(*node)).unwrap_or(of_node[0].node);
                self.close(
                    nodes_start..cut,
                    &uses[uses_start..first],
                    shape,
                    &ring_bytes_of,
                );
                (nodes_start, uses_start) = (cut, first);
                self.candidate.clear();
                merge(&mut self.candidate, of_node);
            }
            let bytes = bytes_of(&self.candidate);
            if bytes > shape.ring_bytes {
                return Err(TooLarge { bytes });
            }
            std::mem::swap(&mut self.current, &mut self.candidate);
            first += of_node.len();
        }
        self.close(
            nodes_start..node_count,
            &uses[uses_start..],
            shape,
            &ring_bytes_of,
        );
        Ok(())
    }

    /// Ends the segment at hand, and gives its needs their places.
    fn close(
        &mut self,
        nodes: Range<usize>,
        uses: &[Use],
        shape: Shape,
        ring_bytes_of: impl Fn(TensorId, &Range<usize>) -> usize,
    ) {
        let bytes = |need: &Need| ring_bytes_of(need.tensor, &need.range);
        let total: usize = self.current.iter().map(bytes).sum();
        if self.place + total > shape.ring_bytes {
            self.place = 0;
        }
        let needs_start = self.needs.len();
        for mut need in self.current.drain(..) {
            need.at = self.place;
            need.bytes = ring_bytes_of(need.tensor, &need.range);
            self.place += need.bytes;
            self.needs.push(need);
        }
        let writes_start = self.writes.len();
        let written = uses.iter().filter_map(|used| {
            let range = used.written.clone()?;
            Some((used.tensor, range))
        });
        self.writes.extend(written);
        self.segments.push(Segment {
            nodes,
            needs: needs_start..self.needs.len(),
            writes: writes_start..self.writes.len(),
        });
    }
}

/// Adds uses to needs: one range per tensor, the hull of all.
fn merge(needs: &mut Vec<Need>, uses: &[Use]) {
    for used in uses {
        match needs.iter_mut().find(|known| known.tensor == used.tensor) {
            Some(known) => {
                known.range.start = known.range.start.min(used.range.start);
                known.range.end = known.range.end.max(used.range.end);
            }
            None => needs.push(Need {
                tensor: used.tensor,
                range: used.range.clone(),
                at: 0,
                bytes: 0,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHAPE: Shape = Shape {
        ring_bytes: 40,
        segment_bytes: 20,
    };

    fn read(node: usize, tensor: u32, bytes: usize) -> Use {
        Use {
            node,
            tensor: TensorId(tensor),
            range: 0..bytes,
            written: None,
            state: None,
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
        schedule.rebuild(7, &[], SHAPE, bytes, |_| false).unwrap();
        assert_eq!(schedule.segments().len(), 1);
        assert_eq!(schedule.segments()[0].nodes, 0..7);
    }

    #[test]
    fn the_cut_lies_before_the_last_norm_of_the_gap() {
        let uses = [read(2, 0, 10), read(3, 1, 10), read(9, 2, 10)];
        let mut schedule = Schedule::default();
        let norm = |node| node == 5 || node == 7;
        schedule.rebuild(12, &uses, SHAPE, bytes, norm).unwrap();
        assert_eq!(cut_at(&schedule), [7]);
        schedule
            .rebuild(12, &uses, SHAPE, bytes, |_| false)
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
        schedule.rebuild(3, &uses, SHAPE, bytes, |_| false).unwrap();
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
        schedule.rebuild(5, &uses, SHAPE, bytes, |_| false).unwrap();
        assert_eq!(cut_at(&schedule), [1, 3, 4]);
    }

    #[test]
    fn a_node_that_reads_more_than_the_ring_says_how_much() {
        let mut schedule = Schedule::default();
        let uses = [read(1, 0, 25), read(1, 1, 25)];
        let refused = schedule.rebuild(2, &uses, SHAPE, bytes, |_| false);
        assert_eq!(refused, Err(TooLarge { bytes: 50 }));
    }

    proptest! {
        #[test]
        fn segments_cover_the_graph_and_hold_every_use_in_a_place_of_its_own(
            mut nodes in prop::collection::vec(
                (0usize..60, 0u32..9, 1usize..20, prop::bool::weighted(0.2)), 0..40),
            ring_bytes in 40usize..100,
        ) {
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
            let shape = Shape { ring_bytes, segment_bytes: ring_bytes / 2 };
            schedule.rebuild(60, &uses, shape, bytes, |node| node % 3 == 0).unwrap();
            let mut end = 0;
            for segment in schedule.segments() {
                prop_assert_eq!(segment.nodes.start, end);
                end = segment.nodes.end;
                let needs = schedule.needs(segment);
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
            prop_assert_eq!(end, 60);
        }
    }
}
