//! From a graph to segments: which nodes run together, which bytes of streamed tensors
//! must be in the ring while they do, and where in the ring. Pure: it sees uses, not
//! tensors.
//!
//! ```text
//!  nodes   n n n n n n n n n n n n n n n n n
//!  uses      A   A A       B B   B     C C
//!  segments |----- A -----|---- B ----|- C -|
//!                         ▲ cut before the norm in the gap, where no backend fuses
//!  ring     |AAAAAAA   |BBBBBBBBBB|    two slots: C is fetched into the first as soon as
//!           |CCCC      |               A has run, while B computes
//! ```
//!
//! Experts go to a cache, not to the ring. Which of them a node reads is known once the
//! nodes before it have run: a segment begins with the first node that reads the experts
//! of a list of ids.
//!
//! Host segments, which the processor computes, are given; what is between them is cut as
//! if it were all.
//!
//! A segment takes no more than its share of the ring, so that what the next one needs
//! fits beside it. The same graph gets the same places each time: addresses repeat from
//! token to token.

use std::ops::Range;

use crate::pager::{GroupKey, Need, TensorId};

/// One access of a node to a streamed or cached tensor.
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
    /// How it uses the cache; None when the bytes go to the ring.
    pub cache: Option<CacheUse>,
}

/// How a node uses a cached tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheUse {
    /// Bytes of the cache that it takes at most.
    pub bytes: usize,
    /// The use is late: it reads the experts that a list of ids names, and the list, known
    /// by this address, is there when the nodes before have run. None when all of the
    /// range is read.
    pub ids: Option<usize>,
}

/// What a segment needs of a cached tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheNeed {
    /// The tensor.
    pub tensor: TensorId,
    /// The bytes that are read, or, of a late one, that may be.
    pub range: Range<usize>,
    /// The first node that reads it.
    pub node: usize,
    /// How.
    pub how: CacheUse,
}

/// What the schedule has to know of ring and cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// The ring's bytes.
    pub ring_bytes: usize,
    /// Bytes of one of the ring's slots: what one segment should take at most.
    pub segment_bytes: usize,
    /// The cache's bytes.
    pub cache_bytes: usize,
    /// Bytes of the cache that one segment should take at most of what is known before.
    pub cache_segment_bytes: usize,
}

/// Nodes that run in one launch of the inner backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The nodes, by index in the graph.
    pub nodes: Range<usize>,
    /// Its range of `Schedule::needs`.
    pub needs: Range<usize>,
    /// Its range of `Schedule::cache_needs`.
    pub cache_needs: Range<usize>,
    /// Its range of `Schedule::writes`.
    pub writes: Range<usize>,
    /// The processor computes it: which of the host segments it is. It needs nothing of ring
    /// or cache.
    pub host: Option<usize>,
}

/// The graph to be cut.
#[derive(Clone, Copy, Debug)]
pub struct Nodes<'a> {
    /// How many nodes it has.
    pub count: usize,
    /// What its nodes use of streamed and cached tensors, ordered by node.
    pub uses: &'a [Use],
    /// The nodes of the host segments, in order. What these use does not count.
    pub hosts: &'a [Range<usize>],
}

/// A graph cut into segments. Kept from graph to graph, so that a pass allocates nothing.
#[derive(Debug, Default)]
pub struct Schedule {
    segments: Vec<Segment>,
    needs: Vec<Need>,
    cache_needs: Vec<CacheNeed>,
    writes: Vec<(TensorId, Range<usize>)>,
    // The segment at hand: its needs, and those it would have with the next node.
    current: Vec<Need>,
    candidate: Vec<Need>,
    // Where its needs of the cache begin, and the list of ids that it knows.
    cache_start: usize,
    ids: Option<usize>,
    // The slot of the next segment, in bytes from the ring's start.
    place: usize,
}

/// A node reads more at once than ring or cache can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// Bytes that it would take.
    pub bytes: usize,
}

/// Why a segment ends before a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// It would need too much.
    Full,
    /// The node reads what ids name that the nodes before compute.
    Late,
}

impl Schedule {
    /// The segments, in order; together they cover the graph.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// What a segment needs of the ring.
    pub fn needs(&self, segment: &Segment) -> &[Need] {
        &self.needs[segment.needs.clone()]
    }

    /// What a segment needs of the cache.
    pub fn cache_needs(&self, segment: &Segment) -> &[CacheNeed] {
        &self.cache_needs[segment.cache_needs.clone()]
    }

    /// What the next segment that needs anything of the cache needs of it, as far as that
    /// is known.
    pub fn upcoming_of_cache(&self, segment: &Segment) -> impl Iterator<Item = &CacheNeed> {
        let start = segment.cache_needs.end;
        let later = |other: &&Segment| other.cache_needs.end > start;
        let next = self.segments.iter().find(later);
        let needs = next.map_or(&[][..], |next| self.cache_needs(next));
        needs.iter().filter(|need| need.how.ids.is_none())
    }

    /// Whether any experts are named by ids.
    pub fn has_late_needs(&self) -> bool {
        self.cache_needs.iter().any(|need| need.how.ids.is_some())
    }

    /// What a segment writes to streamed tensors.
    pub fn writes(&self, segment: &Segment) -> &[(TensorId, Range<usize>)] {
        &self.writes[segment.writes.clone()]
    }

    /// What a pass moves into the ring: all needs but those that keep their place to
    /// themselves, and so are still there when the next pass asks for them.
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

    /// What will be needed of the ring after a segment, in the order of need, wrapping to
    /// the start of the pass: the next pass will begin like this one.
    pub fn upcoming(&self, segment: &Segment) -> impl Iterator<Item = &Need> {
        let (before, after) = self.needs.split_at(segment.needs.end);
        after.iter().chain(before)
    }

    /// Schedules a graph. `ring_bytes_of` says how much of the ring a range of a tensor takes,
    /// `is_seam` of a node whether no backend fuses it with what is before.
    ///
    /// # Errors
    /// When a node reads more at once than ring or cache hold.
    pub fn rebuild(
        &mut self,
        graph: Nodes<'_>,
        shape: Shape,
        ring_bytes_of: impl Fn(TensorId, &Range<usize>) -> usize,
        is_seam: impl Fn(usize) -> bool,
    ) -> Result<(), TooLarge> {
        self.segments.clear();
        self.needs.clear();
        self.cache_needs.clear();
        self.writes.clear();
        self.current.clear();
        (self.cache_start, self.ids, self.place) = (0, None, 0);
        let mut start = 0;
        for (index, host) in graph.hosts.iter().enumerate() {
            if start < host.start {
                self.cut_up(
                    start..host.start,
                    graph.uses,
                    shape,
                    &ring_bytes_of,
                    &is_seam,
                )?;
            }
            self.segments.push(Segment {
                nodes: host.clone(),
                needs: self.needs.len()..self.needs.len(),
                cache_needs: self.cache_needs.len()..self.cache_needs.len(),
                writes: self.writes.len()..self.writes.len(),
                host: Some(index),
            });
            start = host.end;
        }
        if start < graph.count || self.segments.is_empty() {
            self.cut_up(
                start..graph.count,
                graph.uses,
                shape,
                &ring_bytes_of,
                &is_seam,
            )?;
        }
        Ok(())
    }

    /// Cuts nodes between host segments, of which `uses` has all of the graph.
    fn cut_up(
        &mut self,
        nodes: Range<usize>,
        uses: &[Use],
        shape: Shape,
        ring_bytes_of: &impl Fn(TensorId, &Range<usize>) -> usize,
        is_seam: &impl Fn(usize) -> bool,
    ) -> Result<(), TooLarge> {
        let from = uses.partition_point(|used| used.node < nodes.start);
        let to = uses.partition_point(|used| used.node < nodes.end);
        let uses = &uses[from..to];
        let bytes_of = |needs: &[Need]| -> usize {
            let bytes = |need: &Need| ring_bytes_of(need.tensor, &need.range);
            needs.iter().map(bytes).sum()
        };
        let (mut nodes_start, mut uses_start) = (nodes.start, 0);
        let mut first = 0;
        for of_node in uses.chunk_by(|a, b| a.node == b.node) {
            let (before, after) = (&uses[..first], &uses[first + of_node.len()..]);
            self.candidate.clone_from(&self.current);
            merge(&mut self.candidate, of_node);
            merge(&mut self.candidate, states_of_its_layer(of_node, after));
            let cut = self.cut(of_node, shape, bytes_of(&self.candidate));
            let node = of_node[0].node;
            let at = match cut {
                None => None,
                Some(Cut::Late) => Some(node).filter(|node| *node > nodes_start),
                Some(Cut::Full) => {
                    let after_last = before.last().map_or(nodes.start, |last| last.node + 1);
                    Some(
                        (after_last..node)
                            .rfind(|node| is_seam(*node))
                            .unwrap_or(node),
                    )
                }
            };
            if let Some(at) = at {
                self.close(
                    nodes_start..at,
                    &uses[uses_start..first],
                    shape,
                    ring_bytes_of,
                );
                (nodes_start, uses_start) = (at, first);
                self.candidate.clear();
                merge(&mut self.candidate, of_node);
                merge(&mut self.candidate, states_of_its_layer(of_node, after));
            }
            self.need_of_cache(of_node, shape)?;
            let bytes = bytes_of(&self.candidate);
            if bytes > shape.ring_bytes {
                return Err(TooLarge { bytes });
            }
            std::mem::swap(&mut self.current, &mut self.candidate);
            first += of_node.len();
        }
        self.close(
            nodes_start..nodes.end,
            &uses[uses_start..],
            shape,
            ring_bytes_of,
        );
        Ok(())
    }

    /// Whether the segment at hand ends before the node of `of_node`, with which it would
    /// take `bytes` of the ring.
    fn cut(&self, of_node: &[Use], shape: Shape, bytes: usize) -> Option<Cut> {
        let mut lists = of_node.iter().filter_map(|used| used.cache?.ids);
        if lists.any(|ids| Some(ids) != self.ids) {
            return Some(Cut::Late);
        }
        let known = self.current.len();
        let too_much = bytes > shape.ring_bytes
            || (bytes > shape.segment_bytes && self.candidate.len() > known);
        if too_much && known > 0 {
            return Some(Cut::Full);
        }
        let taken = self.taken_of_cache();
        let new = of_node.iter().filter(|used| !self.is_needed(used));
        let (mut all, mut whole) = (0, 0);
        for how in new.filter_map(|used| used.cache) {
            all += how.bytes;
            whole += if how.ids.is_none() { how.bytes } else { 0 };
        }
        let too_much = taken + all > shape.cache_bytes
            || (whole > 0 && taken + whole > shape.cache_segment_bytes);
        (taken > 0 && too_much).then_some(Cut::Full)
    }

    /// Bytes of the cache that the segment at hand takes.
    fn taken_of_cache(&self) -> usize {
        let needs = self.cache_needs[self.cache_start..].iter();
        needs.map(|need| need.how.bytes).sum()
    }

    /// Whether the segment at hand needs that of the cache already.
    fn is_needed(&self, used: &Use) -> bool {
        let mut needs = self.cache_needs[self.cache_start..].iter();
        needs.any(|need| {
            need.tensor == used.tensor && need.range == used.range && Some(need.how) == used.cache
        })
    }

    /// Adds what a node needs of the cache to the segment at hand.
    fn need_of_cache(&mut self, of_node: &[Use], shape: Shape) -> Result<(), TooLarge> {
        for used in of_node {
            let Some(how) = used.cache else { continue };
            if self.is_needed(used) {
                continue;
            }
            if how.ids.is_some() {
                self.ids = how.ids;
            }
            self.cache_needs.push(CacheNeed {
                tensor: used.tensor,
                range: used.range.clone(),
                node: used.node,
                how,
            });
        }
        let bytes = self.taken_of_cache();
        match bytes > shape.cache_bytes {
            true => Err(TooLarge { bytes }),
            false => Ok(()),
        }
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
        let mut at = self.place;
        for mut need in self.current.drain(..) {
            need.at = at;
            need.bytes = ring_bytes_of(need.tensor, &need.range);
            at += need.bytes;
            self.needs.push(need);
        }
        self.place += total.next_multiple_of(shape.segment_bytes.max(1));
        let writes_start = self.writes.len();
        let written = uses.iter().filter_map(|used| {
            let range = used.written.clone()?;
            Some((used.tensor, range))
        });
        self.writes.extend(written);
        self.segments.push(Segment {
            nodes,
            needs: needs_start..self.needs.len(),
            cache_needs: self.cache_start..self.cache_needs.len(),
            writes: writes_start..self.writes.len(),
            host: None,
        });
        self.cache_start = self.cache_needs.len();
    }
}

/// The later uses of the states of the layer whose state a node uses: attention reads them
/// at once, so that they are needed together from the first on.
fn states_of_its_layer<'a>(of_node: &[Use], after: &'a [Use]) -> impl Iterator<Item = &'a Use> {
    let layer = of_node.iter().find_map(|used| used.state);
    after
        .iter()
        .take_while(move |used| layer.is_some() && (used.state.is_none() || used.state == layer))
        .filter(|used| used.state.is_some())
}

/// Adds uses to needs: one range per tensor, the hull of all.
fn merge<'a>(needs: &mut Vec<Need>, uses: impl IntoIterator<Item = &'a Use>) {
    for used in uses.into_iter().filter(|used| used.cache.is_none()) {
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
mod tests;
