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

    fn is_sum(self, index: usize) -> bool {
        self.node(index).op() == sys::GGML_OP_ADD
    }

    /// Whether node `index` reads what the one before it computes.
    fn feeds(self, index: usize) -> bool {
        let before = self.node(index - 1);
        self.node(index).sources().any(|source| source == before)
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
