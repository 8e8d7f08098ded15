//! Raw bindings to llama.cpp: `llama.h`, ggml's public headers, the internal headers
//! a ggml device is made of, and the C doors of `shim.h` to llama.cpp's `common/`.
//!
//! The sources, and the static libraries, are those of `llama-cpp-sys-2`; the bindings
//! are generated from that very source, so they cannot drift from what is linked.
//! Names are upstream's; see upstream's headers for their contracts.
#![allow(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    missing_docs,
    reason = "generated names are upstream's"
)]
#![allow(clippy::all, reason = "generated code")]
#![allow(unnecessary_transmutes, reason = "generated code")]

// Linked for its static libraries alone.
use llama_cpp_sys_2 as _;

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

/// Version of `llama-cpp-sys-2`, the crate that carries llama.cpp's sources.
pub const LLAMA_CPP_SYS_VERSION: &str = "0.1.161";

/// ggml's version, as its build files set it.
pub const GGML_VERSION: &str = env!("GGML_SYS_GGML_VERSION");
