//! Graphs that a backend keeps and replays, as ggml-cuda does with CUDA's graphs.
//!
//! A graph is known by its first node. One that was launched twice without a change is
//! captured; from then on the capture is replayed, with the addresses that it was made
//! with, until a change is seen:
//!
//! - a graph with an identity (`uid`) that is the one of the last launch is not looked at;
//! - of others, every node is compared: the tensor itself, and the address and shape of
//!   what it reads.
//!
//! ggml-cuda also forgets captures that nobody used for ten seconds; we do not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use ggml_sys as sys;

use crate::event::lock;
use crate::memory::Memory;
use crate::shared::{Tally, count};
use crate::snapshot::Snapshot;

/// What is launched, with the memory that it holds until it is done.
pub struct Launch {
    // A capture is launched more than once, and holds no memory in between.
    snapshot: Arc<Mutex<Snapshot>>,
    memories: Vec<Arc<Memory>>,
}

impl Launch {
    /// A launch of what was just copied.
    pub fn of(mut snapshot: Snapshot) -> Self {
        let memories = snapshot.hold(Vec::new());
        Self {
            snapshot: Arc::new(Mutex::new(snapshot)),
            memories,
        }
    }

    /// Calls with the graph and its memory.
    pub fn run<T>(self, call: impl FnOnce(&mut Snapshot) -> T) -> T {
        let mut snapshot = lock(&self.snapshot);
        snapshot.hold(self.memories);
        let result = call(&mut snapshot);
        snapshot.hold(Vec::new());
        result
    }
}

/// The captures of one backend.
#[derive(Default)]
pub struct Captures(HashMap<usize, Capture>);

/// What is known of the graphs that begin with one node.
#[derive(Default)]
struct Capture {
    uid: u64,
    // Launched twice in a row without a change.
    warm: bool,
    nodes: Vec<Properties>,
    instance: Option<Instance>,
}

/// A captured graph, with the memory that its addresses are of.
struct Instance {
    snapshot: Arc<Mutex<Snapshot>>,
    memories: Vec<Weak<Memory>>,
}

impl Instance {
    fn launch(&self) -> Result<Launch, String> {
        let memories: Option<Vec<_>> = self.memories.iter().map(Weak::upgrade).collect();
        let memories = memories.ok_or("a graph is replayed that uses a buffer that was freed")?;
        Ok(Launch {
            snapshot: Arc::clone(&self.snapshot),
            memories,
        })
    }
}

/// What is compared of a node.
#[derive(PartialEq, Eq)]
struct Properties {
    tensor: [u8; size_of::<sys::ggml_tensor>()],
    sources: Vec<Source>,
}

/// Address, extents and strides of what a node reads.
type Source = (usize, [i64; 4], [usize; 4]);

impl Captures {
    /// What a launch of `graph` computes: a capture, or the graph as `now` copies it.
    ///
    /// # Errors
    /// A sentence, when the copy fails, or where ggml-cuda would abort.
    pub fn launch(
        &mut self,
        graph: &sys::ggml_cgraph,
        tally: &Tally,
        now: impl FnOnce() -> Result<Snapshot, String>,
    ) -> Result<Launch, String> {
        let copy = || now().map(Launch::of);
        let nodes = nodes_of(graph);
        let Some(first) = nodes.first() else {
            return copy();
        };
        let capture = self.0.entry(*first as usize).or_default();
        let changed = capture.is_changed(graph.uid, nodes)?;
        match (capture.warm, changed) {
            // The first time, or once more since the last change.
            (false, true) => copy(),
            (false, false) => {
                capture.warm = true;
                let launch = copy()?;
                capture.instance = Some(Instance {
                    snapshot: Arc::clone(&launch.snapshot),
                    memories: launch.memories.iter().map(Arc::downgrade).collect(),
                });
                count(&tally.captures);
                Ok(launch)
            }
            (true, true) => {
                capture.warm = false;
                copy()
            }
            (true, false) => {
                let instance = capture.instance.as_ref();
                let instance = instance.ok_or("a graph is replayed that was never captured")?;
                count(&tally.replays);
                instance.launch()
            }
        }
    }
}

impl Capture {
    fn is_changed(&mut self, uid: u64, nodes: &[*mut sys::ggml_tensor]) -> Result<bool, String> {
        if uid != 0 && uid == self.uid {
            return match self.nodes.len() == nodes.len() {
                true => Ok(false),
                false => Err("a graph has another's identity, and not its nodes".to_owned()),
            };
        }
        self.uid = uid;
        let now: Vec<Properties> = nodes.iter().map(|node| Properties::of(*node)).collect();
        let changed = self.nodes != now;
        self.nodes = now;
        Ok(changed)
    }
}

impl Properties {
    /// The properties of a live node.
    fn of(node: *mut sys::ggml_tensor) -> Self {
        // SAFETY: the nodes of a graph at its launch are live, and as many bytes long; its
        // padding is part of what ggml zeroes.
        let tensor = unsafe { node.cast::<[u8; size_of::<sys::ggml_tensor>()]>().read() };
        // SAFETY: as above.
        let sources = unsafe { &(*node).src };
        let sources = sources.iter().filter(|source| !source.is_null());
        let sources = sources.map(|source| {
            // SAFETY: what a live node reads lives too.
            let source = unsafe { &**source };
            (source.data as usize, source.ne, source.nb)
        });
        Self {
            tensor,
            sources: sources.collect(),
        }
    }
}

fn nodes_of(graph: &sys::ggml_cgraph) -> &[*mut sys::ggml_tensor] {
    match usize::try_from(graph.n_nodes).unwrap_or(0) {
        0 => &[],
        // SAFETY: a graph's `nodes` holds `n_nodes` pointers.
        count => unsafe { std::slice::from_raw_parts(graph.nodes, count) },
    }
}
