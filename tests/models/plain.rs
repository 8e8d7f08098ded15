//! A copy of a model with all weights in F32: what it computes depends less on the
//! processor than what quantised weights do.
#![allow(unsafe_code, reason = "gguf's reader and writer are a C library")]

use std::ffi::{CStr, CString, c_void};
use std::path::Path;
use std::ptr;

use ggml_sys as sys;

/// Writes the model at `from` to `to`, with all weights in F32.
pub fn write_in_f32(from: &Path, to: &Path) {
    let model = Opened::new(from);
    // SAFETY:
    // - takes nothing; what it returns is freed at the end.
    let copy = unsafe { sys::gguf_init_empty() };
    // SAFETY:
    // - both are alive; the metadata is copied.
    unsafe { sys::gguf_set_kv(copy, model.gguf) };
    // SAFETY:
    // - the copy is alive, the key ends with NUL; 0 means that most weights are F32.
    unsafe { sys::gguf_set_val_u32(copy, c"general.file_type".as_ptr(), 0) };
    // SAFETY:
    // - the model is open.
    let count = unsafe { sys::gguf_get_n_tensors(model.gguf) };
    let values: Vec<Vec<f32>> = (0..count).map(|index| model.values(index)).collect();
    let shapes = shapes(&model, count);
    for (index, values) in (0..count).zip(&values) {
        let name = model.name(index);
        // SAFETY:
        // - `shapes` holds a tensor of that name, made just now.
        let shape = unsafe { sys::ggml_get_tensor(shapes, name.as_ptr()) };
        // SAFETY:
        // - both are alive; the tensor's description is copied.
        unsafe { sys::gguf_add_tensor(copy, shape) };
        let data = values.as_ptr().cast::<c_void>();
        // SAFETY:
        // - the tensor of that name was just added; `values` outlives the write.
        unsafe { sys::gguf_set_tensor_data(copy, name.as_ptr(), data) };
    }
    let path = CString::new(to.to_str().unwrap()).unwrap();
    // SAFETY:
    // - the copy is alive, the path ends with NUL, and every tensor has its data.
    let written = unsafe { sys::gguf_write_to_file(copy, path.as_ptr(), false) };
    // SAFETY:
    // - made by `gguf_init_empty`, freed once.
    unsafe { sys::gguf_free(copy) };
    // SAFETY:
    // - made by `ggml_init`, freed once, after the context that copied from it.
    unsafe { sys::ggml_free(shapes) };
    assert!(written, "could not write '{}'", to.display());
}

/// Descriptions of the model's tensors, as F32.
fn shapes(model: &Opened, count: i64) -> *mut sys::ggml_context {
    // SAFETY:
    // - takes nothing.
    let overhead = unsafe { sys::ggml_tensor_overhead() };
    let params = sys::ggml_init_params {
        mem_size: overhead * (usize::try_from(count).unwrap() + 1),
        mem_buffer: ptr::null_mut(),
        no_alloc: true,
    };
    // SAFETY:
    // - the buffer is null, so ggml allocates `mem_size` bytes itself.
    let shapes = unsafe { sys::ggml_init(params) };
    assert!(!shapes.is_null(), "out of memory");
    for index in 0..count {
        let tensor = model.tensor(index);
        // SAFETY:
        // - the tensor is alive, and has four sizes.
        let sizes = unsafe { (*tensor).ne };
        // SAFETY:
        // - the tensor is alive.
        let dims = unsafe { sys::ggml_n_dims(tensor) };
        // SAFETY:
        // - the context was sized for all tensors; `sizes` holds at least `dims` sizes.
        let shape =
            unsafe { sys::ggml_new_tensor(shapes, sys::GGML_TYPE_F32, dims, sizes.as_ptr()) };
        // SAFETY:
        // - `shape` is the tensor just made; the name ends with NUL and is copied.
        unsafe { sys::ggml_set_name(shape, model.name(index).as_ptr()) };
    }
    shapes
}

/// A model's file, read into memory.
struct Opened {
    gguf: *mut sys::gguf_context,
    ggml: *mut sys::ggml_context,
}

impl Opened {
    fn new(path: &Path) -> Self {
        let name = CString::new(path.to_str().unwrap()).unwrap();
        let mut ggml = ptr::null_mut();
        let params = sys::gguf_init_params {
            no_alloc: false,
            ctx: &raw mut ggml,
        };
        // SAFETY:
        // - the path ends with NUL; `ggml` is a place for one pointer.
        let gguf = unsafe { sys::gguf_init_from_file(name.as_ptr(), params) };
        assert!(!gguf.is_null(), "could not read '{}'", path.display());
        Self { gguf, ggml }
    }

    fn name(&self, index: i64) -> CString {
        // SAFETY:
        // - the model is open, `index` is one of its tensors.
        let name = unsafe { sys::gguf_get_tensor_name(self.gguf, index) };
        // SAFETY:
        // - a string that ends with NUL, alive as long as the model is open.
        unsafe { CStr::from_ptr(name) }.to_owned()
    }

    fn tensor(&self, index: i64) -> *mut sys::ggml_tensor {
        // SAFETY:
        // - the context is alive, the name ends with NUL.
        unsafe { sys::ggml_get_tensor(self.ggml, self.name(index).as_ptr()) }
    }

    fn values(&self, index: i64) -> Vec<f32> {
        let tensor = self.tensor(index);
        // SAFETY:
        // - the tensor is alive, and nobody changes it.
        let about = unsafe { &*tensor };
        let (kind, data) = (about.type_, about.data);
        // SAFETY:
        // - the tensor is alive.
        let count = unsafe { sys::ggml_nelements(tensor) };
        let mut values = vec![0.0_f32; usize::try_from(count).unwrap()];
        if kind == sys::GGML_TYPE_F32 {
            // SAFETY:
            // - the tensor's data is as many floats, which do not overlap `values`.
            unsafe {
                ptr::copy_nonoverlapping(data.cast::<f32>(), values.as_mut_ptr(), values.len());
            }
            return values;
        }
        // SAFETY:
        // - `kind` is one of ggml's types.
        let traits = unsafe { sys::ggml_get_type_traits(kind) };
        // SAFETY:
        // - an entry of ggml's own table, which lives as long as the program.
        let convert = unsafe { (*traits).to_float }.unwrap();
        // SAFETY:
        // - the data holds `count` values of `kind`, and `values` has room for them.
        unsafe { convert(data, values.as_mut_ptr(), count) };
        values
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY:
        // - made by `gguf_init_from_file`, freed once.
        unsafe { sys::gguf_free(self.gguf) };
        // SAFETY:
        // - made with it, freed once.
        unsafe { sys::ggml_free(self.ggml) };
    }
}
