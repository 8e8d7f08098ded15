//! The proof: the paged device computes what stock llama.cpp computes, bit for bit.
//!
//! - [`models`] writes small models of many architectures, seeded, through gguf's writer.
//! - [`harness`] runs one of them in llama.cpp, on the plain CPU or on the paged device,
//!   and keeps every logit.
//! - [`equivalence`] compares the two over budgets, ubatches, attention and cache types.
//! - [`bytes`] checks that the bytes that travel are those of the plan.
//! - [`drafting`] generates with drafts and without, and compares the tokens.
//! - [`files`] disturbs the files under a running model.
//! - [`experts`] looks at the cache of single experts.
//! - [`rehearsal`] compares what is predicted of memory with what a run takes.
//! - `cuda` has the link to CUDA's devices copy on a driver without a card.
//! - `gpu`, with the features of CUDA and Vulkan, has a GPU compute.
//! - [`order`] delays, refuses and fails copies.
#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

mod bytes;
#[cfg(target_os = "linux")]
mod cuda;
mod drafting;
mod equivalence;
mod experts;
mod files;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
mod gpu;
mod harness;
mod models;
mod order;
mod rehearsal;
