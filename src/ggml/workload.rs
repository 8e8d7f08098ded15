//! Small graphs that cost what a model's parts cost, to be timed: matrix products of a
//! type, attention, nodes that do nearly nothing.

use std::ptr::NonNull;

use ggml_sys as sys;
use memmap2::MmapMut;

use super::{DeviceBuffer, Graph, HostBuffer, InnerBackend, InnerDevice, RawBuffer};

/// Bytes that are written to a tensor at once.
const FILL_BYTES: usize = 4 << 20;

/// A graph on a device, with the memory of its tensors.
#[derive(Debug)]
pub struct Workload {
    // Before the context: nothing of a graph outlives it.
    graph: NonNull<sys::ggml_cgraph>,
    backend: InnerBackend,
    context: NonNull<sys::ggml_context>,
    _memory: Memory,
}

/// What the tensors lie in.
#[derive(Debug)]
enum Memory {
    /// The machine's: the description of the memory goes before the memory.
    Host {
        buffer: HostBuffer,
        _memory: MmapMut,
    },
    /// A device's own.
    Device(DeviceBuffer),
}

impl Memory {
    fn raw(&self) -> RawBuffer {
        match self {
            Self::Host { buffer, .. } => buffer.as_ptr(),
            Self::Device(buffer) => buffer.as_ptr(),
        }
    }

    fn base(&self) -> *mut u8 {
        // SAFETY: the buffer is live.
        unsafe { sys::ggml_backend_buffer_get_base(self.raw()) }.cast()
    }
}

// SAFETY: context, buffer and graph belong to this object alone and are not tied to a thread.
unsafe impl Send for Workload {}

/// What a workload is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Products of `count` matrices with `tokens` vectors.
    Matrices {
        /// ggml's number of the matrices' type.
        kind: u32,
        /// Elements of a row; a multiple of the type's block.
        columns: i64,
        /// Rows of one.
        rows: i64,
        /// How many matrices.
        count: usize,
        /// Vectors.
        tokens: i64,
    },
    /// Flash attention of `tokens` tokens over `rows` rows of an F16 cache.
    Attention {
        /// Elements of a head.
        head: i64,
        /// Heads.
        heads: i64,
        /// Heads of the cache.
        heads_kv: i64,
        /// Rows of the cache.
        rows: i64,
        /// Tokens.
        tokens: i64,
    },
    /// `count` additions, one after the other.
    Nodes {
        /// Elements of each.
        elements: i64,
        /// How many.
        count: usize,
    },
}

impl Work {
    /// What it is, for messages.
    fn name(self) -> String {
        match self {
            Self::Matrices { kind, .. } => {
                format!("matrices of type {}", kind_name(kind).unwrap_or("unknown"))
            }
            Self::Attention { head, .. } => format!("attention with heads of {head} elements"),
            Self::Nodes { .. } => "additions".to_owned(),
        }
    }
}

/// The name of an element type, as llama.cpp prints it; None for a number that is none.
pub fn kind_name(kind: u32) -> Option<&'static str> {
    let kind = sys::ggml_type::from(kind);
    if kind >= sys::GGML_TYPE_COUNT {
        return None;
    }
    // SAFETY: the number is one of ggml's.
    let name = unsafe { sys::ggml_type_name(kind) };
    if name.is_null() {
        return None;
    }
    // SAFETY: a static C string.
    unsafe { std::ffi::CStr::from_ptr(name) }.to_str().ok()
}

/// Bytes of a row of `columns` elements; None when the type's blocks do not divide it.
pub fn row_bytes(kind: u32, columns: u64) -> Option<u64> {
    kind_name(kind)?;
    // SAFETY: the number is one of ggml's, as just tested; so below.
    let block = unsafe { sys::ggml_blck_size(kind) };
    let block = u64::try_from(block).ok().filter(|block| *block > 0)?;
    // SAFETY: as above.
    let bytes = unsafe { sys::ggml_type_size(kind) } as u64;
    columns
        .is_multiple_of(block)
        .then(|| columns / block * bytes)
}

impl Workload {
    /// Makes the graph on ggml's CPU device and fills its matrices; `threads` compute it.
    ///
    /// # Errors
    /// A sentence, when memory runs out or the type is none that is computed with.
    pub fn new(work: Work, threads: usize) -> Result<Self, String> {
        Self::on(InnerDevice::cpu()?, work, threads)
    }

    /// Makes the graph on `inner`, in its own memory where it has such, and fills its
    /// matrices; `threads` compute it where it is the CPU.
    ///
    /// # Errors
    /// A sentence, when memory runs out, the type is none that is computed with, or the device
    /// does not compute such a graph.
    pub fn on(inner: InnerDevice, work: Work, threads: usize) -> Result<Self, String> {
        let params = sys::ggml_init_params {
            mem_size: 1 << 20,
            mem_buffer: std::ptr::null_mut(),
            no_alloc: true,
        };
        // SAFETY: memory is ggml's own, freed with the context.
        let context = NonNull::new(unsafe { sys::ggml_init(params) });
        let context = context.ok_or("ggml could not make a context")?;
        let context = Context(context);
        let backend = inner.backend()?;
        if inner.is_cpu() {
            let threads = i32::try_from(threads).unwrap_or(1).max(1);
            // SAFETY: a live CPU backend.
            unsafe { sys::ggml_backend_cpu_set_n_threads(backend.as_ptr(), threads) };
        }
        // SAFETY: the context is live.
        let graph = NonNull::new(unsafe { sys::ggml_new_graph(context.raw()) });
        let graph = graph.ok_or("ggml could not make a graph")?;
        let leaves = context.build(work, graph.as_ptr());
        // SAFETY: the graph is live, and nobody changes it.
        if let Some(graph) = unsafe { Graph::from_raw(graph.as_ptr()) } {
            for node in (0..graph.node_count()).map(|index| graph.node(index)) {
                if !inner.supports(node) {
                    return Err(format!("{} does not compute {}", inner.name(), work.name()));
                }
            }
        }
        let memory = context.allocate(inner)?;
        let workload = Self {
            graph,
            backend,
            context: context.into_raw(),
            _memory: memory,
        };
        for leaf in leaves {
            fill(leaf)?;
        }
        Ok(workload)
    }

    /// Computes the graph once; whether that worked.
    pub fn run(&mut self) -> bool {
        // SAFETY: the graph is live, and all its tensors have memory and values.
        let status = unsafe { self.backend.compute(self.graph.as_ptr()) };
        status == sys::GGML_STATUS_SUCCESS
    }

    /// Nodes of the graph.
    pub fn node_count(&self) -> usize {
        // SAFETY: the graph is live and not changed.
        let graph = unsafe { Graph::from_raw(self.graph.as_ptr()) };
        graph.map_or(0, |graph| graph.node_count())
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // SAFETY: made in `new`, freed once; graph and tensors are in it, and nobody uses
        // them any more.
        unsafe { sys::ggml_free(self.context.as_ptr()) };
    }
}

type Raw = *mut sys::ggml_tensor;

/// A ggml context while a graph is built in it; freed when that fails.
struct Context(NonNull<sys::ggml_context>);

impl Context {
    fn raw(&self) -> *mut sys::ggml_context {
        self.0.as_ptr()
    }

    fn into_raw(self) -> NonNull<sys::ggml_context> {
        let raw = self.0;
        std::mem::forget(self);
        raw
    }

    /// Memory for all tensors: the device's own, else the machine's, of large pages where the
    /// system has them, as an arena's is.
    fn allocate(&self, inner: InnerDevice) -> Result<Memory, String> {
        let alignment = inner.arena_alignment();
        let mut places = Vec::new();
        let mut total = 0;
        // SAFETY: the context is live.
        let mut tensor = unsafe { sys::ggml_get_first_tensor(self.raw()) };
        while !tensor.is_null() {
            // SAFETY: the tensor is the context's, the buffer type static.
            let bytes =
                unsafe { sys::ggml_backend_buft_get_alloc_size(inner.buffer_type(), tensor) };
            places.push((tensor, total));
            total += bytes.next_multiple_of(alignment);
            // SAFETY: context and tensor are live.
            tensor = unsafe { sys::ggml_get_next_tensor(self.raw(), tensor) };
        }
        let memory = match inner.is_host() {
            true => host_memory(total)?,
            false => {
                let mib = total >> 20;
                let buffer = DeviceBuffer::new(inner, total);
                Memory::Device(buffer.map_err(|why| {
                    format!("{} has no {mib} MiB to measure with ({why})", inner.name())
                })?)
            }
        };
        let start = memory.base();
        for (tensor, offset) in places {
            let place = start.wrapping_add(offset).cast();
            // SAFETY: the place is inside the buffer, with room for the tensor, which has
            // none yet.
            unsafe { sys::ggml_backend_tensor_alloc(memory.raw(), tensor, place) };
        }
        Ok(memory)
    }

    fn tensor(&self, kind: sys::ggml_type, extents: [i64; 3]) -> Raw {
        let [a, b, c] = extents;
        // SAFETY: the context is live and has room for a few hundred tensors.
        unsafe { sys::ggml_new_tensor_3d(self.raw(), kind, a, b, c) }
    }

    /// Builds the graph; returns its leaves, which want values.
    fn build(&self, work: Work, graph: *mut sys::ggml_cgraph) -> Vec<Raw> {
        let mut leaves = Vec::new();
        let mut outputs = Vec::new();
        match work {
            Work::Matrices {
                kind,
                columns,
                rows,
                count,
                tokens,
            } => {
                let vector = self.tensor(sys::GGML_TYPE_F32, [columns, tokens, 1]);
                leaves.push(vector);
                for _ in 0..count {
                    let matrix = self.tensor(kind, [columns, rows, 1]);
                    leaves.push(matrix);
                    // SAFETY: both tensors are the context's, their rows equally long.
                    outputs.push(unsafe { sys::ggml_mul_mat(self.raw(), matrix, vector) });
                }
            }
            Work::Attention {
                head,
                heads,
                heads_kv,
                rows,
                tokens,
            } => {
                let query = self.tensor(sys::GGML_TYPE_F32, [head, tokens, heads]);
                let keys = self.tensor(sys::GGML_TYPE_F16, [head, rows, heads_kv]);
                let values = self.tensor(sys::GGML_TYPE_F16, [head, rows, heads_kv]);
                leaves.extend([query, keys, values]);
                let none = std::ptr::null_mut();
                // SAFETY: the tensors are the context's and fit each other; no mask.
                outputs.push(unsafe {
                    sys::ggml_flash_attn_ext(self.raw(), query, keys, values, none, 0.125, 0.0, 0.0)
                });
            }
            Work::Nodes { elements, count } => {
                let one = self.tensor(sys::GGML_TYPE_F32, [elements, 1, 1]);
                leaves.push(one);
                let mut sum = one;
                for _ in 0..count {
                    // SAFETY: both tensors are the context's and of one shape.
                    sum = unsafe { sys::ggml_add(self.raw(), sum, one) };
                }
                outputs.push(sum);
            }
        }
        for output in outputs {
            // SAFETY: graph and tensor are the context's.
            unsafe { sys::ggml_build_forward_expand(graph, output) };
        }
        leaves
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by `ggml_init`, freed once.
        unsafe { sys::ggml_free(self.raw()) };
    }
}

/// `total` bytes of the machine's memory, and their description.
fn host_memory(total: usize) -> Result<Memory, String> {
    let no_memory = |error| format!("there is no memory to measure with ({error})");
    let mut memory = MmapMut::map_anon(total.max(1)).map_err(no_memory)?;
    #[cfg(target_os = "linux")]
    {
        // Advice only: a kernel without large pages refuses, and nothing is lost.
        let _ = memory.advise(memmap2::Advice::HugePage);
    }
    // SAFETY: the memory is handed out together with the buffer, and dropped after it;
    // a mapping begins at a page.
    let buffer = unsafe { HostBuffer::over(memory.as_mut_ptr(), total) }?;
    Ok(Memory::Host {
        buffer,
        _memory: memory,
    })
}

/// Fills a tensor with one row of ordinary values, again and again.
fn fill(tensor: Raw) -> Result<(), String> {
    // SAFETY: a live tensor of a context, with memory.
    let shape = unsafe { &*tensor };
    let (kind, columns) = (shape.type_, shape.ne[0]);
    let count = usize::try_from(columns).unwrap_or(0);
    let values: Vec<f32> = (0..count)
        .map(|index| f32::from(u8::try_from(index * 37 % 101).unwrap_or(0)) / 50.0 - 1.0)
        .collect();
    let weights = vec![1.0f32; count];
    // SAFETY: the type is one of ggml's.
    let row = unsafe { sys::ggml_row_size(kind, columns) };
    let mut bytes = vec![0u8; row];
    if kind == sys::GGML_TYPE_F32 {
        for (to, value) in bytes.chunks_exact_mut(4).zip(&values) {
            to.copy_from_slice(&value.to_le_bytes());
        }
    } else {
        // SAFETY:
        // - values and weights have as many elements as a row, the target a row's bytes;
        // - the type's blocks divide a row: the tensor could be made.
        let written = unsafe {
            sys::ggml_quantize_chunk(
                kind,
                values.as_ptr(),
                bytes.as_mut_ptr().cast(),
                0,
                1,
                columns,
                weights.as_ptr(),
            )
        };
        if written != row {
            return Err("ggml does not write this type".to_owned());
        }
    }
    // SAFETY: the tensor is live.
    let total = unsafe { sys::ggml_nbytes(tensor) };
    // Many rows at once: a device takes long for each single copy.
    let rows = (FILL_BYTES / row.max(1)).clamp(1, total.div_ceil(row.max(1)));
    let block = bytes.repeat(rows);
    for start in (0..total).step_by(block.len().max(1)) {
        let length = block.len().min(total - start);
        // SAFETY: the tensor has `total` bytes in a live buffer, and nobody else uses it yet.
        unsafe { sys::ggml_backend_tensor_set(tensor, block.as_ptr().cast(), start, length) };
    }
    Ok(())
}

/// Whether matrices of this type can be measured with.
pub fn is_measurable(kind: u32) -> bool {
    // Types that only appear inside a product have no way to be written.
    let inside = [sys::GGML_TYPE_Q8_1, sys::GGML_TYPE_Q8_K];
    let numbers = [sys::GGML_TYPE_F32, sys::GGML_TYPE_F16, sys::GGML_TYPE_BF16];
    // SAFETY: tested to be one of ggml's numbers before it is asked about.
    let quantized = || unsafe { sys::ggml_is_quantized(kind) };
    kind_name(kind).is_some() && !inside.contains(&kind) && (numbers.contains(&kind) || quantized())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_work_computes() {
        let matrices = |kind, tokens| Work::Matrices {
            kind,
            columns: 256,
            rows: 8,
            count: 3,
            tokens,
        };
        let works = [
            matrices(sys::GGML_TYPE_Q8_0, 1),
            matrices(sys::GGML_TYPE_Q4_K, 5),
            matrices(sys::GGML_TYPE_IQ2_XXS, 1),
            matrices(sys::GGML_TYPE_F16, 2),
            matrices(sys::GGML_TYPE_F32, 2),
            Work::Attention {
                head: 64,
                heads: 4,
                heads_kv: 2,
                rows: 32,
                tokens: 3,
            },
            Work::Nodes {
                elements: 64,
                count: 5,
            },
        ];
        for work in works {
            let mut workload = Workload::new(work, 1).unwrap();
            assert!(workload.node_count() > 0, "{work:?}");
            assert!(workload.run(), "{work:?}");
        }
    }

    #[test]
    fn types_have_names_and_rows() {
        assert_eq!(kind_name(sys::GGML_TYPE_Q8_0), Some("q8_0"));
        assert_eq!(kind_name(9999), None);
        assert_eq!(row_bytes(sys::GGML_TYPE_Q8_0, 64), Some(68));
        assert_eq!(row_bytes(sys::GGML_TYPE_Q8_0, 33), None);
        assert!(is_measurable(sys::GGML_TYPE_Q4_K));
        assert!(!is_measurable(sys::GGML_TYPE_Q8_K));
        assert!(!is_measurable(sys::GGML_TYPE_I32));
    }
}
