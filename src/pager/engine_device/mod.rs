#![allow(unsafe_code, reason = "copies of a device are told of addresses")]
//! The copy engine of an arena in a device's memory.

pub mod cuda_link;
pub mod link;
