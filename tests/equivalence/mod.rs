//! Paged and stock llama.cpp give the same bits.

/// Tests a function of a model with each of the dense ones: on the processor, and on what
/// else computes.
macro_rules! each_dense_model {
    ($check:path) => {
        #[test]
        fn dense_with_grouped_query_attention_in_q8_0() {
            $check(crate::models::Model::Dense);
        }

        #[test]
        fn dense_in_f16() {
            $check(crate::models::Model::DenseF16);
        }

        #[test]
        fn dense_in_q4_0() {
            $check(crate::models::Model::DenseQ4);
        }

        #[test]
        fn dense_in_q4_k() {
            $check(crate::models::Model::DenseQ4K);
        }

        #[test]
        fn tied_embeddings() {
            $check(crate::models::Model::Tied);
        }

        #[test]
        fn sliding_window_attention() {
            $check(crate::models::Model::SlidingWindow);
        }

        #[test]
        fn biases_and_layer_norm() {
            $check(crate::models::Model::Biases);
        }

        #[test]
        fn fused_attention_matrix() {
            $check(crate::models::Model::FusedAttention);
        }
    };
}
#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) use each_dense_model;

mod adapters;
mod asynchronous;
mod budgets;
mod captured;
pub mod case;
mod cold;
pub mod covering;
mod matrix;
mod placed;
mod sequences;
mod settings;
mod states;

pub use self::case::{AMPLE_BYTES, Paging, budgets, config, minimum_budget};
