//! Paged and stock llama.cpp give the same bits.

mod adapters;
mod asynchronous;
mod budgets;
pub mod case;
mod cold;
pub mod covering;
mod matrix;
mod placed;
mod sequences;
mod settings;
mod states;

pub use self::case::{AMPLE_BYTES, Paging, budgets, config, minimum_budget};
