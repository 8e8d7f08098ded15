//! Nothing: the check is this crate's `build.rs`.
//!
//! Cargo starts first what most others wait for. A build script of the root package is
//! waited for by little, and on two cores llama.cpp's build starts, and fails, before it.
//! `ggml-sys` waits for this crate, so that more waits for it than for llama.cpp itself,
//! and a missing package is named within the first seconds.

#[cfg(test)]
#[path = "../build.rs"]
#[allow(dead_code, reason = "a test runs parts of the check only")]
mod check;
