#![allow(unsafe_code, reason = "calls into NVIDIA's driver")]
//! NVIDIA's driver, found when the program runs: it needs neither driver nor toolkit to be
//! built or to start.
//!
//! [`Context::new`] says whether it is there. cudarc finds the library and knows its types;
//! the functions are looked up here, all at once, because cudarc panics where one is
//! missing, and takes each error code for one that it knows.

mod context;
mod driver;
mod footprint;
mod holding;
mod nvml;
mod pinned;
mod range;
mod stream;

pub use context::Context;
pub use footprint::{Footprint, Usage, witness};
pub use holding::Holding;
pub use pinned::Pages;
pub use range::{Mapping, Range};
pub use stream::{Event, Stream};

#[cfg(test)]
mod tests {
    #[test]
    fn without_a_driver_a_sentence_says_so() {
        // A machine that has one says so as well; nobody panics.
        if let Err(sentence) = super::Context::new("CUDA0", None, Some(0)) {
            assert!(sentence.contains("driver"), "{sentence}");
        }
    }
}
