//! A graph that llama.cpp lends us to compute.

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

use ggml_sys as sys;

use super::Tensor;

/// A graph that llama.cpp owns, for the time of a callback.
#[derive(Clone, Copy, Debug)]
pub struct Graph<'a> {
    raw: NonNull<sys::ggml_cgraph>,
    lent: PhantomData<&'a sys::ggml_cgraph>,
}

impl<'a> Graph<'a> {
    /// The graph at `raw`; None for a null pointer.
    ///
    /// # Safety
    /// - `raw` is null or points to a graph that lives, with its tensors, for `'a`;
    /// - nobody else changes graph or tensors during `'a`.
    pub unsafe fn from_raw(raw: *mut sys::ggml_cgraph) -> Option<Self> {
        NonNull::new(raw).map(|raw| Self {
            raw,
            lent: PhantomData,
        })
    }

    /// The pointer, for calls into ggml.
    pub fn as_ptr(self) -> *mut sys::ggml_cgraph {
        self.raw.as_ptr()
    }

    fn nodes(self) -> &'a [*mut sys::ggml_tensor] {
        // SAFETY: the graph is live, as promised to `from_raw`.
        let graph = unsafe { self.raw.as_ref() };
        let count = usize::try_from(graph.n_nodes).unwrap_or(0);
        if count == 0 {
            return &[];
        }
        // SAFETY: a graph's `nodes` holds `n_nodes` pointers, for as long as the graph.
        unsafe { std::slice::from_raw_parts(graph.nodes, count) }
    }

    /// How many nodes it has.
    pub fn node_count(self) -> usize {
        self.nodes().len()
    }

    /// The node at `index`.
    ///
    /// # Panics
    /// When there is none.
    pub fn node(self, index: usize) -> Tensor<'a> {
        // SAFETY: nodes live, and are ours, as long as their graph.
        let node = unsafe { Tensor::from_raw(self.nodes()[index]) };
        node.expect("a graph has no null nodes")
    }

    /// The node in `range` that lies at `raw`; None when there is none.
    ///
    /// # Panics
    /// When the range is not within the graph.
    pub fn tensor_at(self, raw: *mut sys::ggml_tensor, range: &Range<usize>) -> Option<Tensor<'a>> {
        let nodes = self.nodes()[range.clone()].iter();
        let found = nodes.zip(range.clone()).find(|(node, _)| **node == raw);
        found.map(|(_, index)| self.node(index))
    }

    /// Whether node `index` begins with a norm, and no backend fuses it with what is before.
    ///
    /// ggml-vulkan has a sum before a norm leave what the norm needs, unless the sum itself
    /// belongs to the product before it: then such sums and their norm are one.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn is_seam(self, index: usize) -> bool {
        let mut norm = index;
        while self.is_sum(norm) {
            norm += 1;
            if norm == self.node_count() || !self.feeds(norm) {
                return false;
            }
        }
        if !self.node(norm).is_norm() {
            return false;
        }
        let mut first = norm;
        while first > 0 && self.feeds(first) && self.is_sum(first - 1) {
            first -= 1;
        }
        let of_product = first > 0
            && first < norm
            && self.feeds(first)
            && self.node(first - 1).op() == sys::GGML_OP_MUL_MAT;
        index == if of_product { norm } else { first }
    }

    /// Whether node `index` is a sum.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn is_sum(self, index: usize) -> bool {
        self.node(index).op() == sys::GGML_OP_ADD
    }

    /// Whether node `index` reads what the one before it computes.
    fn feeds(self, index: usize) -> bool {
        let before = self.node(index - 1);
        self.node(index).sources().any(|source| source == before)
    }

    /// How often `tensor` is a source of a node of the whole graph that this one is a part
    /// of, as ggml counted when it was built; None when ggml does not know it.
    pub fn use_count(self, tensor: Tensor<'_>) -> Option<usize> {
        // SAFETY: the graph is live, as promised to `from_raw`.
        let graph = unsafe { self.raw.as_ref() };
        let known = &graph.visited_hash_set;
        let parts = [
            known.used.addr(),
            known.keys.addr(),
            graph.use_counts.addr(),
        ];
        if known.size == 0 || parts.contains(&0) {
            return None;
        }
        // SAFETY: the set has a bit for each of its `size` places, 32 to a word.
        let used = unsafe { std::slice::from_raw_parts(known.used, known.size.div_ceil(32)) };
        // SAFETY: it has `size` places.
        let keys = unsafe { std::slice::from_raw_parts(known.keys, known.size) };
        // SAFETY: there is a count for each place.
        let counts = unsafe { std::slice::from_raw_parts(graph.use_counts, known.size) };
        // As in ggml's `ggml_hash_find`: at its address, or at a place behind.
        let key = tensor.as_ptr();
        let first = (key.addr() >> 4) % known.size;
        let mut places = (first..known.size).chain(0..first);
        let is_empty = |place: usize| used[place / 32] & (1 << (place % 32)) == 0;
        let found = places.find(|place| is_empty(*place) || keys[*place] == key)?;
        match is_empty(found) {
            true => None,
            false => usize::try_from(counts[found]).ok(),
        }
    }

    /// The nodes in `range` as a graph of their own, without an identity that a backend
    /// could remember.
    ///
    /// # Panics
    /// When the range is not within the graph.
    pub fn part(self, range: &Range<usize>) -> sys::ggml_cgraph {
        assert!(range.start <= range.end && range.end <= self.node_count());
        let start = i32::try_from(range.start).expect("node counts are 32-bit");
        let end = i32::try_from(range.end).expect("node counts are 32-bit");
        // SAFETY: the graph is live, the range within it.
        unsafe { sys::ggml_graph_view(self.as_ptr(), start, end) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes: product, sum, norm, product, scaling, sum, sum, norm.
    fn nodes(context: *mut sys::ggml_context) -> *mut sys::ggml_cgraph {
        let kind = sys::GGML_TYPE_F32;
        // SAFETY: the context is live, as for all calls below.
        let input = unsafe { sys::ggml_new_tensor_2d(context, kind, 8, 1) };
        // SAFETY: as above.
        let weight = unsafe { sys::ggml_new_tensor_2d(context, kind, 8, 8) };
        // SAFETY: both are of the context, as for all operands below.
        let product = |with| unsafe { sys::ggml_mul_mat(context, weight, with) };
        // SAFETY: as above.
        let sum = |a, b| unsafe { sys::ggml_add(context, a, b) };
        // SAFETY: as above.
        let norm = |of| unsafe { sys::ggml_rms_norm(context, of, 1e-6) };
        let first = sum(product(input), input);
        // SAFETY: as above.
        let scaled = unsafe { sys::ggml_scale(context, product(norm(first)), 2.0) };
        let last = norm(sum(sum(scaled, first), input));
        // SAFETY: as above.
        let graph = unsafe { sys::ggml_new_graph(context) };
        // SAFETY: the graph and its last node are of the context.
        unsafe { sys::ggml_build_forward_expand(graph, last) };
        graph
    }

    #[test]
    fn sums_that_belong_to_no_product_stay_with_their_norm() {
        let params = sys::ggml_init_params {
            mem_size: 1 << 20,
            mem_buffer: std::ptr::null_mut(),
            no_alloc: true,
        };
        // SAFETY: no preconditions.
        let context = unsafe { sys::ggml_init(params) };
        let raw = nodes(context);
        // SAFETY: the graph lives as long as the context, and nobody else knows it.
        let graph = unsafe { Graph::from_raw(raw) }.unwrap();
        let seams: Vec<usize> = (0..graph.node_count())
            .filter(|index| graph.is_seam(*index))
            .collect();
        assert_eq!(graph.node_count(), 8);
        assert_eq!(seams, [2, 5]);
        let all: Vec<Tensor<'_>> = (0..8).map(|index| graph.node(index)).collect();
        for node in &all {
            let sources = all.iter().flat_map(|reader| reader.sources());
            let uses = sources.filter(|source| source == node).count();
            assert_eq!(graph.use_count(*node), Some(uses));
        }
        // SAFETY: made above, freed once; nothing of it is used any more.
        unsafe { sys::ggml_free(context) };
    }
}
