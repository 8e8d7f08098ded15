//! llama.cpp behind owning, safe types: its options, parameters, sessions and logging.
//!
//! The calls go to the C doors in `vendor/ggml-sys/shim.h`, none of which lets an
//! exception or an `exit()` through. No raw pointer leaves this module, except the one
//! device that a [`crate::device::PagedDevice`] lends to [`Params::use_device`].

pub mod bench;
mod bytes;
pub mod chat;
pub mod console;
pub mod download;
mod drafting;
pub mod log;
mod model_file;
mod options;
mod params;
mod rehearsal;
mod session;
mod state;
mod state_file;

pub use drafting::{Drafting, DraftingSettings};
pub use model_file::{ModelFile, inspect};
pub use options::{Arity, OptionInfo, blamed, build_info, cache_list, device_list, options};
pub use params::{Dialogue, Params, Progress, Settings};
pub use rehearsal::{Facts, rehearse};
pub use session::{Decoded, Session, start_backend};

/// A token's number in the model's vocabulary.
pub type Token = i32;
