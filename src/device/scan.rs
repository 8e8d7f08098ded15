#![allow(
    unsafe_code,
    reason = "reads the graph that llama.cpp lends for a launch"
)]
//! One walk over a graph: which of its tensors lie in paged memory, and which bytes of
//! streamed and cached ones each node reads and writes.

use std::ops::Range;

use ggml_sys as sys;

use super::experts;
use super::schedule::Use;
use super::shared::Paged;
use crate::ggml::{Graph, Tensor};
use crate::pager::TensorId;

/// A tensor of the graph whose address is a promise: it must be translated while its
/// segment runs.
#[derive(Clone, Copy, Debug)]
pub struct Touch {
    /// Index of the node that uses it.
    pub node: usize,
    /// The tensor: a paged one, or a view of one.
    pub raw: *mut sys::ggml_tensor,
    /// Where llama.cpp believes it to be.
    pub address: usize,
    /// The paged tensor it belongs to.
    pub tensor: TensorId,
    /// Where it begins in that tensor, in bytes.
    pub offset: usize,
}

/// The result of a walk. Kept from graph to graph, so that a pass allocates nothing.
#[derive(Debug, Default)]
pub struct Scan {
    /// By node.
    pub touches: Vec<Touch>,
    /// By node.
    pub uses: Vec<Use>,
    /// Whether a graph reads a state across its rows, as attention without flash attention
    /// reads the values: then all of it is in use.
    pub reads_across: bool,
    /// What the graph writes to states that stay in the arena.
    pub written_in_place: Vec<(TensorId, Range<usize>)>,
    // By tensor: all that the graph uses of a streamed state.
    hulls: Vec<Range<usize>>,
    // Row indices of one SET_ROWS, as bytes and merged.
    index_bytes: Vec<u8>,
    rows: Vec<Range<usize>>,
}

// SAFETY: the tensor pointers are used only during the callback that filled them in;
// between callbacks the vectors are scratch memory.
unsafe impl Send for Scan {}

/// Rows this short (a transposed V cache: single values) are not told apart.
const ROW_BYTES_MIN: usize = 64;
/// More written ranges than this in one node become one.
const RANGES_MAX: usize = 64;

impl Scan {
    /// Walks the graph's nodes; tells the pager how far its states are used and which of
    /// their pages are written.
    pub fn rebuild(&mut self, graph: Graph<'_>, paged: &mut Paged) {
        self.touches.clear();
        self.uses.clear();
        self.written_in_place.clear();
        for index in 0..graph.node_count() {
            let node = graph.node(index);
            // A view without elements may begin behind its tensor's end, in the next one.
            if node.is_only_a_view() || node.is_empty() {
                continue;
            }
            for (position, source) in node.sources().enumerate() {
                let found = self.touch(index, source, paged);
                // The third source of SET_ROWS is where it writes, not what it reads.
                let destination = node.op() == sys::GGML_OP_SET_ROWS && position == 2;
                if let Some((id, offset)) = found.filter(|_| !destination) {
                    self.add_read((index, node), id, source, offset, paged);
                }
            }
            if let Some((id, offset)) = self.touch(index, node, paged) {
                self.find_written_ranges(node, offset, paged);
                for written in 0..self.rows.len() {
                    let range = self.rows[written].clone();
                    self.add_write((index, offset), id, range, paged);
                }
            }
        }
        self.join_uses_of_states();
    }

    /// Has each use of a state ask for all that the graph uses of it: attention reads what
    /// was written just before, and one fetch serves both.
    fn join_uses_of_states(&mut self) {
        self.hulls.iter_mut().for_each(|hull| *hull = 0..0);
        let states = self.uses.iter().filter(|used| used.state.is_some());
        for used in states {
            let index = used.tensor.0 as usize;
            if self.hulls.len() <= index {
                self.hulls.resize(index + 1, 0..0);
            }
            let hull = &mut self.hulls[index];
            if hull.start == hull.end {
                *hull = used.range.clone();
            } else {
                *hull = hull.start.min(used.range.start)..hull.end.max(used.range.end);
            }
        }
        for used in self.uses.iter_mut().filter(|used| used.state.is_some()) {
            used.range = self.hulls[used.tensor.0 as usize].clone();
        }
    }

    /// Notes `tensor`, and what it is a view of, if it lies in paged memory.
    fn touch(
        &mut self,
        node: usize,
        tensor: Tensor<'_>,
        paged: &Paged,
    ) -> Option<(TensorId, usize)> {
        if tensor.is_empty() {
            return None;
        }
        let root = tensor.view_source().unwrap_or(tensor);
        let (id, root_offset) = paged.addresses.find(root.address())?;
        let offset = root_offset + (tensor.address() - root.address());
        // The root first: some backends compute a view's place from its root's.
        for (tensor, offset) in [(root, root_offset), (tensor, offset)] {
            self.touches.push(Touch {
                node,
                raw: tensor.as_ptr(),
                address: tensor.address(),
                tensor: id,
                offset,
            });
        }
        Some((id, offset))
    }

    fn add_read(
        &mut self,
        (node, reader): (usize, Tensor<'_>),
        tensor: TensorId,
        view: Tensor<'_>,
        offset: usize,
        paged: &mut Paged,
    ) {
        let range = offset..offset + view.span_bytes();
        let state = paged.pager.state_group(tensor);
        if state.is_some() {
            self.reads_across |= view.has_gaps();
            paged.pager.note_use(tensor, range.end);
        }
        if paged.pager.is_streamed(tensor) {
            self.uses.push(Use {
                node,
                tensor,
                range: paged.pager.unit_of_transfer(tensor, &range),
                written: None,
                state,
                cache: None,
            });
        } else if paged.pager.is_cached(tensor) {
            let how = experts::use_of(reader, view, tensor, &range, &paged.pager);
            self.uses.push(Use {
                node,
                tensor,
                range,
                written: None,
                state: None,
                cache: Some(how),
            });
        }
    }

    /// Notes that a node, which begins at `offset` of a tensor, writes a range of it.
    fn add_write(
        &mut self,
        (node, offset): (usize, usize),
        tensor: TensorId,
        range: Range<usize>,
        paged: &mut Paged,
    ) {
        paged.pager.note_use(tensor, range.end);
        let whole = match paged.pager.counts_from_base() {
            true => offset.min(range.start)..range.end,
            false => range.clone(),
        };
        if paged.pager.is_streamed(tensor) {
            self.uses.push(Use {
                node,
                tensor,
                range: paged.pager.unit_of_transfer(tensor, &whole),
                written: Some(range),
                state: paged.pager.state_group(tensor),
                cache: None,
            });
        } else {
            self.written_in_place.push((tensor, range));
        }
    }

    /// Which bytes of its root a node writes, as ranges in `self.rows`.
    fn find_written_ranges(&mut self, node: Tensor<'_>, offset: usize, paged: &Paged) {
        self.rows.clear();
        let whole = offset..offset + node.span_bytes();
        if node.op() != sys::GGML_OP_SET_ROWS || !self.read_rows(node, offset, paged) {
            self.rows.clear();
            self.rows.push(whole);
        }
    }

    /// The rows that a SET_ROWS writes, from its index tensor; false when they cannot
    /// be known before it runs.
    fn read_rows(&mut self, node: Tensor<'_>, offset: usize, paged: &Paged) -> bool {
        let Some(index) = node.source(1) else {
            return false;
        };
        let width = match index.element_type() {
            sys::GGML_TYPE_I64 => 8,
            sys::GGML_TYPE_I32 => 4,
            _ => return false,
        };
        let leaf = index.view_source().unwrap_or(index).op() == sys::GGML_OP_NONE;
        let flat = (1..4).all(|dim| index.extent(dim) == 1)
            && (2..4).all(|dim| node.extent(dim) == 1)
            && index.stride(0) == width;
        let elsewhere = paged.addresses.find(index.address()).is_none();
        let (row_bytes, row_used) = (node.stride(1), element_row_bytes(node));
        if row_bytes < ROW_BYTES_MIN {
            return false;
        }
        if !leaf || !flat || !elsewhere || index.buffer().is_null() {
            return false;
        }
        self.index_bytes.resize(index.span_bytes(), 0);
        let bytes = self.index_bytes.as_mut_ptr().cast();
        // SAFETY:
        // - the index tensor is a live leaf with a buffer: its bytes are set already;
        // - the destination is as large as it.
        unsafe { sys::ggml_backend_tensor_get(index.as_ptr(), bytes, 0, index.span_bytes()) };

        for entry in self.index_bytes.chunks_exact(width) {
            let row = match width {
                8 => i64::from_le_bytes(entry.try_into().expect("eight bytes")),
                _ => i64::from(i32::from_le_bytes(entry.try_into().expect("four bytes"))),
            };
            let Ok(row) = usize::try_from(row) else {
                return false;
            };
            let start = offset + row * row_bytes;
            match self.rows.last_mut() {
                Some(last) if last.end == start => last.end = start + row_used,
                _ => self.rows.push(start..start + row_used),
            }
        }
        if self.rows.len() > RANGES_MAX {
            let start = self.rows.iter().map(|range| range.start).min();
            let end = self.rows.iter().map(|range| range.end).max();
            self.rows.clear();
            self.rows
                .push(start.unwrap_or(offset)..end.unwrap_or(offset));
        }
        true
    }
}

/// Bytes of one row's elements, without the padding between rows.
fn element_row_bytes(tensor: Tensor<'_>) -> usize {
    // SAFETY: no preconditions beyond a valid type, which a tensor has.
    unsafe { sys::ggml_row_size(tensor.element_type(), tensor.extent(0)) }
}
