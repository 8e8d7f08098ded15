//! Host segments: nodes that the processor computes, from weights that have a copy in host
//! memory, while the link fetches what the device needs next.
//!
//! ```text
//!  nodes     … norm mul │ product product glu product sum │ norm …
//!  computed     device  │            processor            │ device
//!                       ▲ activations come                ▲ results go
//! ```
//!
//! That is a feed-forward block, as here, or the products of attention that come before it,
//! or the one that comes after, or the output. A host segment reaches from the first product
//! with such a weight to the last one, with what is between them, as long as the processor can
//! compute that and it reads nothing large that lies in the device's memory. It begins with a
//! product, which no backend fuses with what is before; and where sums lead from its last
//! product to a norm, it ends before that norm, so that what the device computes is fused as
//! if all were on the device.
//!
//! Only in graphs of few tokens: the processor is bound by the speed of its memory then, as
//! the link is by its own. With more tokens it would compute for longer than the link takes.

pub mod run;

use std::ops::Range;

use ggml_sys as sys;

use super::scan::Scan;
use super::shared::Paged;
use crate::ggml::{Graph, InnerDevice, RawBuffer, Tensor};
use crate::pager::TensorId;

/// So many columns a product has at most that the processor computes: a token and what is
/// drafted after it. Up to here GPUs take products as bound by memory as well (ggml-cuda
/// and ggml-vulkan have kernels of their own for up to eight).
pub const COLUMNS_MAX: i64 = 8;
/// Nodes between two products of one host segment.
const GAP_NODES_MAX: usize = 16;
/// Sums between a product and a norm.
const SUMS_MAX: usize = 4;
/// Bytes of a tensor that crosses the link for a host segment: activations of a few tokens.
const ACTIVATION_BYTES_MAX: usize = 4 << 20;
/// Bytes of a weight in the device's memory that does: biases, factors of norms.
const WEIGHT_BYTES_MAX: usize = 1 << 20;
/// Alignment of tensors in the scratch memory, in bytes.
const ALIGNMENT: usize = 64;

/// Where a tensor of a host segment is while the processor computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Home {
    /// In the scratch memory, from this offset on.
    Scratch(usize),
    /// In the copy of a weight, from this offset on.
    Copy(TensorId, usize),
    /// Where it is anyway, in host memory.
    There,
}

/// What happens to a tensor of a host segment besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Nothing: it is a view, or lies in host memory.
    None,
    /// Its bytes come from here, in the device's memory.
    Input(usize, RawBuffer),
    /// It is computed, and perhaps read by others afterwards.
    Result { is_read: bool },
}

/// A tensor of a host segment.
#[derive(Clone, Copy, Debug)]
struct Item {
    raw: *mut sys::ggml_tensor,
    home: Home,
    part: Part,
    bytes: usize,
}

/// Nodes that the processor computes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostSegment {
    /// The nodes, by index in the graph.
    pub nodes: Range<usize>,
    /// Bytes of the weights that it computes with.
    pub weight_bytes: u64,
    items: Range<usize>,
    weights: Range<usize>,
}

/// The host segments of a graph. Kept from graph to graph, so that a pass allocates nothing.
#[derive(Debug, Default)]
pub struct HostPlan {
    segments: Vec<HostSegment>,
    nodes: Vec<Range<usize>>,
    items: Vec<Item>,
    weights: Vec<TensorId>,
    scratch_bytes: usize,
}

/// Who computes.
#[derive(Clone, Copy, Debug)]
pub struct Devices {
    /// The inner device, in whose memory tensors lie.
    pub inner: InnerDevice,
    /// The processor.
    pub cpu: InnerDevice,
}

impl HostPlan {
    /// The segments, in order.
    pub fn segments(&self) -> &[HostSegment] {
        &self.segments
    }

    /// Their nodes.
    pub fn nodes(&self) -> &[Range<usize>] {
        &self.nodes
    }

    /// The weights that a segment computes with.
    pub fn weights(&self, segment: &HostSegment) -> &[TensorId] {
        &self.weights[segment.weights.clone()]
    }

    /// Bytes of weights that a pass computes with on the processor.
    pub fn weight_bytes(&self) -> u64 {
        self.segments
            .iter()
            .map(|segment| segment.weight_bytes)
            .sum()
    }

    fn items(&self, segment: &HostSegment) -> &[Item] {
        &self.items[segment.items.clone()]
    }

    /// Finds the host segments of a graph that was scanned. Between two of them is always a
    /// node that the device computes.
    pub fn rebuild(&mut self, graph: Graph<'_>, paged: &mut Paged, scan: &Scan, devices: Devices) {
        self.segments.clear();
        self.nodes.clear();
        self.items.clear();
        self.weights.clear();
        self.scratch_bytes = 0;
        if !paged.pager.has_host_weights() || columns_of(graph, scan, paged) > COLUMNS_MAX {
            return;
        }
        let mut next = 0;
        for used in &scan.uses {
            if used.node >= next && is_host_product(graph, used.node, paged) {
                let mut builder = Builder::new(self, graph, paged, devices);
                if let Some(nodes) = builder.build(used.node) {
                    next = nodes.end;
                    self.nodes.push(nodes);
                }
            }
        }
    }
}

/// The most columns that a product with a paged weight has.
fn columns_of(graph: Graph<'_>, scan: &Scan, paged: &Paged) -> i64 {
    let products = scan.touches.iter().filter_map(|touch| {
        let node = graph.node(touch.node);
        let is_weight = paged.pager.state_group(touch.tensor).is_none();
        let weight = node.source(0)?;
        let is_weight = is_weight && weight.as_ptr() == touch.raw;
        // Each matrix of a weight that has several, by heads, has columns of its own.
        let of_each = |dim| node.extent(dim) / weight.extent(dim).max(1);
        let columns = match node.op() {
            sys::GGML_OP_MUL_MAT => node.extent(1) * of_each(2) * of_each(3),
            // Those before are of one token.
            sys::GGML_OP_MUL_MAT_ID => node.extent(2),
            _ => return None,
        };
        is_weight.then_some(columns)
    });
    products.max().unwrap_or(0)
}

/// Whether a node is a product with a weight that the processor computes with.
fn is_host_product(graph: Graph<'_>, index: usize, paged: &Paged) -> bool {
    let node = graph.node(index);
    let is_product = matches!(node.op(), sys::GGML_OP_MUL_MAT | sys::GGML_OP_MUL_MAT_ID);
    let weight = node.source(0);
    let weight = weight.filter(|weight| is_product && weight.view_source().is_none());
    let found = weight.and_then(|weight| paged.addresses.find(weight.address()));
    found.is_some_and(|(id, _)| paged.pager.is_on_host(id))
}

/// Whether a node goes over what earlier tokens left: that is where the device is.
fn attends(node: Tensor<'_>) -> bool {
    matches!(
        node.op(),
        sys::GGML_OP_FLASH_ATTN_EXT
            | sys::GGML_OP_SOFT_MAX
            | sys::GGML_OP_SSM_CONV
            | sys::GGML_OP_SSM_SCAN
            | sys::GGML_OP_GATED_DELTA_NET
    )
}

/// Bytes of its weight that a product reads: of experts, those that are named.
fn bytes_read(product: Tensor<'_>) -> u64 {
    let Some(weight) = product.source(0) else {
        return 0;
    };
    let ids = product.source(2);
    let ids = ids.filter(|_| product.op() == sys::GGML_OP_MUL_MAT_ID);
    let bytes = ids.map_or(weight.span_bytes(), |ids| {
        let named = (ids.extent(0) * ids.extent(1)).min(weight.extent(2));
        usize::try_from(named).unwrap_or(0) * weight.stride(2)
    });
    bytes as u64
}

/// A host segment in the making: takes nodes in, one by one, as far as they fit.
struct Builder<'a, 'g> {
    plan: &'a mut HostPlan,
    graph: Graph<'g>,
    paged: &'a mut Paged,
    devices: Devices,
    start: Mark,
    scratch: usize,
}

/// What of a plan belongs to the nodes so far.
#[derive(Clone, Copy)]
struct Mark {
    items: usize,
    weights: usize,
    scratch: usize,
}

impl<'a, 'g> Builder<'a, 'g> {
    fn new(
        plan: &'a mut HostPlan,
        graph: Graph<'g>,
        paged: &'a mut Paged,
        devices: Devices,
    ) -> Self {
        let start = Mark {
            items: plan.items.len(),
            weights: plan.weights.len(),
            scratch: 0,
        };
        Self {
            plan,
            graph,
            paged,
            devices,
            start,
            scratch: 0,
        }
    }

    /// Builds the segment that begins with the product at `first`; its nodes, or None when
    /// the processor cannot compute that.
    fn build(&mut self, first: usize) -> Option<Range<usize>> {
        if !self.add(first) {
            self.cut_back(self.start);
            return None;
        }
        let (mut end, mut mark) = (first + 1, self.mark());
        for index in first + 1..self.graph.node_count() {
            if index - end > GAP_NODES_MAX || !self.add(index) {
                break;
            }
            if is_host_product(self.graph, index, self.paged) {
                (end, mark) = (index + 1, self.mark());
            }
        }
        self.cut_back(mark);
        let nodes = first..self.end_at_seam(end);
        self.note_what_is_read(&nodes);
        let items = self.start.items..self.plan.items.len();
        let weights = self.start.weights..self.plan.weights.len();
        let products = nodes.clone();
        let products = products.filter(|index| is_host_product(self.graph, *index, self.paged));
        let bytes = products.map(|index| bytes_read(self.graph.node(index)));
        let weight_bytes = bytes.sum();
        self.plan.segments.push(HostSegment {
            nodes: nodes.clone(),
            weight_bytes,
            items,
            weights,
        });
        self.plan.scratch_bytes = self.plan.scratch_bytes.max(self.scratch);
        Some(nodes)
    }

    fn mark(&self) -> Mark {
        Mark {
            items: self.plan.items.len(),
            weights: self.plan.weights.len(),
            scratch: self.scratch,
        }
    }

    fn cut_back(&mut self, mark: Mark) {
        self.plan.items.truncate(mark.items);
        self.plan.weights.truncate(mark.weights);
        self.scratch = mark.scratch;
    }

    /// Where the segment ends whose last product is before `end`: after the sums that lead
    /// from there to a norm, as a backend may fuse them.
    fn end_at_seam(&mut self, end: usize) -> usize {
        let (count, mark) = (self.graph.node_count(), self.mark());
        for index in end..count.min(end + SUMS_MAX) {
            if self.graph.is_seam(index) {
                return index;
            }
            if !self.graph.is_sum(index) || !self.add(index) {
                break;
            }
        }
        self.cut_back(mark);
        end
    }

    /// Takes a node in; whether the processor can compute it here.
    fn add(&mut self, index: usize) -> bool {
        let node = self.graph.node(index);
        if node.is_empty() || node.is_only_a_view() {
            return true;
        }
        let is_paged = self.paged.addresses.find(node.address()).is_some();
        // What computes into another tensor's place is not worth the care.
        if node.view_source().is_some() || is_paged || attends(node) {
            return false;
        }
        // Logits are many, but no more than the device would have to give to llama.cpp.
        let is_product = is_host_product(self.graph, index, self.paged);
        if node.span_bytes() > ACTIVATION_BYTES_MAX && !is_product {
            return false;
        }
        if !node.sources().all(|source| self.place(source)) || !self.devices.cpu.supports(node) {
            return false;
        }
        let home = self.scratch_for(node.span_bytes());
        self.plan.items.push(Item {
            raw: node.as_ptr(),
            home,
            part: Part::Result { is_read: true },
            bytes: node.span_bytes(),
        });
        true
    }

    fn scratch_for(&mut self, bytes: usize) -> Home {
        let at = self.scratch;
        self.scratch = (at + bytes).next_multiple_of(ALIGNMENT);
        Home::Scratch(at)
    }

    fn home_of(&self, tensor: Tensor<'_>) -> Option<Home> {
        let mut items = self.plan.items[self.start.items..].iter();
        let known = items.find(|item| item.raw == tensor.as_ptr());
        known.map(|item| item.home)
    }

    /// Finds a place for what a node reads; whether there is one.
    fn place(&mut self, tensor: Tensor<'_>) -> bool {
        if tensor.is_empty() || self.home_of(tensor).is_some() {
            return true;
        }
        let root = tensor.view_source().unwrap_or(tensor);
        let home = match self.home_of(root) {
            Some(home) => home,
            None => match self.place_root(root) {
                Some(home) => home,
                None => return false,
            },
        };
        if root == tensor {
            return true;
        }
        let offset = tensor.address().wrapping_sub(root.address());
        self.plan.items.push(Item {
            raw: tensor.as_ptr(),
            home: match home {
                Home::Scratch(at) => Home::Scratch(at + offset),
                Home::Copy(id, at) => Home::Copy(id, at + offset),
                Home::There => Home::There,
            },
            part: Part::None,
            bytes: 0,
        });
        true
    }

    /// Finds a place for what the nodes so far have not computed.
    fn place_root(&mut self, root: Tensor<'_>) -> Option<Home> {
        let bytes = root.span_bytes();
        let (home, part) = match self.paged.addresses.find(root.address()) {
            Some((id, offset)) if self.paged.pager.is_on_host(id) => {
                if !self.paged.pager.take_copy(id) {
                    return None;
                }
                if !self.plan.weights[self.start.weights..].contains(&id) {
                    self.plan.weights.push(id);
                }
                (Home::Copy(id, offset), Part::None)
            }
            Some((id, offset)) => {
                if !self.paged.pager.is_resident_weight(id) || bytes > WEIGHT_BYTES_MAX {
                    return None;
                }
                let (address, buffer) = self.paged.pager.locate(id);
                (
                    self.scratch_for(bytes),
                    Part::Input(address.wrapping_add(offset), buffer),
                )
            }
            None if root.is_in_host_memory() => (Home::There, Part::None),
            None => {
                // What nothing computes may be a cache that is not paged.
                let most = match root.op() {
                    sys::GGML_OP_NONE => WEIGHT_BYTES_MAX,
                    _ => ACTIVATION_BYTES_MAX,
                };
                if bytes > most || !root.is_in_memory_of(self.devices.inner) {
                    return None;
                }
                (
                    self.scratch_for(bytes),
                    Part::Input(root.address(), root.buffer()),
                )
            }
        };
        self.plan.items.push(Item {
            raw: root.as_ptr(),
            home,
            part,
            bytes,
        });
        Some(home)
    }

    /// Notes of each result whether anybody else reads it: another node, by ggml's count of
    /// uses, or whoever asked for the graph.
    fn note_what_is_read(&mut self, nodes: &Range<usize>) {
        let graph = self.graph;
        let last = graph.node(graph.node_count() - 1);
        for item in &mut self.plan.items[self.start.items..] {
            let Part::Result { is_read } = &mut item.part else {
                continue;
            };
            // Through a view others may read: that counts as none of ours.
            let ours = nodes.clone().map(|index| graph.node(index));
            let ours = ours.filter(|node| !node.is_only_a_view());
            let sources = ours.flat_map(Tensor::sources);
            let uses = sources.filter(|source| source.as_ptr() == item.raw).count();
            let known = graph.tensor_at(item.raw, nodes);
            *is_read = known.is_none_or(|result| {
                let all = graph.use_count(result);
                result == last || result.is_output() || all.is_none_or(|all| uses < all)
            });
        }
    }
}
