//! llama.cpp's model and context, owned; nothing more than the tests need.
#![allow(unsafe_code, reason = "this is the tests' border to llama.cpp")]

use std::ffi::{CString, c_char, c_void};
use std::marker::PhantomData;
use std::path::Path;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicI64, Ordering};

use async_device::AsyncDevice;
use ggml_sys as sys;
use rpaged::device::PagedDevice;
use rpaged::ggml::InnerDevice;

use super::{Adapter, Entry, Failure, RunSpec};
use crate::models::random::Random;

/// Where the model's tensors are placed and computed.
#[derive(Clone, Copy)]
pub enum Placement<'d> {
    /// llama.cpp's CPU backend, without repacking.
    Stock,
    /// Everything on a device of ggml's, unpaged.
    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    Device(InnerDevice),
    /// Everything on the paged device.
    Paged(&'d PagedDevice),
    /// Everything on the device for tests, without paging.
    On(&'d AsyncDevice),
}

/// The device for tests, as one that computes for the paged device.
pub fn inner_of(device: &AsyncDevice) -> InnerDevice {
    // SAFETY:
    // - a device of ggml's; the tests drop whatever they make of it before it.
    unsafe { InnerDevice::from_raw(device.raw()) }.unwrap()
}

/// llama.cpp logs through one function for the whole process; the tests want silence,
/// unless somebody looks for the reason of a failure.
fn start() {
    static START: Once = Once::new();
    extern "C" fn silent(_: sys::ggml_log_level, _: *const c_char, _: *mut c_void) {}
    START.call_once(|| {
        if std::env::var_os("RPAGED_TEST_LOG").is_none() {
            // SAFETY:
            // - `silent` has the callback's signature, ignores its arguments, never unwinds.
            unsafe { sys::llama_log_set(Some(silent), ptr::null_mut()) };
        }
        // SAFETY:
        // - called once, before any other use of llama.cpp.
        unsafe { sys::llama_backend_init() };
    });
}

/// A loaded model; the device under it outlives it.
pub struct LlamaModel<'d> {
    raw: *mut sys::llama_model,
    vocab: usize,
    device: PhantomData<Placement<'d>>,
}

impl<'d> LlamaModel<'d> {
    /// Loads the model at `path`, whole, to where `placement` says.
    pub fn load(path: &Path, placement: Placement<'d>) -> Result<Self, Failure> {
        Self::load_but(&[], path, placement)
    }

    /// Loads the model of `spec`, all but what is placed by hand to where `placement` says.
    pub fn of(spec: &RunSpec, placement: Placement<'d>) -> Result<Self, Failure> {
        Self::load_but(&spec.placed, &spec.model.file().path, placement)
    }

    fn load_but(placed: &[&str], path: &Path, placement: Placement<'d>) -> Result<Self, Failure> {
        start();
        let patterns: Vec<CString> = placed
            .iter()
            .map(|text| CString::new(*text).unwrap())
            .collect();
        let mut overrides: Vec<_> = patterns.iter().map(by_hand).collect();
        overrides.push(sys::llama_model_tensor_buft_override {
            pattern: ptr::null(),
            buft: ptr::null_mut(),
        });
        let device = match placement {
            Placement::Stock => ptr::null_mut(),
            #[cfg(any(feature = "cuda", feature = "vulkan"))]
            Placement::Device(device) => device.as_ptr(),
            Placement::Paged(device) => device.raw(),
            Placement::On(device) => device.raw(),
        };
        let mut devices = [device, ptr::null_mut()];
        // SAFETY:
        // - takes nothing and returns plain values.
        let mut params = unsafe { sys::llama_model_default_params() };
        params.devices = devices.as_mut_ptr();
        params.use_extra_bufts = false;
        params.tensor_buft_overrides = overrides.as_ptr();
        if !matches!(placement, Placement::Stock) {
            params.n_gpu_layers = 999;
            params.load_mode = sys::LLAMA_LOAD_MODE_NONE;
        } else {
            params.n_gpu_layers = 0;
        }
        let name = CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY:
        // - the path ends with NUL.
        // - the overrides end with a null one; they and their patterns outlive the call.
        // - `params.devices` is a list ended by null that outlives the call; the device in
        //   it is alive for `'d`, which outlives the model.
        let raw = unsafe { sys::llama_model_load_from_file(name.as_ptr(), params) };
        if raw.is_null() {
            return Err(Failure::Load);
        }
        // SAFETY:
        // - the model is alive.
        let vocab = unsafe { sys::llama_model_get_vocab(raw) };
        // SAFETY:
        // - the vocabulary belongs to the model, which is alive.
        let tokens = unsafe { sys::llama_vocab_n_tokens(vocab) };
        Ok(Self {
            raw,
            vocab: usize::try_from(tokens).unwrap(),
            device: PhantomData,
        })
    }
}

/// Has the tensors that `pattern` names be placed in llama.cpp's own CPU memory.
fn by_hand(pattern: &CString) -> sys::llama_model_tensor_buft_override {
    sys::llama_model_tensor_buft_override {
        pattern: pattern.as_ptr(),
        // SAFETY:
        // - takes nothing; the buffer type is static.
        buft: unsafe { sys::ggml_backend_cpu_buffer_type() },
    }
}

impl Drop for LlamaModel<'_> {
    fn drop(&mut self) {
        // SAFETY:
        // - made by `llama_model_load_from_file`, freed once; every context of it borrows
        //   it and is gone.
        unsafe { sys::llama_model_free(self.raw) };
    }
}

/// Counts one question, and answers it.
unsafe extern "C" fn is_at_end(patience: *mut c_void) -> bool {
    // SAFETY:
    // - `stop_after` has lent it for longer than the context lives.
    let patience = unsafe { &*patience.cast::<AtomicI64>() };
    patience.fetch_sub(1, Ordering::Relaxed) <= 0
}

/// A context over a model.
pub struct LlamaContext<'m> {
    raw: *mut sys::llama_context,
    vocab: usize,
    model: PhantomData<&'m LlamaModel<'m>>,
}

impl<'m> LlamaContext<'m> {
    /// Makes a context as `spec` says.
    pub fn new(model: &'m LlamaModel<'_>, spec: &RunSpec) -> Result<Self, Failure> {
        // SAFETY:
        // - takes nothing and returns plain values.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = spec.context;
        params.n_batch = spec.batch;
        params.n_ubatch = spec.ubatch;
        params.n_seq_max = spec.sequences;
        params.kv_unified = spec.unified;
        params.swa_full = false;
        params.n_threads = spec.threads;
        params.n_threads_batch = spec.threads;
        params.flash_attn_type = spec.flash.raw();
        params.type_k = spec.cache.raw();
        params.type_v = spec.cache_v().raw();
        // SAFETY:
        // - the model is alive for `'m`, which outlives the context.
        let raw = unsafe { sys::llama_init_from_model(model.raw, params) };
        if raw.is_null() {
            return Err(Failure::Context);
        }
        let context = Self {
            raw,
            vocab: model.vocab,
            model: PhantomData,
        };
        context.adapt(model, spec)?;
        Ok(context)
    }

    /// Applies the adapters of `spec`.
    fn adapt(&self, model: &LlamaModel<'_>, spec: &RunSpec) -> Result<(), Failure> {
        let (mut loras, mut scales) = (Vec::new(), Vec::new());
        for adapter in &spec.adapters {
            match adapter {
                Adapter::Lora { seed, tenths } => {
                    let path = spec.model.lora(*seed);
                    let path = CString::new(path.to_str().unwrap()).unwrap();
                    // SAFETY:
                    // - the model is alive, and frees the adapter; the path ends with NUL.
                    let lora = unsafe { sys::llama_adapter_lora_init(model.raw, path.as_ptr()) };
                    if lora.is_null() {
                        return Err(Failure::Adapter);
                    }
                    loras.push(lora);
                    scales.push(f32::from(*tenths) / 10.0);
                }
                Adapter::Vector { first, last } => self.steer(model, *first, *last)?,
            }
        }
        let (at, scales) = (loras.as_mut_ptr(), scales.as_mut_ptr());
        // SAFETY:
        // - the context and the adapters are alive; there are as many scales as adapters.
        let status = unsafe { sys::llama_set_adapters_lora(self.raw, at, loras.len(), scales) };
        assert_eq!(status, 0, "adapters of {spec:?}");
        Ok(())
    }

    /// Applies a control vector to a range of layers.
    fn steer(&self, model: &LlamaModel<'_>, first: i32, last: i32) -> Result<(), Failure> {
        // SAFETY:
        // - the model is alive; so for the next call.
        let width = unsafe { sys::llama_model_n_embd(model.raw) };
        // SAFETY: see above.
        let layers = unsafe { sys::llama_model_n_layer(model.raw) };
        let mut random = Random::named("control vector");
        let values: Vec<f32> = (0..width * (layers - 1))
            .map(|_| random.between(-0.1, 0.1))
            .collect();
        // SAFETY:
        // - the context is alive; the values are copied.
        let status = unsafe {
            sys::llama_set_adapter_cvec(self.raw, values.as_ptr(), values.len(), width, first, last)
        };
        if status == 0 {
            Ok(())
        } else {
            Err(Failure::Adapter)
        }
    }

    /// Has computations count `patience` down whenever they ask whether to stop: they are to
    /// when it is at zero.
    pub fn stop_after(&mut self, patience: &'m AtomicI64) {
        let data = ptr::from_ref(patience).cast_mut().cast::<c_void>();
        // SAFETY:
        // - the context is alive; what the callback gets outlives it.
        unsafe { sys::llama_set_abort_callback(self.raw, Some(is_at_end), data) };
    }

    /// Decodes one batch and returns the logits of each of its tokens.
    pub fn decode(&mut self, entries: &[Entry]) -> Result<Vec<Vec<f32>>, Failure> {
        let mut tokens: Vec<i32> = entries.iter().map(|entry| entry.token).collect();
        let mut positions: Vec<i32> = entries.iter().map(|entry| entry.position).collect();
        let mut sequences: Vec<i32> = entries.iter().map(|entry| entry.sequence).collect();
        let mut counts = vec![1_i32; entries.len()];
        let mut wanted = vec![1_i8; entries.len()];
        let mut lists: Vec<*mut i32> = sequences.iter_mut().map(ptr::from_mut).collect();
        let batch = sys::llama_batch {
            n_tokens: i32::try_from(entries.len()).unwrap(),
            token: tokens.as_mut_ptr(),
            embd: ptr::null_mut(),
            pos: positions.as_mut_ptr(),
            n_seq_id: counts.as_mut_ptr(),
            seq_id: lists.as_mut_ptr(),
            logits: wanted.as_mut_ptr(),
        };
        // SAFETY:
        // - the context is alive.
        // - every array of the batch holds `n_tokens` values and outlives the call.
        let code = unsafe { sys::llama_decode(self.raw, batch) };
        if code != 0 {
            return Err(Failure::Decode(code));
        }
        Ok((0..entries.len()).map(|index| self.logits(index)).collect())
    }

    fn logits(&self, index: usize) -> Vec<f32> {
        let index = i32::try_from(index).unwrap();
        // SAFETY:
        // - the context is alive; the token at `index` of the last batch asked for logits.
        let logits = unsafe { sys::llama_get_logits_ith(self.raw, index) };
        assert!(
            !logits.is_null(),
            "no logits for token {index} of the batch"
        );
        // SAFETY:
        // - llama.cpp keeps one float per token id there until the next decode.
        unsafe { std::slice::from_raw_parts(logits, self.vocab) }.to_vec()
    }

    fn memory(&self) -> sys::llama_memory_t {
        // SAFETY:
        // - the context is alive.
        unsafe { sys::llama_get_memory(self.raw) }
    }

    /// Forgets everything; with `data`, the cache's bytes are cleared as well.
    pub fn clear(&mut self, data: bool) {
        // SAFETY:
        // - the memory belongs to the context, which is alive.
        unsafe { sys::llama_memory_clear(self.memory(), data) };
    }

    /// Makes sequence `to` a copy of all of sequence `from`.
    pub fn copy_sequence(&mut self, from: i32, to: i32) {
        // SAFETY:
        // - the memory belongs to the context, which is alive.
        unsafe { sys::llama_memory_seq_cp(self.memory(), from, to, -1, -1) };
    }

    /// Removes positions `first..end` of a sequence; false when that is not possible.
    pub fn remove(&mut self, sequence: i32, first: i32, end: i32) -> bool {
        // SAFETY:
        // - the memory belongs to the context, which is alive.
        unsafe { sys::llama_memory_seq_rm(self.memory(), sequence, first, end) }
    }

    /// Moves positions `first..end` of a sequence by `delta`.
    pub fn shift(&mut self, sequence: i32, first: i32, end: i32, delta: i32) {
        // SAFETY:
        // - the memory belongs to the context, which is alive.
        unsafe { sys::llama_memory_seq_add(self.memory(), sequence, first, end, delta) };
    }

    /// The whole state, as a session file holds it.
    pub fn save(&mut self) -> Vec<u8> {
        // SAFETY:
        // - the context is alive.
        let size = unsafe { sys::llama_state_get_size(self.raw) };
        let mut state = vec![0_u8; size];
        // SAFETY:
        // - `state` has room for `size` bytes.
        let written = unsafe { sys::llama_state_get_data(self.raw, state.as_mut_ptr(), size) };
        state.truncate(written);
        state
    }

    /// Takes back a state of [`Self::save`].
    pub fn restore(&mut self, state: &[u8]) {
        // SAFETY:
        // - `state` holds as many bytes as its length says.
        let read = unsafe { sys::llama_state_set_data(self.raw, state.as_ptr(), state.len()) };
        assert_eq!(read, state.len(), "the state was not read to its end");
    }

    /// One sequence's state.
    pub fn save_sequence(&mut self, sequence: i32) -> Vec<u8> {
        // SAFETY:
        // - the context is alive.
        let size = unsafe { sys::llama_state_seq_get_size(self.raw, sequence) };
        let mut state = vec![0_u8; size];
        let into = state.as_mut_ptr();
        // SAFETY:
        // - `state` has room for `size` bytes.
        let written = unsafe { sys::llama_state_seq_get_data(self.raw, into, size, sequence) };
        state.truncate(written);
        state
    }

    /// Takes a state of [`Self::save_sequence`] back, as sequence `sequence`.
    pub fn restore_sequence(&mut self, state: &[u8], sequence: i32) {
        let (from, size) = (state.as_ptr(), state.len());
        // SAFETY:
        // - `state` holds `size` bytes.
        let read = unsafe { sys::llama_state_seq_set_data(self.raw, from, size, sequence) };
        assert_eq!(read, size, "the sequence's state was not read to its end");
    }
}

impl Drop for LlamaContext<'_> {
    fn drop(&mut self) {
        // SAFETY:
        // - made by `llama_init_from_model`, freed once; its model is still alive.
        unsafe { sys::llama_free(self.raw) };
    }
}
