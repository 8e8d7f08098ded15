//! From a graph to segments: which nodes run together, which streamed groups must be
//! in the ring while they do. Pure: it sees uses, not tensors.
//!
//! ```text
//!  nodes   n n n n n n n n n n n n n n n n n
//!  uses      A   A A       B B   B     C C
//!  segments |----- A -----|---- B ----|- C -|
//!                         ▲ cut before the norm in the gap, where no backend fuses
//! ```

use std::ops::Range;

use crate::pager::{GroupId, Need, TensorId};
use crate::planner::RING_SLOTS;

/// One access of a node to a streamed tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// Index of the node in the graph.
    pub node: usize,
    /// The tensor's group.
    pub group: GroupId,
    /// The bytes accessed.
    pub need: Need,
    /// Whether the node writes them.
    pub writes: bool,
}

/// Nodes that run in one launch of the inner backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The nodes, by index in the graph.
    pub nodes: Range<usize>,
    /// The groups that must be in the ring, each with its range of `Schedule::needs`.
    pub groups: Vec<(GroupId, Range<usize>)>,
    /// Its range of `Schedule::writes`.
    pub writes: Range<usize>,
}

/// A graph cut into segments. Kept from graph to graph, so that a pass allocates nothing.
#[derive(Debug, Default)]
pub struct Schedule {
    segments: Vec<Segment>,
    needs: Vec<Need>,
    writes: Vec<Need>,
    // How many of `segments` belong to the graph at hand; the rest keep their memory.
    count: usize,
}

/// A node reads more groups at once than the ring can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyGroups {
    /// The node, by index in the graph.
    pub node: usize,
}

impl Schedule {
    /// The segments, in order; together they cover the graph.
    pub fn segments(&self) -> &[Segment] {
        &self.segments[..self.count]
    }

    /// What a segment needs of each of its groups.
    pub fn needs(&self, range: &Range<usize>) -> &[Need] {
        &self.needs[range.clone()]
    }

    /// What a segment writes to streamed tensors.
    pub fn writes(&self, segment: &Segment) -> &[Need] {
        &self.writes[segment.writes.clone()]
    }

    /// Schedules a graph of `node_count` nodes. `uses` is ordered by node; `is_norm`
    /// says of a node whether a norm begins there.
    ///
    /// # Errors
    /// When a node reads more groups than the ring has slots.
    pub fn rebuild(
        &mut self,
        node_count: usize,
        uses: &[Use],
        is_norm: impl Fn(usize) -> bool,
    ) -> Result<(), TooManyGroups> {
        self.needs.clear();
        self.writes.clear();
        self.count = 0;
        let mut nodes_start = 0;
        let mut uses_start = 0;
        let mut index = 0;
        let mut held: [Option<GroupId>; RING_SLOTS] = [None; RING_SLOTS];
        while index < uses.len() {
            let node = uses[index].node;
            let next = index
                + uses[index..]
                    .iter()
                    .take_while(|used| used.node == node)
                    .count();
            let of_node = &uses[index..next];
            let known = of_node.iter().all(|used| held.contains(&Some(used.group)));
            if !known {
                if held[0].is_some() {
                    let after_last = uses[index - 1].node + 1;
                    let cut = (after_last..node)
                        .find(|&node| is_norm(node))
                        .unwrap_or(node);
                    self.close(nodes_start..cut, &uses[uses_start..index]);
                    (nodes_start, uses_start) = (cut, index);
                    held = [None; RING_SLOTS];
                }
                for used in of_node {
                    if !held.contains(&Some(used.group)) {
                        let free = held.iter_mut().find(|slot| slot.is_none());
                        *free.ok_or(TooManyGroups { node })? = Some(used.group);
                    }
                }
            }
            index = next;
        }
        self.close(nodes_start..node_count, &uses[uses_start..]);
        Ok(())
    }

    fn close(&mut self, nodes: Range<usize>, uses: &[Use]) {
        if self.count == self.segments.len() {
            self.segments.push(Segment::default());
        }
        let segment = &mut self.segments[self.count];
        self.count += 1;
        segment.nodes = nodes;
        segment.groups.clear();
        for (index, used) in uses.iter().enumerate() {
            let seen = uses[..index]
                .iter()
                .any(|earlier| earlier.group == used.group);
            if seen {
                continue;
            }
            let start = self.needs.len();
            for used in uses.iter().filter(|other| other.group == used.group) {
                merge(&mut self.needs, start, &used.need);
            }
            segment.groups.push((used.group, start..self.needs.len()));
        }
        let start = self.writes.len();
        self.writes.extend(
            uses.iter()
                .filter(|used| used.writes)
                .map(|used| used.need.clone()),
        );
        segment.writes = start..self.writes.len();
    }
}

/// Adds a need to those from `start` on: one range per tensor, the hull of all.
fn merge(needs: &mut Vec<Need>, start: usize, need: &Need) {
    match needs[start..]
        .iter_mut()
        .find(|known| known.tensor == need.tensor)
    {
        Some(known) => {
            known.range.start = known.range.start.min(need.range.start);
            known.range.end = known.range.end.max(need.range.end);
        }
        None => needs.push(need.clone()),
    }
}

/// A tensor's place in the map of addresses: where llama.cpp believes it to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// First address.
    pub start: usize,
    /// Address behind the last byte, padding included.
    pub end: usize,
    /// The tensor.
    pub tensor: TensorId,
}

/// Finds the paged tensor at an address.
#[derive(Debug, Default)]
pub struct AddressMap {
    // Ordered by address, disjoint.
    ranges: Vec<AddressRange>,
}

impl AddressMap {
    /// Adds the tensors of a buffer. Those without bytes own no address: one at the end
    /// of its buffer would hide whatever begins there.
    pub fn insert(&mut self, ranges: impl IntoIterator<Item = AddressRange>) {
        let owners = ranges.into_iter().filter(|range| range.start < range.end);
        self.ranges.extend(owners);
        self.ranges.sort_unstable_by_key(|range| range.start);
    }

    /// Removes tensors.
    pub fn remove(&mut self, tensors: &[TensorId]) {
        self.ranges.retain(|range| !tensors.contains(&range.tensor));
    }

    /// The tensor at `address`, and the address's offset in it in bytes.
    pub fn find(&self, address: usize) -> Option<(TensorId, usize)> {
        let (first, last) = (self.ranges.first()?, self.ranges.last()?);
        if address < first.start || address >= last.end {
            return None;
        }
        let index = self.ranges.partition_point(|range| range.start <= address);
        let range = &self.ranges[index.checked_sub(1)?];
        (address < range.end).then(|| (range.tensor, address - range.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(node: usize, group: u32) -> Use {
        let need = Need {
            tensor: TensorId(group),
            range: 0..10,
        };
        Use {
            node,
            group: GroupId(group),
            need,
            writes: false,
        }
    }

    #[test]
    fn a_graph_without_streamed_tensors_is_one_segment() {
        let mut schedule = Schedule::default();
        schedule.rebuild(7, &[], |_| false).unwrap();
        assert_eq!(schedule.segments().len(), 1);
        assert_eq!(schedule.segments()[0].nodes, 0..7);
    }

    #[test]
    fn the_cut_lies_before_the_norm_of_the_gap() {
        let uses = [read(2, 0), read(3, 0), read(9, 1)];
        let mut schedule = Schedule::default();
        schedule.rebuild(12, &uses, |node| node == 7).unwrap();
        let nodes: Vec<_> = schedule
            .segments()
            .iter()
            .map(|s| s.nodes.clone())
            .collect();
        assert_eq!(nodes, [0..7, 7..12]);
        schedule.rebuild(12, &uses, |_| false).unwrap();
        assert_eq!(schedule.segments()[1].nodes, 9..12);
    }

    #[test]
    fn needs_of_one_tensor_become_their_hull_and_writes_stay_apart() {
        let mut write = read(1, 0);
        write.need.range = 40..50;
        write.writes = true;
        let mut schedule = Schedule::default();
        schedule
            .rebuild(3, &[read(0, 0), write], |_| false)
            .unwrap();
        let segment = &schedule.segments()[0];
        assert_eq!(schedule.needs(&segment.groups[0].1)[0].range, 0..50);
        assert_eq!(schedule.writes(segment)[0].range, 40..50);
    }

    #[test]
    fn a_node_may_read_two_groups_but_not_three() {
        let mut schedule = Schedule::default();
        schedule
            .rebuild(2, &[read(1, 0), read(1, 1)], |_| false)
            .unwrap();
        assert_eq!(schedule.segments()[0].groups.len(), 2);
        let three = [read(1, 0), read(1, 1), read(1, 2)];
        let refused = schedule.rebuild(2, &three, |_| false);
        assert_eq!(refused, Err(TooManyGroups { node: 1 }));
    }

    proptest! {
        #[test]
        fn segments_cover_the_graph_and_hold_every_use(
            mut nodes in prop::collection::vec((0usize..60, 0u32..5), 0..40),
        ) {
            nodes.sort_unstable();
            nodes.dedup_by_key(|used| used.0);
            let uses: Vec<Use> = nodes.iter().map(|&(node, group)| read(node, group)).collect();
            let mut schedule = Schedule::default();
            schedule.rebuild(60, &uses, |node| node % 3 == 0).unwrap();
            let mut end = 0;
            for segment in schedule.segments() {
                prop_assert_eq!(segment.nodes.start, end);
                end = segment.nodes.end;
                for used in uses.iter().filter(|used| segment.nodes.contains(&used.node)) {
                    prop_assert!(segment.groups.iter().any(|(group, _)| *group == used.group));
                }
                prop_assert!(segment.groups.len() <= RING_SLOTS);
            }
            prop_assert_eq!(end, 60);
        }

        #[test]
        fn addresses_are_found_as_a_scan_finds_them(
            lengths in prop::collection::vec((0usize..20, 0usize..5), 1..20),
            address in 0usize..500,
        ) {
            let mut start = 50;
            let mut ranges = Vec::new();
            for (index, &(length, gap)) in lengths.iter().enumerate() {
                let tensor = TensorId(u32::try_from(index).unwrap());
                ranges.push(AddressRange { start, end: start + length, tensor });
                start += length + gap;
            }
            let mut map = AddressMap::default();
            map.insert(ranges.clone());
            let scanned = ranges
                .iter()
                .find(|range| (range.start..range.end).contains(&address))
                .map(|range| (range.tensor, address - range.start));
            prop_assert_eq!(map.find(address), scanned);
        }
    }
}
