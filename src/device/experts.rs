#![allow(
    unsafe_code,
    reason = "reads the lists of ids that earlier nodes have computed"
)]
//! Which experts a node reads: named by a list of ids that the graph computes itself.

use std::ops::Range;

use ggml_sys as sys;

use super::schedule::{CacheNeed, CacheUse, Schedule, Segment};
use crate::error::{Error, Result};
use crate::ggml::{Graph, Tensor};
use crate::pager::{Pager, TensorId};

/// Reads lists of ids. Kept from graph to graph, so that a pass allocates nothing.
#[derive(Debug, Default)]
pub struct Router {
    bytes: Vec<u8>,
    named: Vec<usize>,
    // The list that `named` was read from, by address.
    list: Option<usize>,
}

/// The list of ids by which `node` reads the experts of `source`; None when it reads all
/// of it. A list that names each expert twice on average is not worth waiting for: it
/// leaves hardly any out.
pub fn ids_of<'a>(node: Tensor<'a>, source: Tensor<'a>) -> Option<Tensor<'a>> {
    if node.op() != sys::GGML_OP_MUL_MAT_ID || source.view_source().is_some() {
        return None;
    }
    let ids = node.source(2)?;
    let plain = ids.element_type() == sys::GGML_TYPE_I32
        && ids.extent(2) == 1
        && ids.extent(3) == 1
        && node.source(0) == Some(source);
    let few = ids.extent(0).checked_mul(ids.extent(1))? < 2 * source.extent(2);
    (plain && few).then_some(ids)
}

/// How `node` uses the cached tensor `id`, which is its source `source`.
pub fn use_of(
    node: Tensor<'_>,
    source: Tensor<'_>,
    id: TensorId,
    range: &Range<usize>,
    pager: &Pager,
) -> CacheUse {
    let ids = ids_of(node, source);
    let named = ids.map(|ids| {
        let count = (ids.extent(0) * ids.extent(1)).min(source.extent(2));
        usize::try_from(count).unwrap_or(usize::MAX)
    });
    CacheUse {
        bytes: pager.cache_bytes_of(id, range, named),
        ids: ids.map(|ids| ids.as_ptr().addr()),
    }
}

impl Router {
    /// Has the pager fetch what a segment needs of the cache, now that all nodes before
    /// have run.
    ///
    /// # Errors
    /// As for `Pager::fetch_wanted`.
    pub fn require(
        &mut self,
        graph: Graph<'_>,
        schedule: &Schedule,
        segment: &Segment,
        pager: &mut Pager,
    ) -> Result<()> {
        self.list = None;
        for need in schedule.cache_needs(segment) {
            match need.how.ids {
                None => pager.want_range(need.tensor, &need.range),
                Some(ids) => {
                    self.read(graph, need, ids)?;
                    pager.want_named(need.tensor, &self.named);
                }
            }
        }
        pager.fetch_wanted()
    }

    /// Reads the list of ids of a node, each of them once, in order.
    fn read(&mut self, graph: Graph<'_>, need: &CacheNeed, list: usize) -> Result<()> {
        if self.list == Some(list) {
            return Ok(());
        }
        let node = graph.node(need.node);
        let missing = || Error::Bug("a node without ids reads experts".to_owned());
        let ids = node.source(2).ok_or_else(missing)?;
        let experts = node.source(0).ok_or_else(missing)?.extent(2);
        let bytes = ids.span_bytes();
        self.bytes.resize(bytes, 0);
        let to = self.bytes.as_mut_ptr().cast();
        // SAFETY:
        // - the nodes before have run, so the list is there, in a buffer of its own;
        // - the destination is as large as it.
        unsafe { sys::ggml_backend_tensor_get(ids.as_ptr(), to, 0, bytes) };
        self.named.clear();
        let extent = |dim| usize::try_from(ids.extent(dim)).unwrap_or(0);
        for row in 0..extent(1) {
            for column in 0..extent(0) {
                let at = row * ids.stride(1) + column * ids.stride(0);
                let entry = self.bytes[at..at + 4].try_into().expect("four bytes");
                let id = i32::from_le_bytes(entry);
                let named = usize::try_from(id).ok().filter(|_| i64::from(id) < experts);
                self.named.push(named.ok_or_else(|| {
                    Error::Bug(format!("the model asks for expert {id} of {experts}"))
                })?);
            }
        }
        self.named.sort_unstable();
        self.named.dedup();
        self.list = Some(list);
        Ok(())
    }
}
