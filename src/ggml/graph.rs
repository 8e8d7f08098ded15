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
