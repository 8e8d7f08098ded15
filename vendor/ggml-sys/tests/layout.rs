//! The layouts that bindgen computed are those of the C++ compiler that built llama.cpp.
//!
//! The table comes from `shim.cpp`. An entry that is not listed here fails the test: a
//! field that the device relies on cannot be added to one side only.

use std::ffi::CStr;
use std::mem::{offset_of, size_of};

use ggml_sys::*;

/// What Rust believes: the size of a struct, or the offset of `struct.field`, in bytes.
fn rust_value(name: &str) -> Option<usize> {
    macro_rules! known {
        ($($type:ident { $($field:ident),* })*) => {
            match name {
                $(
                    stringify!($type) => Some(size_of::<$type>()),
                    $(concat!(stringify!($type), ".", stringify!($field)) =>
                        Some(offset_of!($type, $field)),)*
                )*
                _ => None,
            }
        };
    }
    known! {
        ggml_tensor {
            type_, buffer, ne, nb, op, op_params, flags, src, view_src, view_offs, data, name,
            extra
        }
        ggml_cgraph { size, n_nodes, n_leafs, nodes, leafs, order, uid }
        ggml_backend_buffer_type_i {}
        ggml_backend_buffer_type { iface, device, context }
        ggml_backend_buffer_i {}
        ggml_backend_buffer { iface, buft, context, size, usage }
        ggml_backend_i {}
        ggml_backend { guid, iface, device, context }
        ggml_backend_event { device, context }
        ggml_backend_device_i {}
        ggml_backend_device { iface, reg, context }
        ggml_backend_dev_props {}
        ggml_backend_dev_caps {}
        ggml_backend_reg_i {}
        ggml_backend_reg { api_version, iface, context }
        llama_model_params { devices }
        llama_context_params {}
        llama_batch {}
    }
}

/// The C++ compiler's table, as (name, size or offset in bytes).
fn compiled_table() -> Vec<(String, usize)> {
    let mut table = Vec::new();
    // SAFETY:
    // - `rpaged_layout` takes nothing and returns a static table.
    let mut entry = unsafe { rpaged_layout() };
    loop {
        // SAFETY:
        // - `entry` starts at the static table and never moves past the entry whose name
        //   is null, at which the loop ends.
        let rpaged_layout_entry { name, value } = unsafe { *entry };
        if name.is_null() {
            return table;
        }
        // SAFETY:
        // - `name` is a string literal of `shim.cpp`, so it ends with NUL and lives forever.
        let name = unsafe { CStr::from_ptr(name) };
        table.push((name.to_str().expect("names are ASCII").to_owned(), value));
        // SAFETY:
        // - `entry` is not the last one, so the next one lies in the same table.
        entry = unsafe { entry.add(1) };
    }
}

#[test]
fn every_size_and_offset_is_the_compilers() {
    let table = compiled_table();
    assert!(
        table.len() > 30,
        "the table has only {} entries",
        table.len()
    );
    let wrong: Vec<String> = table
        .iter()
        .filter_map(|(name, compiled)| match rust_value(name) {
            None => Some(format!("'{name}' is not known to this test")),
            Some(rust) if rust != *compiled => Some(format!(
                "'{name}': {rust} bytes in Rust, {compiled} bytes in C++"
            )),
            Some(_) => None,
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn backend_api_version_is_that_of_the_headers() {
    // SAFETY:
    // - `rpaged_backend_api_version` takes nothing and returns a constant.
    let compiled = unsafe { rpaged_backend_api_version() };
    assert_eq!(u32::try_from(compiled).ok(), Some(GGML_BACKEND_API_VERSION));
}
