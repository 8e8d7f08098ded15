#![allow(
    unsafe_code,
    reason = "points tensors of llama.cpp's elsewhere for a launch"
)]
//! Points the tensors of a segment to where their bytes are, for the time of a launch.

use std::ops::Range;

use ggml_sys as sys;

use super::scan::Touch;
use crate::ggml::{RawBuffer, Tensor};
use crate::pager::Pager;

/// A tensor that was pointed elsewhere for a launch, and where it was before.
#[derive(Debug)]
struct Moved {
    raw: *mut sys::ggml_tensor,
    address: usize,
    buffer: RawBuffer,
}

/// Tensors that are elsewhere for a launch. Kept from launch to launch, so that a pass
/// allocates nothing.
#[derive(Debug, Default)]
pub struct Translation {
    moved: Vec<Moved>,
}

impl Translation {
    /// Points a tensor to `address` in `buffer`.
    ///
    /// # Safety
    /// Until `restore`:
    /// - the tensor lives, and nobody uses it but who computes the launch;
    /// - its bytes lie there.
    pub unsafe fn point(
        &mut self,
        raw: *mut sys::ggml_tensor,
        (address, buffer): (usize, RawBuffer),
    ) {
        // SAFETY: live, as promised.
        let Some(tensor) = (unsafe { Tensor::from_raw(raw) }) else {
            return;
        };
        // SAFETY: as promised.
        let (address, buffer) = unsafe { tensor.relocate(address, buffer) };
        self.moved.push(Moved {
            raw,
            address,
            buffer,
        });
    }

    /// Points each touched tensor to where the pager has its bytes, once.
    pub fn follow(&mut self, touches: &[Touch], pager: &Pager) {
        self.moved.clear();
        for touch in touches {
            // SAFETY: tensors of the graph at hand, ours during the launch.
            let Some(tensor) = (unsafe { Tensor::from_raw(touch.raw) }) else {
                continue;
            };
            if tensor.address() != touch.address {
                continue;
            }
            let (address, buffer) = pager.locate(touch.tensor);
            let address = address.wrapping_add(touch.offset);
            // SAFETY:
            // - the pager holds the tensor's bytes there until `unpin`, after `restore`;
            // - during the launch nobody but the inner backend uses the tensor.
            unsafe { self.point(touch.raw, (address, buffer)) };
        }
    }

    /// Points the tensors back: graphs are used again for the next token.
    pub fn restore(&mut self) {
        for was in self.moved.drain(..).rev() {
            // SAFETY: the same tensors as in `point`.
            let Some(tensor) = (unsafe { Tensor::from_raw(was.raw) }) else {
                continue;
            };
            // SAFETY: where the tensor was before, which is what llama.cpp expects; whoever
            // computed has taken what it needs.
            unsafe { tensor.relocate(was.address, was.buffer) };
        }
    }
}

/// The touches of a segment's nodes.
pub fn touches_of<'a>(touches: &'a [Touch], nodes: &Range<usize>) -> &'a [Touch] {
    let first = touches.partition_point(|touch| touch.node < nodes.start);
    let last = touches.partition_point(|touch| touch.node < nodes.end);
    &touches[first..last]
}
