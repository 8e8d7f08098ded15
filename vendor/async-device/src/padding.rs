//! The padding behind the rows of quantised tensors, as ggml-cuda has it: kernels read rows
//! in steps of 512 elements, and count on zeros behind the last one.

use std::sync::atomic::Ordering;

use ggml_sys as sys;

use crate::shared::Tally;
use crate::snapshot::{Snapshot, name_of};

/// Elements that a row is padded to.
const ROW_ELEMENTS: i64 = 512;

/// Elements that rows of a view are read in steps of.
const STEP_ELEMENTS: i64 = 256;

/// Bytes of padding behind the last row of a tensor.
pub fn padding_bytes(tensor: &sys::ggml_tensor) -> usize {
    // SAFETY: no preconditions beyond a valid type, which a tensor has.
    let quantised = unsafe { sys::ggml_is_quantized(tensor.type_) };
    let rest = tensor.ne[0] % ROW_ELEMENTS;
    if !quantised || rest == 0 {
        return 0;
    }
    // SAFETY: as above; what a row of blocks lacks is a number of whole blocks.
    unsafe { sys::ggml_row_size(tensor.type_, ROW_ELEMENTS - rest) }
}

/// Looks at the padding of all matrices that the graph multiplies with.
///
/// # Errors
/// A sentence, when there is none, or when it is not zero.
pub fn check(snapshot: &Snapshot, tally: &Tally) -> Result<(), String> {
    for node in snapshot.nodes() {
        let multiplies = [sys::GGML_OP_MUL_MAT, sys::GGML_OP_MUL_MAT_ID].contains(&node.op);
        let Some(matrix) = snapshot.source(node, 0).filter(|_| multiplies) else {
            continue;
        };
        match matrix.view_src.is_null() {
            true => check_matrix(snapshot, matrix, tally)?,
            false => check_view(snapshot, matrix, tally)?,
        }
    }
    Ok(())
}

/// Looks at what is read behind the last row of a view: the rest of its tensor, or what is
/// behind that. It is multiplied with zeros, so any numbers do.
fn check_view(snapshot: &Snapshot, view: &sys::ggml_tensor, tally: &Tally) -> Result<(), String> {
    // SAFETY: no preconditions beyond a valid type, which a tensor has.
    let quantised = unsafe { sys::ggml_is_quantized(view.type_) };
    let read = (STEP_ELEMENTS - view.ne[0] % STEP_ELEMENTS) % STEP_ELEMENTS;
    let place = snapshot.memory_of(view).filter(|_| quantised && read > 0);
    let Some((memory, offset)) = place else {
        return Ok(());
    };
    tally.paddings.fetch_add(1, Ordering::Relaxed);
    // SAFETY: as above; steps and rows are whole blocks.
    let bytes = unsafe { sys::ggml_row_size(view.type_, read) };
    // SAFETY: the tensor is a live copy of one.
    let end = offset + unsafe { sys::ggml_nbytes(view) };
    if end + bytes > memory.bytes() {
        return Err(format!(
            "what is read behind {} ends behind its buffer",
            name_of(view)
        ));
    }
    let count = usize::try_from(read).unwrap_or(0);
    let mut numbers = vec![0f32; count];
    // SAFETY: no preconditions beyond a valid type.
    let traits = unsafe { sys::ggml_get_type_traits(view.type_) };
    // SAFETY: those of a valid type are static.
    let to_float = unsafe { (*traits).to_float };
    if let Some(to_float) = to_float {
        // SAFETY:
        // - as many bytes lie in the memory; who writes there meanwhile has the bug that is
        //   looked for;
        // - there is room for as many numbers.
        unsafe { to_float(memory.pointer(end).cast(), numbers.as_mut_ptr(), read) };
    }
    match numbers.iter().all(|number| number.is_finite()) {
        true => Ok(()),
        false => Err(format!("there are no numbers behind {}", name_of(view))),
    }
}

fn check_matrix(
    snapshot: &Snapshot,
    matrix: &sys::ggml_tensor,
    tally: &Tally,
) -> Result<(), String> {
    let bytes = padding_bytes(matrix);
    let Some((memory, offset)) = snapshot.memory_of(matrix).filter(|_| bytes > 0) else {
        return Ok(());
    };
    tally.paddings.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the tensor is a live copy of one.
    let end = offset + unsafe { sys::ggml_nbytes(matrix) };
    if end + bytes > memory.bytes() {
        return Err(format!(
            "the padding of {} ends behind its buffer",
            name_of(matrix)
        ));
    }
    let start = memory.pointer(end);
    // SAFETY: as many bytes lie in the memory; who writes there meanwhile has the bug that
    // is looked for.
    let padding = unsafe { std::slice::from_raw_parts(start, bytes) };
    match padding.iter().position(|byte| *byte != 0) {
        None => Ok(()),
        Some(at) => Err(format!(
            "the padding of {} is not zero: byte {at} of {bytes} is {}",
            name_of(matrix),
            padding[at]
        )),
    }
}
