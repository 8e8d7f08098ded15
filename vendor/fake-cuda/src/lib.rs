//! A CUDA driver without a card, for tests.
//!
//! A test copies this library under the name `libcuda.so.1` into a folder of its own and
//! runs a process with that folder in `LD_LIBRARY_PATH`. It exports what the real driver
//! exports, under the names that the real one has (`cuMemAlloc_v2`; the older functions of
//! the plain names have other arguments, and are left out).
//!
//! It is stricter than a card, where the documentation allows it:
//! - streams are threads, which wait a random time before each piece of work
//!   ([`settings`] says which variables set that);
//! - addresses of the card's memory cannot be followed by the program; memory is never
//!   given out twice, and both ends of an allocation are guarded ([`memory`]);
//! - a copy out of bounds, of freed memory, or of host memory that is no longer registered
//!   is a violation ([`report`]). The process says at its end how many there were.
#![cfg(target_os = "linux")]

pub mod calls_device;
pub mod calls_memory;
pub mod calls_nvml;
pub mod calls_stream;
pub mod calls_virtual;
pub mod errors;
pub mod event;
pub mod host;
pub mod memory;
pub mod report;
pub mod settings;
pub mod state;
pub mod stream;
pub mod virtual_memory;

#[cfg(test)]
mod tests;
