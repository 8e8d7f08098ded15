//! llama.cpp's parameters, as its own parser reads them from a command line.
#![allow(unsafe_code, reason = "calls the C doors")]

use std::ffi::{CString, c_void};
use std::ptr::NonNull;

use super::bytes;
use crate::error::{Error, Result};
use crate::ggml::InnerDevice;

/// What a session needs of the parameters; fields and units are llama.cpp's.
pub type Settings = ggml_sys::rpaged_settings;

/// What a completion that takes turns and keeps states needs of the parameters; fields are
/// llama.cpp's.
pub type Dialogue = ggml_sys::rpaged_dialogue;

/// Told how much of the model is loaded, 0.0 to 1.0.
pub type Progress = Box<dyn FnMut(f32)>;

/// llama.cpp's parameters.
pub struct Params {
    raw: NonNull<ggml_sys::rpaged_params>,
    /// Boxed twice, so that C holds an address that does not move.
    progress: Option<Box<Progress>>,
}

impl Params {
    /// Reads a command line: the program's name, then flags that llama.cpp knows, with
    /// all their values, none of which prints something and ends. Environment variables
    /// whose names are `hidden` are taken not to be set.
    ///
    /// # Errors
    /// `Usage` when a value is wrong, `Failed` when a download fails.
    pub fn parse(args: Vec<CString>, hidden: &[CString]) -> Result<Self> {
        if cfg!(feature = "cuda") {
            // The parser may look at devices, which may make contexts there.
            crate::cuda::witness();
        }
        let mut pointers: Vec<_> = args.iter().map(|arg| arg.as_ptr().cast_mut()).collect();
        let count = i32::try_from(pointers.len())
            .map_err(|_| Error::Usage("the command line is too long".into()))?;
        pointers.push(std::ptr::null_mut());
        let mut names: Vec<_> = hidden.iter().map(|name| name.as_ptr()).collect();
        names.push(std::ptr::null());
        let mut raw = std::ptr::null_mut();
        // SAFETY:
        // - `pointers` holds `count` C strings and a final null, all alive through the
        //   call; the parser copies what it keeps and writes to none of them;
        // - `names` holds C strings and a final null, all alive through the call;
        // - `raw` is a place for one pointer;
        // - no other thread reads the environment meanwhile through C: the session has not
        //   begun, and llama.cpp's log thread only writes.
        let status = unsafe {
            ggml_sys::rpaged_params_parse(
                count,
                pointers.as_mut_ptr(),
                names.as_ptr(),
                &raw mut raw,
            )
        };
        if status == ggml_sys::RPAGED_USAGE as i32 {
            return Err(Error::Usage(bytes::last_error()));
        }
        NonNull::new(raw)
            .map(|raw| Self {
                raw,
                progress: None,
            })
            .ok_or_else(|| bytes::failure("llama.cpp could not read the command line"))
    }

    pub(super) fn raw(&self) -> *mut ggml_sys::rpaged_params {
        self.raw.as_ptr()
    }

    /// A copy of what a session needs.
    ///
    /// # Errors
    /// `Failed` when llama.cpp cannot tell.
    pub fn settings(&self) -> Result<Settings> {
        let mut out = std::mem::MaybeUninit::<Settings>::zeroed();
        // SAFETY:
        // - the handle is alive as long as `self`;
        // - `out` is a place for one structure.
        let status = unsafe { ggml_sys::rpaged_params_settings(self.raw(), out.as_mut_ptr()) };
        if status != ggml_sys::RPAGED_OK as i32 {
            return Err(bytes::failure("llama.cpp does not tell its settings"));
        }
        // SAFETY:
        // - all zeroes are valid for integers, floats and booleans, and the call has
        //   filled it in.
        Ok(unsafe { out.assume_init() })
    }

    fn text(&self, which: ggml_sys::rpaged_text) -> Result<Vec<u8>> {
        // SAFETY:
        // - the handle is alive as long as `self`; the text is a copy.
        bytes::take(unsafe { ggml_sys::rpaged_params_text(self.raw(), which) })
    }

    fn printable(&self, which: ggml_sys::rpaged_text) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.text(which)?).into_owned())
    }

    /// Path of the model's file, the first when it is split, as the system spells it.
    ///
    /// # Errors
    /// `Failed` when memory runs out; so for all texts below.
    pub fn model_path(&self) -> Result<Vec<u8>> {
        self.text(ggml_sys::RPAGED_TEXT_MODEL_PATH)
    }

    /// The prompt, with its escapes resolved.
    #[allow(clippy::missing_errors_doc, reason = "see `model_path`")]
    pub fn prompt(&self) -> Result<Vec<u8>> {
        self.text(ggml_sys::RPAGED_TEXT_PROMPT)
    }

    /// The chat template given on the command line; empty when there is none.
    #[allow(clippy::missing_errors_doc, reason = "see `model_path`")]
    pub fn chat_template(&self) -> Result<Vec<u8>> {
        self.text(ggml_sys::RPAGED_TEXT_CHAT_TEMPLATE)
    }

    /// The file of the prompt cache; empty when there is none.
    #[allow(clippy::missing_errors_doc, reason = "see `model_path`")]
    pub fn prompt_cache(&self) -> Result<Vec<u8>> {
        self.text(ggml_sys::RPAGED_TEXT_PROMPT_CACHE)
    }

    /// A copy of what reading input and keeping states needs.
    ///
    /// # Errors
    /// `Failed` when llama.cpp cannot tell.
    pub fn dialogue(&self) -> Result<Dialogue> {
        let mut out = std::mem::MaybeUninit::<Dialogue>::zeroed();
        // SAFETY:
        // - the handle is alive as long as `self`;
        // - `out` is a place for one structure.
        let status = unsafe { ggml_sys::rpaged_params_dialogue(self.raw(), out.as_mut_ptr()) };
        if status != ggml_sys::RPAGED_OK as i32 {
            return Err(bytes::failure("llama.cpp does not tell its settings"));
        }
        // SAFETY:
        // - all zeroes are valid for integers and booleans, and the call has filled it in.
        Ok(unsafe { out.assume_init() })
    }

    /// The sampling parameters, as upstream prints them.
    #[allow(clippy::missing_errors_doc, reason = "see `model_path`")]
    pub fn sampling_text(&self) -> Result<String> {
        self.printable(ggml_sys::RPAGED_TEXT_SAMPLING)
    }

    /// Threads and the processor's features, as upstream prints them.
    #[allow(clippy::missing_errors_doc, reason = "see `model_path`")]
    pub fn system_info(&self) -> Result<String> {
        self.printable(ggml_sys::RPAGED_TEXT_SYSTEM_INFO)
    }

    /// The strings that end the generation (`-r`), with their escapes resolved.
    #[allow(clippy::missing_errors_doc, reason = "see `model_path`")]
    pub fn antiprompts(&self) -> Result<Vec<Vec<u8>>> {
        let count = usize::try_from(self.settings()?.antiprompts).unwrap_or(0);
        (0..count)
            .map(|index| {
                // SAFETY:
                // - the handle is alive as long as `self`;
                // - an index out of range comes back as a failure.
                bytes::take(unsafe { ggml_sys::rpaged_params_antiprompt(self.raw(), index) })
            })
            .collect()
    }

    /// Sets the size of the context, in tokens.
    pub fn set_n_ctx(&mut self, n_ctx: i32) {
        // SAFETY:
        // - the handle is alive as long as `self`, and borrowed alone.
        unsafe { ggml_sys::rpaged_params_set_n_ctx(self.raw(), n_ctx) }
    }

    /// Sets how many tokens are handed over at once, and how many of them computed at once.
    pub fn set_batches(&mut self, n_batch: i32, n_ubatch: i32) {
        // SAFETY:
        // - the handle is alive as long as `self`, and borrowed alone.
        unsafe { ggml_sys::rpaged_params_set_batches(self.raw(), n_batch, n_ubatch) }
    }

    /// The same values once more, without who is told of progress.
    ///
    /// # Errors
    /// `Failed` when there is no memory for them.
    pub fn copy(&self) -> Result<Self> {
        // SAFETY:
        // - the handle is alive as long as `self`.
        let raw = unsafe { ggml_sys::rpaged_params_copy(self.raw()) };
        NonNull::new(raw)
            .map(|raw| Self {
                raw,
                progress: None,
            })
            .ok_or_else(|| bytes::failure("llama.cpp could not copy its parameters"))
    }

    /// Says whether chat templates are read as such, not matched with known ones.
    pub fn set_jinja(&mut self, jinja: bool) {
        // SAFETY:
        // - the handle is alive as long as `self`, and borrowed alone.
        unsafe { ggml_sys::rpaged_params_set_jinja(self.raw(), jinja) }
    }

    /// The GPU that `--device` names, to compute below the paged device; where it names none
    /// and `automatic` is set, the one that llama.cpp would take first. None: the processor.
    ///
    /// # Errors
    /// `Usage` when it names two, or one that cannot compute a model by itself.
    pub fn inner_device(&self, automatic: bool) -> Result<Option<InnerDevice>> {
        let mut raw = std::ptr::null_mut();
        // SAFETY:
        // - the handle is alive as long as `self`;
        // - `raw` is a place for one pointer.
        let status =
            unsafe { ggml_sys::rpaged_params_inner_device(self.raw(), automatic, &raw mut raw) };
        if status == ggml_sys::RPAGED_USAGE as i32 {
            return Err(Error::Usage(bytes::last_error()));
        }
        if status != ggml_sys::RPAGED_OK as i32 {
            return Err(bytes::failure("llama.cpp does not tell its devices"));
        }
        // SAFETY:
        // - null, or one of ggml's devices, which live as long as the process.
        Ok(unsafe { InnerDevice::from_raw(raw) })
    }

    /// Has the model lie on `device`, and on those of RPC servers before it; see
    /// `rpaged_params_use_device`.
    ///
    /// # Errors
    /// `Failed` when the parameters name a device that cannot share the model.
    pub fn use_device(&mut self, device: &crate::device::PagedDevice) -> Result<()> {
        let load_mode = match (
            device.keeps_mapping(),
            device.is_locked(),
            device.is_direct(),
        ) {
            (true, ..) => -1,
            // What llama.cpp keeps to itself is locked by it.
            (_, true, _) => ggml_sys::LLAMA_LOAD_MODE_MLOCK,
            (.., true) => ggml_sys::LLAMA_LOAD_MODE_DIRECT_IO,
            (.., false) => ggml_sys::LLAMA_LOAD_MODE_NONE,
        };
        let mut others = 0;
        // SAFETY:
        // - the handle is alive as long as `self`, and borrowed alone;
        // - the session that is made of `self` keeps the device alive (`Session::new`);
        // - `others` is a place for one number.
        let status = unsafe {
            ggml_sys::rpaged_params_use_device(self.raw(), device.raw(), load_mode, &raw mut others)
        };
        if status != ggml_sys::RPAGED_OK as i32 {
            return Err(bytes::failure("llama.cpp refused the device"));
        }
        device.share_model(others > 0);
        Ok(())
    }

    /// Has `progress` told while the model loads.
    pub fn on_progress(&mut self, progress: Progress) {
        let data: *mut Progress = &raw mut **self.progress.insert(Box::new(progress));
        // SAFETY:
        // - the handle is alive as long as `self`;
        // - `data` is the inner box's address: it stays where it is until `self` drops,
        //   and llama.cpp calls back only while it loads.
        unsafe { ggml_sys::rpaged_params_on_progress(self.raw(), Some(tell), data.cast()) }
    }
}

unsafe extern "C" fn tell(progress: f32, data: *mut c_void) -> bool {
    // SAFETY:
    // - `data` is what `on_progress` passed, alive while the model loads;
    // - llama.cpp calls from the one thread that loads.
    let callback = unsafe { &mut *data.cast::<Progress>() };
    // A panic must not unwind into C; a broken progress bar is no reason to stop.
    let call = std::panic::AssertUnwindSafe(|| callback(progress));
    drop(std::panic::catch_unwind(call));
    true
}

impl Drop for Params {
    fn drop(&mut self) {
        // SAFETY:
        // - the handle came from `rpaged_params_parse` and is dropped once;
        // - sessions own their parameters, so none is left that uses it.
        unsafe { ggml_sys::rpaged_params_free(self.raw()) }
    }
}
