//! What the benches share: models to measure with, runs of `rpaged-cli`, and whether
//! anything disturbed them.

mod gguf;
pub mod measure;
pub mod model;
pub mod quiet;
