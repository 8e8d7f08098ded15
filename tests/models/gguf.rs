//! Writes a GGUF through gguf's own writer.
#![allow(unsafe_code, reason = "gguf's writer is a C library")]

use std::ffi::{CString, c_void};
use std::path::Path;
use std::ptr;

use ggml_sys as sys;

/// A metadata value.
#[derive(Clone, Debug)]
pub enum Value {
    U16(u16),
    I32(i32),
    U32(u32),
    F32(f32),
    Text(&'static str),
    U32s(Vec<u32>),
}

/// A tensor's data in the file's own format.
pub struct Encoded {
    pub name: String,
    pub kind: sys::ggml_type,
    pub dims: Vec<i64>,
    pub bytes: Vec<u8>,
}

/// `values` in the format `kind`; rows are `dims[0]` long.
pub fn encode(name: &str, kind: sys::ggml_type, dims: &[i64], values: &[f32]) -> Encoded {
    let row = dims[0];
    let rows: i64 = dims[1..].iter().product();
    assert_eq!(
        i64::try_from(values.len()),
        Ok(row * rows),
        "{name}: values do not fill it"
    );
    // SAFETY:
    // - `kind` is one of ggml's types.
    let block = unsafe { sys::ggml_blck_size(kind) };
    assert_eq!(
        row % block,
        0,
        "{name}: a row of {row} is not made of blocks of {block}"
    );
    // SAFETY:
    // - `kind` is one of ggml's types, and `row` is a multiple of its block.
    let row_bytes = unsafe { sys::ggml_row_size(kind, row) };
    let mut bytes = vec![0_u8; row_bytes * usize::try_from(rows).unwrap()];
    if kind == sys::GGML_TYPE_F32 {
        bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
    } else {
        // SAFETY:
        // - `values` holds `rows` rows of `row` floats, checked above.
        // - `bytes` has room for `rows` rows of `kind`.
        // - these types need no importance matrix, so null is allowed.
        let written = unsafe {
            sys::ggml_quantize_chunk(
                kind,
                values.as_ptr(),
                bytes.as_mut_ptr().cast::<c_void>(),
                0,
                rows,
                row,
                ptr::null(),
            )
        };
        assert_eq!(
            written,
            bytes.len(),
            "{name}: quantised to an unexpected size"
        );
    }
    Encoded {
        name: name.to_owned(),
        kind,
        dims: dims.to_vec(),
        bytes,
    }
}

/// Writes one file.
pub fn write(path: &Path, metadata: &[(String, Value)], tensors: &[Encoded]) {
    let mut file = Writer::new(tensors.len());
    for (key, value) in metadata {
        file.set(key, value);
    }
    for tensor in tensors {
        file.add(tensor);
    }
    file.write(path);
}

/// Owns a gguf context and the ggml context that names its tensors.
struct Writer {
    gguf: *mut sys::gguf_context,
    ggml: *mut sys::ggml_context,
}

impl Writer {
    fn new(tensor_count: usize) -> Self {
        // SAFETY:
        // - takes nothing; returns a context that `drop` frees.
        let gguf = unsafe { sys::gguf_init_empty() };
        // SAFETY:
        // - takes nothing.
        let overhead = unsafe { sys::ggml_tensor_overhead() };
        let params = sys::ggml_init_params {
            mem_size: overhead * (tensor_count + 1),
            mem_buffer: ptr::null_mut(),
            no_alloc: true,
        };
        // SAFETY:
        // - the buffer is null, so ggml allocates `mem_size` bytes itself.
        let ggml = unsafe { sys::ggml_init(params) };
        assert!(!gguf.is_null() && !ggml.is_null(), "out of memory");
        Self { gguf, ggml }
    }

    fn set(&mut self, key: &str, value: &Value) {
        let key = CString::new(key).unwrap();
        let (gguf, key) = (self.gguf, key.as_ptr());
        match value {
            // SAFETY:
            // - `gguf` is alive, `key` ends with NUL and is copied.
            Value::U16(value) => unsafe { sys::gguf_set_val_u16(gguf, key, *value) },
            // SAFETY: as above.
            Value::I32(value) => unsafe { sys::gguf_set_val_i32(gguf, key, *value) },
            // SAFETY: as above.
            Value::U32(value) => unsafe { sys::gguf_set_val_u32(gguf, key, *value) },
            // SAFETY: as above.
            Value::F32(value) => unsafe { sys::gguf_set_val_f32(gguf, key, *value) },
            Value::Text(value) => {
                let value = CString::new(*value).unwrap();
                // SAFETY: as above, and `value` ends with NUL and is copied.
                unsafe { sys::gguf_set_val_str(gguf, key, value.as_ptr()) }
            }
            Value::U32s(values) => {
                let data = values.as_ptr().cast::<c_void>();
                // SAFETY: as above, and `data` holds that many u32, which are copied.
                unsafe {
                    sys::gguf_set_arr_data(gguf, key, sys::GGUF_TYPE_UINT32, data, values.len());
                }
            }
        }
    }

    fn add(&mut self, tensor: &Encoded) {
        let name = CString::new(tensor.name.as_str()).unwrap();
        let dims = i32::try_from(tensor.dims.len()).unwrap();
        // SAFETY:
        // - the ggml context was sized for all tensors; it allocates no data.
        // - `dims` sizes are readable at the pointer.
        let shape =
            unsafe { sys::ggml_new_tensor(self.ggml, tensor.kind, dims, tensor.dims.as_ptr()) };
        // SAFETY:
        // - `shape` is the tensor just made; the name ends with NUL and is copied.
        unsafe { sys::ggml_set_name(shape, name.as_ptr()) };
        // SAFETY:
        // - both are alive; the tensor's description is copied.
        unsafe { sys::gguf_add_tensor(self.gguf, shape) };
        // SAFETY:
        // - the tensor of that name was just added.
        // - its bytes outlive the write: `write` of this module borrows them throughout.
        unsafe {
            sys::gguf_set_tensor_data(
                self.gguf,
                name.as_ptr(),
                tensor.bytes.as_ptr().cast::<c_void>(),
            );
        }
    }

    fn write(&mut self, path: &Path) {
        let name = CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY:
        // - `gguf` is alive, the path ends with NUL, and every tensor has its data.
        let written = unsafe { sys::gguf_write_to_file(self.gguf, name.as_ptr(), false) };
        assert!(written, "could not write '{}'", path.display());
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // SAFETY:
        // - made by `gguf_init_empty`, freed once.
        unsafe { sys::gguf_free(self.gguf) };
        // SAFETY:
        // - made by `ggml_init`, freed once, after the context that copied from it.
        unsafe { sys::ggml_free(self.ggml) };
    }
}
