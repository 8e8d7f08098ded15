#![allow(unsafe_code, reason = "one checked call into ggml each")]
//! ggml's objects as Rust sees them: tensors borrowed for the time of a callback, and
//! the inner device with its buffers and backend, owned.

mod buffer;
mod event;
mod gguf;
mod graph;
mod inner;
mod tensor;
pub mod workload;

pub use buffer::{BufferOwner, DeviceBuffer, HostBuffer, RawBuffer};
pub use event::{Event, Events, Fence};
pub use gguf::{Header, ModelFacts, TensorEntry};
pub use graph::Graph;
pub use inner::{InnerBackend, InnerDevice};
pub use tensor::Tensor;
