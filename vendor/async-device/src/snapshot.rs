//! A graph as it was when it was launched: its owner may change the tensors at once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ggml_sys as sys;

use crate::memory::{Memory, Space};

type Raw = *mut sys::ggml_tensor;

/// A copy of a graph, of its nodes, and of what they read; addresses are real ones.
pub struct Snapshot {
    // The copies. Nodes come first, in their order.
    tensors: Box<[sys::ggml_tensor]>,
    nodes: Vec<Raw>,
    table: Table,
    memories: Vec<Arc<Memory>>,
}

// SAFETY: the pointers lead into the snapshot itself, and to memory that it holds.
unsafe impl Send for Snapshot {}

/// ggml's hash table of a graph: how often each node is used, by which it decides what may
/// be computed in one go.
struct Table {
    keys: Vec<Raw>,
    used: Vec<sys::ggml_bitset_t>,
    counts: Vec<i32>,
}

impl Snapshot {
    /// Copies `graph`, whose addresses lie in `space`. Where the device counts from where
    /// its buffers begin, no tensor that is computed with begins before.
    ///
    /// # Errors
    /// A sentence, when a tensor that is computed with lies nowhere.
    ///
    /// # Safety
    /// - the graph and its tensors are live, and nobody changes them meanwhile.
    pub unsafe fn of(
        graph: &sys::ggml_cgraph,
        space: &Space,
        counts_from_base: bool,
    ) -> Result<Self, String> {
        let count = usize::try_from(graph.n_nodes).unwrap_or(0);
        let originals: &[Raw] = match count {
            0 => &[],
            // SAFETY: a graph's `nodes` holds `n_nodes` pointers.
            _ => unsafe { std::slice::from_raw_parts(graph.nodes, count) },
        };
        // SAFETY: as promised.
        let (mut tensors, places) = unsafe { collect(originals) };
        let mut memories = Vec::new();
        let touched = touched(&tensors[..count], &places);
        for (index, tensor) in tensors.iter_mut().enumerate() {
            let settled = settle(tensor, space, &mut memories).and_then(|begins| {
                let is_lost = counts_from_base && !begins && touched.contains(&index);
                match is_lost {
                    true => Err(format!("{} begins before its buffer", name_of(tensor))),
                    false => Ok(()),
                }
            });
            match settled {
                Err(sentence) if touched.contains(&index) => return Err(sentence),
                // A view that only others look through, perhaps of what lies elsewhere.
                Err(_) => tensor.data = std::ptr::null_mut(),
                Ok(()) => {}
            }
        }
        let mut tensors = tensors.into_boxed_slice();
        let first = tensors.as_mut_ptr();
        let at = |original: Raw| match places.get(&original) {
            // SAFETY: places are indices of `tensors`.
            Some(place) => unsafe { first.add(*place) },
            None => std::ptr::null_mut(),
        };
        let nodes: Vec<Raw> = originals.iter().map(|original| at(*original)).collect();
        for (index, tensor) in tensors.iter_mut().enumerate() {
            let is_node = index < count;
            tensor.view_src = at(tensor.view_src);
            for source in &mut tensor.src {
                *source = if is_node {
                    at(*source)
                } else {
                    std::ptr::null_mut()
                };
            }
            if !is_node {
                // Bytes are all that a graph knows of what is computed elsewhere.
                tensor.op = sys::GGML_OP_NONE;
            }
        }
        let uses = originals.iter().map(|original| {
            // SAFETY: the graph is live.
            unsafe { uses_of(graph, *original) }
        });
        let table = Table::new(nodes.iter().copied().zip(uses));
        Ok(Self {
            tensors,
            nodes,
            table,
            memories,
        })
    }

    /// The graph, for ggml; valid while the snapshot is neither moved nor dropped.
    pub fn graph(&mut self) -> sys::ggml_cgraph {
        sys::ggml_cgraph {
            size: 0,
            n_nodes: i32::try_from(self.nodes.len()).expect("as many as there were"),
            n_leafs: 0,
            nodes: self.nodes.as_mut_ptr(),
            grads: std::ptr::null_mut(),
            grad_accs: std::ptr::null_mut(),
            leafs: std::ptr::null_mut(),
            use_counts: self.table.counts.as_mut_ptr(),
            visited_hash_set: sys::ggml_hash_set {
                size: self.table.keys.len(),
                used: self.table.used.as_mut_ptr(),
                keys: self.table.keys.as_mut_ptr(),
            },
            order: 0,
            uid: 0,
        }
    }

    /// The nodes, in order.
    pub fn nodes(&self) -> &[sys::ggml_tensor] {
        &self.tensors[..self.nodes.len()]
    }

    /// The tensor that a node's `src` points to.
    pub fn source(&self, node: &sys::ggml_tensor, index: usize) -> Option<&sys::ggml_tensor> {
        let first = self.tensors.as_ptr() as usize;
        let at = (node.src[index] as usize).checked_sub(first)?;
        self.tensors.get(at / size_of::<sys::ggml_tensor>())
    }

    /// Has it hold this memory, and gives back what it held before.
    pub fn hold(&mut self, memories: Vec<Arc<Memory>>) -> Vec<Arc<Memory>> {
        std::mem::replace(&mut self.memories, memories)
    }

    /// The memory that it uses.
    pub fn memories(&self) -> &[Arc<Memory>] {
        &self.memories
    }

    /// The memory that an address of the snapshot's tensors lies in, with its offset there.
    pub fn memory_of(&self, tensor: &sys::ggml_tensor) -> Option<(&Memory, usize)> {
        let described = |memory: &&Arc<Memory>| memory.described() == tensor.buffer;
        let memory = self.memories.iter().find(described)?;
        let offset = (tensor.data as usize).checked_sub(memory.pointer(0) as usize)?;
        Some((memory, offset))
    }
}

/// Copies of nodes, then of what they read and what that is a view of; and the place of
/// each.
///
/// # Safety
/// - all of them are live, and nobody changes them meanwhile.
unsafe fn collect(nodes: &[Raw]) -> (Vec<sys::ggml_tensor>, HashMap<Raw, usize>) {
    let mut copies = Vec::with_capacity(nodes.len() * 2);
    let mut places = HashMap::with_capacity(nodes.len() * 2);
    for node in nodes {
        places.insert(*node, copies.len());
        // SAFETY: as promised.
        copies.push(unsafe { **node });
    }
    let (mut next, count) = (0, nodes.len());
    while next < copies.len() {
        let tensor: sys::ggml_tensor = copies[next];
        let sources: &[Raw] = if next < count { &tensor.src } else { &[] };
        for other in sources.iter().chain([&tensor.view_src]) {
            if !other.is_null() && !places.contains_key(other) {
                places.insert(*other, copies.len());
                // SAFETY: as promised.
                copies.push(unsafe { **other });
            }
        }
        next += 1;
    }
    (copies, places)
}

/// Places of the tensors whose bytes are read or written when `nodes` are computed: views
/// and empty ones are not.
fn touched(nodes: &[sys::ggml_tensor], places: &HashMap<Raw, usize>) -> HashSet<usize> {
    let computed = nodes.iter().enumerate().filter(|(_, node)| {
        let looks = [
            sys::GGML_OP_NONE,
            sys::GGML_OP_VIEW,
            sys::GGML_OP_RESHAPE,
            sys::GGML_OP_PERMUTE,
            sys::GGML_OP_TRANSPOSE,
        ];
        !looks.contains(&node.op) && node.ne.iter().all(|extent| *extent > 0)
    });
    let of_node = |(index, node): (usize, &sys::ggml_tensor)| {
        let sources = node.src.map(|source| places.get(&source).copied());
        sources.into_iter().flatten().chain([index])
    };
    computed.flat_map(of_node).collect()
}

/// Points `tensor` to where its bytes really are; whether it begins in its buffer.
fn settle(
    tensor: &mut sys::ggml_tensor,
    space: &Space,
    memories: &mut Vec<Arc<Memory>>,
) -> Result<bool, String> {
    if tensor.data.is_null() {
        return Ok(true);
    }
    let address = tensor.data as usize;
    // The tensor may begin before its buffer, when only later rows of it are there.
    let memory = match space.of_buffer(tensor.buffer) {
        Some(memory) => memory,
        None => space
            .find(address)
            .map_err(|error| format!("{}: {error}", name_of(tensor)))?,
    };
    let offset = address.wrapping_sub(memory.base());
    tensor.data = memory.pointer(0).wrapping_add(offset).cast();
    tensor.buffer = memory.described();
    if !memories.iter().any(|known| Arc::ptr_eq(known, &memory)) {
        memories.push(Arc::clone(&memory));
    }
    Ok(offset <= memory.bytes())
}

/// A tensor's name, for complaints.
pub fn name_of(tensor: &sys::ggml_tensor) -> String {
    let bytes = tensor.name.iter().map(|byte| byte.to_ne_bytes()[0]);
    let bytes: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
    format!("'{}'", String::from_utf8_lossy(&bytes))
}

/// How often ggml says that a node of `graph` is used.
///
/// # Safety
/// - the graph is live.
unsafe fn uses_of(graph: &sys::ggml_cgraph, node: Raw) -> i32 {
    let set = &graph.visited_hash_set;
    if graph.use_counts.is_null() || set.size == 0 {
        return 0;
    }
    let first = (node as usize >> 4) % set.size;
    for step in 0..set.size {
        let at = (first + step) % set.size;
        // SAFETY: the bits of the set are there for each of its places.
        let word = unsafe { *set.used.wrapping_add(at / 32) };
        if word >> (at % 32) & 1 == 0 {
            return 0;
        }
        // SAFETY: the place is in use, so it has a key.
        if unsafe { *set.keys.wrapping_add(at) } == node {
            // SAFETY: counts are indexed by the place in the set.
            return unsafe { *graph.use_counts.wrapping_add(at) };
        }
    }
    0
}

impl Table {
    fn new(uses: impl ExactSizeIterator<Item = (Raw, i32)>) -> Self {
        let size = uses.len() * 2 + 1;
        let mut table = Self {
            keys: vec![std::ptr::null_mut(); size],
            used: vec![0; size.div_ceil(32)],
            counts: vec![0; size],
        };
        for (node, count) in uses {
            let mut at = (node as usize >> 4) % size;
            while !table.keys[at].is_null() {
                at = (at + 1) % size;
            }
            table.keys[at] = node;
            table.used[at / 32] |= 1 << (at % 32);
            table.counts[at] = count;
        }
        table
    }
}
