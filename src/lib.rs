//! rpaged: llama.cpp's command line for models larger than the memory they are given.

pub mod cli;
pub mod device;
pub mod error;
pub mod ggml;
pub mod llama;
pub mod pager;
pub mod planner;
pub mod session;
