//! A model and its contexts apart from each other, without samplers: what measuring needs.
#![allow(unsafe_code, reason = "calls the C doors")]

use std::ffi::{CStr, c_char, c_void};
use std::ptr::NonNull;
use std::rc::Rc;

use super::session::load_error;
use super::{Decoded, Params, Token, bytes, log};
use crate::device::PagedDevice;
use crate::error::{Error, Result};

/// What llama.cpp says about itself and the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Build {
    /// The commit it was built from.
    pub commit: String,
    /// Its number.
    pub number: i32,
    /// The processors and accelerators.
    pub cpus: String,
    /// The GPUs; empty when there are none.
    pub gpus: String,
    /// The backends beside the CPU's, or `CPU`.
    pub backends: String,
}

impl Build {
    /// Asks llama.cpp.
    ///
    /// # Errors
    /// `Failed` when it cannot tell.
    pub fn ask() -> Result<Self> {
        let text = |fact| {
            // SAFETY:
            // - takes a number; one that means nothing comes back as a failure.
            bytes::take_text(unsafe { ggml_sys::rpaged_bench_text(fact) })
        };
        Ok(Self {
            commit: text(ggml_sys::RPAGED_BENCH_COMMIT)?,
            // SAFETY:
            // - takes nothing.
            number: unsafe { ggml_sys::rpaged_bench_build_number() },
            cpus: text(ggml_sys::RPAGED_BENCH_CPUS)?,
            gpus: text(ggml_sys::RPAGED_BENCH_GPUS)?,
            backends: text(ggml_sys::RPAGED_BENCH_BACKENDS)?,
        })
    }
}

/// Whether this build can place layers on a GPU; otherwise flags for that mean nothing.
pub fn supports_gpu_offload() -> bool {
    // SAFETY:
    // - takes nothing.
    unsafe { ggml_sys::llama_supports_gpu_offload() }
}

/// Sets the priority of the process, -1 (low) to 3 (real time); false when the system
/// refuses.
pub fn set_priority(priority: i32) -> bool {
    // SAFETY:
    // - takes a number; one that means nothing changes nothing.
    unsafe { ggml_sys::rpaged_bench_set_priority(priority) }
}

/// A loaded model.
pub struct Model {
    /// Freed first, by `drop`.
    raw: NonNull<ggml_sys::llama_model>,
    /// Keeps what the model was loaded by.
    _params: Params,
    /// Freed last: the model keeps tensors in its buffers.
    device: Option<PagedDevice>,
    name: String,
}

impl Model {
    /// Loads the model that `params` name; `name` is for messages.
    ///
    /// # Errors
    /// What `device` recorded, or why llama.cpp could not load it.
    pub fn load(mut params: Params, device: Option<PagedDevice>, name: &str) -> Result<Rc<Self>> {
        if let Some(device) = &device {
            params.use_device(device)?;
        }
        let loading = log::Loading::begin(name, params.settings()?.kv_overrides > 0);
        // SAFETY:
        // - `params` is alive through the call and as long as the model.
        let raw = unsafe { ggml_sys::rpaged_bench_model_new(params.raw()) };
        drop(loading);
        let Some(raw) = NonNull::new(raw) else {
            let recorded = device.as_ref().and_then(PagedDevice::take_error);
            return Err(recorded.unwrap_or_else(|| load_error(name, device.is_some())));
        };
        Ok(Rc::new(Self {
            raw,
            _params: params,
            device,
            name: name.to_owned(),
        }))
    }

    fn raw(&self) -> *mut ggml_sys::llama_model {
        self.raw.as_ptr()
    }

    /// The paged device below, if there is one.
    pub fn device(&self) -> Option<&PagedDevice> {
        self.device.as_ref()
    }

    /// The model's kind in a few words, e.g. `llama 7B Q4_0`.
    pub fn description(&self) -> String {
        let mut text = [0_u8; 128];
        let (at, size) = (text.as_mut_ptr().cast::<c_char>(), text.len());
        // SAFETY:
        // - the model is alive as long as `self`;
        // - `at` is a place for `size` bytes; what is longer is cut, and ended by NUL.
        unsafe { ggml_sys::llama_model_desc(self.raw(), at, size) };
        let end = text.iter().position(|byte| *byte == 0);
        String::from_utf8_lossy(&text[..end.unwrap_or(size)]).into_owned()
    }

    /// Bytes of all its tensors.
    pub fn bytes(&self) -> u64 {
        // SAFETY:
        // - the model is alive as long as `self`.
        unsafe { ggml_sys::llama_model_size(self.raw()) }
    }

    /// How many numbers its tensors hold.
    pub fn parameter_count(&self) -> u64 {
        // SAFETY:
        // - the model is alive as long as `self`.
        unsafe { ggml_sys::llama_model_n_params(self.raw()) }
    }

    fn vocab(&self) -> *const ggml_sys::llama_vocab {
        // SAFETY:
        // - the model is alive as long as `self`; its vocabulary lives as long.
        unsafe { ggml_sys::llama_model_get_vocab(self.raw()) }
    }

    /// Tokens in its vocabulary.
    pub fn vocabulary(&self) -> Token {
        // SAFETY:
        // - the vocabulary is alive as long as `self`.
        unsafe { ggml_sys::llama_vocab_n_tokens(self.vocab()) }
    }

    /// The token that begins a text, if the vocabulary wants one.
    pub fn first_token(&self) -> Option<Token> {
        // SAFETY:
        // - the vocabulary is alive as long as `self`.
        let wanted = unsafe { ggml_sys::llama_vocab_get_add_bos(self.vocab()) };
        // SAFETY:
        // - the vocabulary is alive as long as `self`.
        wanted.then(|| unsafe { ggml_sys::llama_vocab_bos(self.vocab()) })
    }

    fn recorded(&self) -> Option<Error> {
        self.device.as_ref().and_then(PagedDevice::take_error)
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY:
        // - the model came from llama.cpp's loader and is dropped once;
        // - every context holds its model, so none is left;
        // - the device, in which its tensors lie, is a field and drops later.
        unsafe { ggml_sys::llama_model_free(self.raw()) }
    }
}

/// A context with threads of its own.
pub struct Context {
    /// Freed first, by `drop`: it refers to the fields below.
    raw: NonNull<ggml_sys::llama_context>,
    pool: NonNull<ggml_sys::ggml_threadpool>,
    model: Rc<Model>,
}

impl Context {
    /// A context of `model` for `n_ctx` tokens, its other settings and its threads as in
    /// `params`. A model has one context at a time.
    ///
    /// # Errors
    /// What the device recorded, or why llama.cpp could not make it.
    pub fn new(model: &Rc<Model>, params: &Params, n_ctx: i32, embeddings: bool) -> Result<Self> {
        let settings = params.settings()?;
        // SAFETY:
        // - `params` is alive through the call, and read only.
        let pool = unsafe { ggml_sys::rpaged_bench_threadpool_new(params.raw()) };
        let pool = NonNull::new(pool).ok_or_else(|| {
            Error::Failed(format!(
                "could not start {} threads; lower -t",
                settings.n_threads
            ))
        })?;
        // SAFETY:
        // - the model is alive through the call, and as long as the context;
        // - `params` is alive through the call.
        let raw = unsafe {
            ggml_sys::rpaged_bench_context_new(model.raw(), params.raw(), n_ctx, embeddings)
        };
        let Some(raw) = NonNull::new(raw) else {
            // SAFETY:
            // - the pool came from ggml, and nothing uses it.
            unsafe { ggml_sys::ggml_threadpool_free(pool.as_ptr()) };
            let otherwise = || match load_error(&model.name, model.device.is_some()) {
                Error::Failed(text) => Error::Failed(text.replacen(
                    "could not load the model",
                    "could not make a context for the model",
                    1,
                )),
                other => other,
            };
            return Err(model.recorded().unwrap_or_else(otherwise));
        };
        let context = Self {
            raw,
            pool,
            model: Rc::clone(model),
        };
        // SAFETY:
        // - context and pool are alive, and the pool is freed after the context.
        unsafe {
            ggml_sys::llama_attach_threadpool(raw.as_ptr(), pool.as_ptr(), std::ptr::null_mut());
        };
        if let Some(device) = &model.device {
            let pools = [
                (pool.as_ptr(), settings.n_threads),
                (std::ptr::null_mut(), 0),
            ];
            // SAFETY:
            // - the model's only context is this one, and `drop` takes the pool back before
            //   it goes.
            unsafe { device.attach_threadpools(pools) };
        }
        Ok(context)
    }

    fn raw(&self) -> *mut ggml_sys::llama_context {
        self.raw.as_ptr()
    }

    /// The model below.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Has long computations ask `abort` now and then whether to stop.
    pub fn set_abort(&mut self, abort: extern "C" fn(*mut c_void) -> bool) {
        // SAFETY:
        // - the context is alive as long as `self`;
        // - `abort` is a function, it lives as long as the program, and needs no data.
        unsafe {
            ggml_sys::llama_set_abort_callback(self.raw(), Some(abort), std::ptr::null_mut());
        }
    }

    /// Runs the decoder over `tokens`, which follow what the context holds.
    ///
    /// # Errors
    /// What the device recorded, or `Failed`.
    pub fn decode(&mut self, tokens: &[Token]) -> Result<Decoded> {
        let (at, count) = (tokens.as_ptr(), tokens.len());
        // SAFETY:
        // - the context is alive as long as `self`, and borrowed alone;
        // - `tokens` gives the address of as many tokens as it says.
        let status = unsafe { ggml_sys::rpaged_bench_decode(self.raw(), at, count) };
        match status {
            0 => Ok(Decoded::Done),
            2 => Ok(Decoded::Aborted),
            _ => Err(self.model.recorded().unwrap_or_else(|| {
                Error::Failed(format!(
                    "llama.cpp could not decode {count} tokens (status {status})"
                ))
            })),
        }
    }

    /// Returns when everything asked for is computed.
    ///
    /// # Errors
    /// What the device recorded meanwhile.
    pub fn synchronize(&mut self) -> Result<()> {
        // SAFETY:
        // - the context is alive as long as `self`, and borrowed alone.
        unsafe { ggml_sys::llama_synchronize(self.raw()) };
        self.model.recorded().map_or(Ok(()), Err)
    }

    /// Writes what the context holds to `path`; false when that cannot be written.
    ///
    /// # Errors
    /// What the device recorded.
    pub fn save(&mut self, path: &CStr) -> Result<bool> {
        let (path, tokens) = (path.as_ptr(), std::ptr::null());
        // SAFETY:
        // - the context is alive as long as `self`, and borrowed alone;
        // - `path` ends with NUL; no tokens are read.
        let bytes = unsafe { ggml_sys::llama_state_seq_save_file(self.raw(), path, 0, tokens, 0) };
        self.model.recorded().map_or(Ok(bytes > 0), Err)
    }

    /// Has an empty context hold what `save` has written; false when it does not fit, or is
    /// damaged: the context may hold anything then.
    ///
    /// # Errors
    /// What the device recorded.
    pub fn load(&mut self, path: &CStr) -> Result<bool> {
        let (mut tokens, mut count) = ([0], 0);
        let (at, counted) = (tokens.as_mut_ptr(), &raw mut count);
        // SAFETY:
        // - the context is alive as long as `self`, and borrowed alone;
        // - `path` ends with NUL;
        // - `at` is a place for one token, and none is asked for; `counted` for one number.
        let bytes = unsafe {
            ggml_sys::llama_state_seq_load_file(self.raw(), path.as_ptr(), 0, at, 0, counted)
        };
        self.model.recorded().map_or(Ok(bytes > 0), Err)
    }

    fn memory(&self) -> ggml_sys::llama_memory_t {
        // SAFETY:
        // - the context is alive as long as `self`; its memory lives as long.
        unsafe { ggml_sys::llama_get_memory(self.raw()) }
    }

    /// Forgets all tokens; the bytes stay.
    pub fn clear(&mut self) {
        // SAFETY:
        // - the memory is alive as long as `self`, and borrowed alone.
        unsafe { ggml_sys::llama_memory_clear(self.memory(), false) }
    }

    /// The first and the last position that the memory holds; -1 for none.
    pub fn positions(&self) -> (i32, i32) {
        // SAFETY:
        // - the memory is alive as long as `self`; so below.
        let first = unsafe { ggml_sys::llama_memory_seq_pos_min(self.memory(), 0) };
        // SAFETY:
        // - as above.
        let last = unsafe { ggml_sys::llama_memory_seq_pos_max(self.memory(), 0) };
        (first, last)
    }

    /// Forgets the tokens from position `from` on; false when this kind of memory cannot.
    pub fn truncate(&mut self, from: i32) -> bool {
        // SAFETY:
        // - the memory is alive as long as `self`, and borrowed alone.
        unsafe { ggml_sys::llama_memory_seq_rm(self.memory(), 0, from, -1) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY:
        // - the context came from llama.cpp and is dropped once; its model is a field and
        //   drops later.
        unsafe { ggml_sys::llama_free(self.raw()) };
        if let Some(device) = &self.model.device {
            // SAFETY:
            // - no pool is given, so none has to live.
            unsafe { device.attach_threadpools([(std::ptr::null_mut(), 0); 2]) };
        }
        // SAFETY:
        // - the pool came from ggml and is freed once; the context that used it is gone, and
        //   the device knows it no more.
        unsafe { ggml_sys::ggml_threadpool_free(self.pool.as_ptr()) };
    }
}
