#![allow(unsafe_code, reason = "slots of ggml's buffer type and buffer")]
//! Buffer type and buffers. `alloc_buffer_n` (weights, KV cache) makes paged memory: an
//! address range that nobody can read, whose tensors the pager knows. `alloc_buffer`
//! (scratch) makes a buffer of the inner device's own type.

use std::ffi::{CStr, c_char, c_void};

use ggml_sys as sys;

use super::addresses::AddressRange;
use super::guard::guard;
use super::outside;
use super::rehearsal;
use super::report::Reason;
use super::scratch;
use super::shared::Shared;
use crate::error::{Error, Result};
use crate::ggml::Tensor;
use crate::pager::memory::Reservation;
use crate::pager::{Backing, GroupKey, TensorId, TensorSpec};

const NAME: &CStr = c"RPAGED0";

/// ggml's slots for the buffer type.
pub const BUFFER_TYPE: sys::ggml_backend_buffer_type_i = sys::ggml_backend_buffer_type_i {
    get_name: Some(type_name),
    alloc_buffer: Some(type_alloc_buffer),
    alloc_buffer_n: Some(type_alloc_buffer_n),
    get_alignment: Some(type_alignment),
    get_max_size: None,
    get_alloc_size: Some(type_alloc_size),
    get_alloc_size_n: Some(type_alloc_size_n),
    // Nobody but the pager can read it, even where the arena is host memory.
    is_host: None,
};

/// The shared state behind a buffer type.
///
/// # Safety
/// - `buffer_type` is ours, and its `PagedDevice` lives for `'a`.
unsafe fn shared_of_type<'a>(buffer_type: sys::ggml_backend_buffer_type_t) -> &'a Shared {
    // SAFETY: the buffer type is live.
    let context = unsafe { (*buffer_type).context };
    // SAFETY: the context of our buffer type is `Shared`, see `Interface::new`.
    unsafe { &*context.cast::<Shared>() }
}

unsafe extern "C" fn type_name(_: sys::ggml_backend_buffer_type_t) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "C" fn type_alloc_buffer(
    buffer_type: sys::ggml_backend_buffer_type_t,
    size: usize,
) -> sys::ggml_backend_buffer_t {
    // SAFETY: ours.
    let shared = unsafe { shared_of_type(buffer_type) };
    guard(shared, std::ptr::null_mut(), |shared| {
        scratch::allocate(shared, size)
    })
}

unsafe extern "C" fn type_alignment(buffer_type: sys::ggml_backend_buffer_type_t) -> usize {
    // SAFETY: ours.
    unsafe { shared_of_type(buffer_type) }.inner.alignment()
}

unsafe extern "C" fn type_alloc_size(
    buffer_type: sys::ggml_backend_buffer_type_t,
    tensor: *const sys::ggml_tensor,
) -> usize {
    // SAFETY: ours.
    let inner = unsafe { shared_of_type(buffer_type) }.inner.buffer_type();
    // SAFETY: the inner buffer type is static, the tensor ggml's own.
    unsafe { sys::ggml_backend_buft_get_alloc_size(inner, tensor) }
}

unsafe extern "C" fn type_alloc_buffer_n(
    buffer_type: sys::ggml_backend_buffer_type_t,
    tensors: *mut *mut sys::ggml_tensor,
    count: i32,
) -> sys::ggml_backend_buffer_t {
    // SAFETY: ours.
    let shared = unsafe { shared_of_type(buffer_type) };
    guard(shared, std::ptr::null_mut(), |shared| {
        let count = usize::try_from(count).unwrap_or(0);
        // SAFETY: ggml passes an array of `count` tensors, lent for this call.
        let tensors = unsafe { std::slice::from_raw_parts(tensors, count) };
        let tensors = tensors.iter().filter_map(|raw| {
            // SAFETY: a live tensor, ours alone while ggml allocates it.
            unsafe { Tensor::from_raw(*raw) }
        });
        let (views, roots): (Vec<_>, Vec<_>) =
            tensors.partition(|tensor| tensor.view_source().is_some());
        let buffer = allocate(shared, buffer_type, &roots)?;
        views.into_iter().for_each(place_view);
        Ok(buffer)
    })
}

/// What `alloc_buffer_n` would take, which nobody asks but a rehearsal.
unsafe extern "C" fn type_alloc_size_n(
    buffer_type: sys::ggml_backend_buffer_type_t,
    tensors: *mut *mut sys::ggml_tensor,
    count: i32,
) -> usize {
    // SAFETY: ours.
    let shared = unsafe { shared_of_type(buffer_type) };
    guard(shared, 0, |shared| {
        // SAFETY: ggml passes an array of `count` tensors, lent for this call.
        let roots = unsafe { roots_of(tensors, count) };
        rehearsal::note(shared, &roots)?;
        Ok(arena_sizes(shared, &roots).iter().sum())
    })
}

/// The tensors of a list that are no views.
///
/// # Safety
/// - `tensors` is an array of `count` live tensors that nobody else uses for `'a`.
unsafe fn roots_of<'a>(tensors: *mut *mut sys::ggml_tensor, count: i32) -> Vec<Tensor<'a>> {
    let count = usize::try_from(count).unwrap_or(0);
    // SAFETY: as promised.
    let tensors = unsafe { std::slice::from_raw_parts(tensors, count) };
    let tensors = tensors.iter().filter_map(|raw| {
        // SAFETY: as promised.
        unsafe { Tensor::from_raw(*raw) }
    });
    tensors
        .filter(|tensor| tensor.view_source().is_none())
        .collect()
}

/// Which memory a list of tensors asks for.
pub(super) enum Kind {
    /// Weights to be paged: all are in the model's files.
    Weights,
    /// A KV cache or recurrent state to be paged.
    States,
    /// Anything else (adapters, or what was not asked to be paged): the inner device's.
    Inner,
}

pub(super) fn kind_of(shared: &Shared, tensors: &[Tensor<'_>]) -> Result<Kind> {
    let in_model = |tensor: &&Tensor<'_>| {
        let location = shared.index.find(&tensor.name());
        location.is_some_and(|location| location.bytes == tensor.span_bytes() as u64)
    };
    let known = tensors.iter().filter(in_model).count();
    if known > 0 {
        // Some of a model's weights outside the arena would be outside the budget too.
        return match tensors.iter().find(|tensor| !in_model(tensor)) {
            Some(stranger) if shared.config.weights => Err(Error::Failed(format!(
                "cannot page this model: its tensor '{}' is not in the file",
                stranger.name()
            ))),
            None if shared.config.weights => Ok(Kind::Weights),
            _ => Ok(Kind::Inner),
        };
    }
    let is_state = |tensor: &Tensor<'_>| state_layer(&tensor.name()).is_some();
    if shared.config.kv && tensors.iter().any(is_state) {
        Ok(Kind::States)
    } else {
        Ok(Kind::Inner)
    }
}

/// Bytes that each tensor takes in a paged buffer.
pub(super) fn arena_sizes(shared: &Shared, tensors: &[Tensor<'_>]) -> Vec<usize> {
    let alignment = shared.inner.arena_alignment();
    let bytes = tensors
        .iter()
        .map(|tensor| shared.inner.alloc_bytes(*tensor));
    bytes
        .map(|bytes| bytes.next_multiple_of(alignment))
        .collect()
}

/// A buffer of a rehearsal: recurrent states are allocated even there. Its tensors have
/// addresses and no bytes.
fn allocate_nothing(
    shared: &Shared,
    buffer_type: sys::ggml_backend_buffer_type_t,
    tensors: &[Tensor<'_>],
    sizes: &[usize],
) -> Result<sys::ggml_backend_buffer_t> {
    rehearsal::note(shared, tensors)?;
    let total = sizes.iter().sum();
    let reservation = Reservation::new(total).map_err(|error| no_address_space(total, &error))?;
    let base = reservation.base();
    let buffer = paged_buffer(shared, buffer_type, reservation, Vec::new());
    let mut start = base;
    for (tensor, bytes) in tensors.iter().zip(sizes) {
        place(buffer, *tensor, start);
        start += bytes;
    }
    Ok(buffer)
}

fn no_address_space(bytes: usize, error: &region::Error) -> Error {
    Error::Memory(format!(
        "could not reserve {} MiB of address space ({error}); lower -c",
        bytes >> 20
    ))
}

/// ggml's buffer over a reservation.
fn paged_buffer(
    shared: &Shared,
    buffer_type: sys::ggml_backend_buffer_type_t,
    reservation: Reservation,
    tensors: Vec<TensorId>,
) -> sys::ggml_backend_buffer_t {
    let total = reservation.bytes();
    let context = Box::new(PagedBuffer {
        shared: std::ptr::from_ref(shared),
        base: reservation.base(),
        tensors,
        _reservation: reservation,
    });
    let context = Box::into_raw(context).cast::<c_void>();
    // SAFETY:
    // - the buffer type is ours and outlives the buffer;
    // - `free_buffer` takes the context back.
    unsafe { sys::ggml_backend_buffer_init(buffer_type, BUFFER, context, total) }
}

fn allocate(
    shared: &Shared,
    buffer_type: sys::ggml_backend_buffer_type_t,
    tensors: &[Tensor<'_>],
) -> Result<sys::ggml_backend_buffer_t> {
    let sizes = arena_sizes(shared, tensors);
    let total: usize = sizes.iter().sum();
    if shared.notebook.is_open() {
        return allocate_nothing(shared, buffer_type, tensors, &sizes);
    }
    let kind = kind_of(shared, tensors)?;
    if let Kind::Inner = kind {
        return allocate_inner(shared, tensors, &sizes, total);
    }

    let reservation = Reservation::new(total).map_err(|error| no_address_space(total, &error))?;
    let specs = tensors.iter().zip(&sizes);
    let specs = specs
        .map(|(tensor, bytes)| spec_of(shared, &kind, *tensor, *bytes))
        .collect::<Result<Vec<TensorSpec>>>()?;
    let ids = take_in(shared, &kind, tensors, specs)?;

    let base = reservation.base();
    let mut ranges = Vec::with_capacity(ids.len());
    let mut start = base;
    for (id, bytes) in ids.iter().zip(&sizes) {
        ranges.push(AddressRange {
            start,
            end: start + bytes,
            tensor: *id,
        });
        start += bytes;
    }
    shared.paged().addresses.insert(ranges.iter().copied());
    let buffer = paged_buffer(shared, buffer_type, reservation, ids);
    for (tensor, range) in tensors.iter().zip(&ranges) {
        place(buffer, *tensor, range.start);
    }
    Ok(buffer)
}

/// Has the pager take the tensors in, and the budget cover what they leave outside.
fn take_in(
    shared: &Shared,
    kind: &Kind,
    tensors: &[Tensor<'_>],
    specs: Vec<TensorSpec>,
) -> Result<Vec<TensorId>> {
    let mut paged = shared.paged();
    let mut unpaged = 0;
    let reason = match kind {
        Kind::Weights => {
            outside::check_pinned_layers(shared, &specs)?;
            unpaged = outside::unpaged_bytes(shared, tensors);
            shared.set_unpaged(&mut paged, unpaged, u64::from(shared.direct))?;
            Reason::Weights
        }
        Kind::States | Kind::Inner => Reason::Context,
    };
    let ids = match paged.pager.add_tensors(specs.clone()) {
        Err(Error::Memory(_)) if unpaged > 0 => {
            // Rather a peak while loading than no run at all.
            shared.set_unpaged(&mut paged, unpaged, 0)?;
            paged.pager.add_tensors(specs)?
        }
        outcome => outcome?,
    };
    shared.note_change(reason, &mut paged);
    Ok(ids)
}

/// An ordinary buffer of the inner device, with the tensors laid out in it.
fn allocate_inner(
    shared: &Shared,
    tensors: &[Tensor<'_>],
    sizes: &[usize],
    total: usize,
) -> Result<sys::ggml_backend_buffer_t> {
    let buffer = scratch::allocate(shared, total)?;
    // SAFETY: the buffer was made just now.
    let base = unsafe { sys::ggml_backend_buffer_get_base(buffer) } as usize;
    let mut start = base;
    for (tensor, bytes) in tensors.iter().zip(sizes) {
        place(buffer, *tensor, start);
        start += bytes;
    }
    Ok(buffer)
}

/// Tells ggml where a tensor lies. Calls back into the slots below, none of which locks.
fn place(buffer: sys::ggml_backend_buffer_t, tensor: Tensor<'_>, address: usize) {
    if tensor.address() != 0 {
        return;
    }
    let address = address as *mut c_void;
    // SAFETY:
    // - buffer and tensor are live, the tensor has no place yet;
    // - the address and the tensor's size lie in the buffer: they were laid out so.
    unsafe { sys::ggml_backend_tensor_alloc(buffer, tensor.as_ptr(), address) };
}

/// Tells ggml where a view lies, once its root has a place.
fn place_view(view: Tensor<'_>) {
    if view.buffer().is_null() {
        // SAFETY: the view and its root are live; the root has been placed.
        unsafe { sys::ggml_backend_view_init(view.as_ptr()) };
    }
}

/// What a kernel of ggml-cuda reads behind the last row that it needs: it goes through rows
/// of quantised elements in steps of at most as many.
const READ_BEHIND_ELEMENTS: i64 = 512;

pub(super) fn spec_of(
    shared: &Shared,
    kind: &Kind,
    tensor: Tensor<'_>,
    bytes: usize,
) -> Result<TensorSpec> {
    let name = tensor.name();
    let (group, backing) = match kind {
        Kind::States => {
            let layer = state_layer(&name).map_or(GroupKey::Shared, GroupKey::Layer);
            let page_tokens = shared.config.kv_page_tokens as usize;
            let page_bytes = tensor.stride(1).saturating_mul(page_tokens);
            (layer, Backing::State { page_bytes })
        }
        Kind::Weights | Kind::Inner => {
            let location = shared.index.find(&name).cloned();
            let location = location.ok_or_else(|| {
                Error::Bug(format!("the weight '{name}' is not in the model's header"))
            })?;
            (weight_group(&name), Backing::Weight(location))
        }
    };
    let span_bytes = tensor.span_bytes();
    let is_read_behind = matches!(kind, Kind::States) && !shared.inner.is_host();
    let read_behind_bytes = match is_read_behind && tensor.is_quantised() {
        true => tensor.bytes_of_elements(READ_BEHIND_ELEMENTS),
        false => 0,
    };
    Ok(TensorSpec {
        group,
        role: role_of(&name),
        bytes: bytes.max(span_bytes + read_behind_bytes),
        span_bytes,
        read_behind_bytes,
        slice_bytes: slice_bytes(kind, tensor).filter(|_| shared.inner.is_host()),
        backing,
    })
}

/// Bytes of one expert, when the tensor is a list of experts.
fn slice_bytes(kind: &Kind, tensor: Tensor<'_>) -> Option<usize> {
    let is_weight = matches!(kind, Kind::Weights);
    let of_experts = is_weight && tensor.name().ends_with("exps.weight");
    (of_experts && tensor.extent(2) > 1 && tensor.extent(3) == 1).then(|| tensor.stride(2))
}

/// What a tensor is to its layer: its name without the layer's number.
fn role_of(name: &str) -> String {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if let Some((kind, _)) = name.rsplit_once("_l").filter(|(_, layer)| number(layer)) {
        return kind.to_owned();
    }
    let parts: Vec<&str> = name.split('.').filter(|part| !number(part)).collect();
    parts.join(".")
}

/// What a weight travels with, by its name in the GGUF.
fn weight_group(name: &str) -> GroupKey {
    let layer_in = |prefix: &str| {
        let number = name.strip_prefix(prefix)?.split('.').next()?;
        number.parse().ok()
    };
    if let Some(layer) = layer_in("enc.blk.") {
        return GroupKey::EncoderLayer(layer);
    }
    if let Some(layer) = layer_in("blk.").or_else(|| layer_in("dec.blk.")) {
        return GroupKey::Layer(layer);
    }
    // A tied output is the token embedding under another role.
    let output = ["output.", "output_norm.", "token_embd."];
    if output.iter().any(|prefix| name.starts_with(prefix)) {
        GroupKey::Output
    } else {
        GroupKey::Shared
    }
}

/// The layer of a KV cache or state tensor, from llama.cpp's name (`cache_k_l12`).
fn state_layer(name: &str) -> Option<u32> {
    let (kind, layer) = name.rsplit_once("_l")?;
    let known = kind.starts_with("cache_") || kind.starts_with("dsv4_");
    known.then(|| layer.parse().ok()).flatten()
}

/// What a paged buffer keeps.
struct PagedBuffer {
    shared: *const Shared,
    base: usize,
    tensors: Vec<TensorId>,
    _reservation: Reservation,
}

const BUFFER: sys::ggml_backend_buffer_i = sys::ggml_backend_buffer_i {
    free_buffer: Some(buffer_free),
    get_base: Some(buffer_base),
    // The pager learned the tensors when the buffer was made; views need nothing.
    init_tensor: None,
    memset_tensor: Some(buffer_memset_tensor),
    set_tensor: Some(buffer_set_tensor),
    get_tensor: Some(buffer_get_tensor),
    set_tensor_2d: None,
    get_tensor_2d: None,
    cpy_tensor: None,
    clear: Some(buffer_clear),
    reset: None,
};

/// Our context behind a buffer, and the shared state behind that.
///
/// # Safety
/// - `buffer` was made by `allocate` and not freed; its `PagedDevice` lives for `'a`.
unsafe fn context_of<'a>(buffer: sys::ggml_backend_buffer_t) -> (&'a PagedBuffer, &'a Shared) {
    // SAFETY: the buffer is live.
    let context = unsafe { (*buffer).context };
    // SAFETY: `allocate` put a `PagedBuffer` there.
    let context = unsafe { &*context.cast::<PagedBuffer>() };
    // SAFETY: `Shared` outlives all buffers (contract of `PagedDevice`).
    (context, unsafe { &*context.shared })
}

unsafe extern "C" fn buffer_free(buffer: sys::ggml_backend_buffer_t) {
    // SAFETY: ours, freed once.
    let (context, shared) = unsafe { context_of(buffer) };
    guard(shared, (), |shared| {
        let mut paged = shared.paged();
        paged.addresses.remove(&context.tensors);
        paged.pager.remove_tensors(&context.tensors);
        Ok(())
    });
    // SAFETY: made by `Box::into_raw` in `allocate`; nobody uses it after this slot.
    drop(unsafe { Box::from_raw(std::ptr::from_ref(context).cast_mut()) });
}

unsafe extern "C" fn buffer_base(buffer: sys::ggml_backend_buffer_t) -> *mut c_void {
    // SAFETY: ours.
    unsafe { context_of(buffer) }.0.base as *mut c_void
}

/// The paged tensor that `tensor` is, or is a view of, and where the view begins in it.
fn identify(shared: &Shared, tensor: Tensor<'_>) -> Result<(TensorId, usize)> {
    shared
        .paged()
        .addresses
        .find(tensor.address())
        .ok_or_else(|| {
            Error::Bug(format!(
                "the tensor '{}' is not in paged memory",
                tensor.name()
            ))
        })
}

unsafe extern "C" fn buffer_memset_tensor(
    buffer: sys::ggml_backend_buffer_t,
    tensor: *mut sys::ggml_tensor,
    value: u8,
    offset: usize,
    size: usize,
) {
    // SAFETY: ours.
    let (_, shared) = unsafe { context_of(buffer) };
    // SAFETY: ggml passes a live tensor of this buffer.
    let Some(tensor) = (unsafe { Tensor::from_raw(tensor) }) else {
        return;
    };
    guard(shared, (), |shared| {
        let (id, start) = identify(shared, tensor)?;
        let start = start + offset;
        shared.paged().pager.fill(id, start..start + size, value)
    });
}

unsafe extern "C" fn buffer_set_tensor(
    buffer: sys::ggml_backend_buffer_t,
    tensor: *mut sys::ggml_tensor,
    data: *const c_void,
    offset: usize,
    size: usize,
) {
    // SAFETY: ours.
    let (_, shared) = unsafe { context_of(buffer) };
    // SAFETY: ggml passes a live tensor of this buffer.
    let Some(tensor) = (unsafe { Tensor::from_raw(tensor) }) else {
        return;
    };
    // SAFETY: ggml passes `size` readable bytes, lent for this call.
    let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), size) };
    guard(shared, (), |shared| {
        let (id, start) = identify(shared, tensor)?;
        shared.paged().pager.write(id, start + offset, bytes)?;
        shared.note_loaded(size);
        Ok(())
    });
}

unsafe extern "C" fn buffer_get_tensor(
    buffer: sys::ggml_backend_buffer_t,
    tensor: *const sys::ggml_tensor,
    data: *mut c_void,
    offset: usize,
    size: usize,
) {
    // SAFETY: ours.
    let (_, shared) = unsafe { context_of(buffer) };
    // SAFETY: ggml passes a live tensor of this buffer.
    let Some(tensor) = (unsafe { Tensor::from_raw(tensor.cast_mut()) }) else {
        return;
    };
    // SAFETY: ggml passes `size` writable bytes, lent for this call; they may be
    // uninitialised, so they are zeroed before a slice of them is made.
    unsafe { std::ptr::write_bytes(data.cast::<u8>(), 0, size) };
    // SAFETY: as above.
    let bytes = unsafe { std::slice::from_raw_parts_mut(data.cast::<u8>(), size) };
    guard(shared, (), |shared| {
        let (id, start) = identify(shared, tensor)?;
        shared.paged().pager.read(id, start + offset, bytes)
    });
}

unsafe extern "C" fn buffer_clear(buffer: sys::ggml_backend_buffer_t, value: u8) {
    // SAFETY: ours.
    let (context, shared) = unsafe { context_of(buffer) };
    guard(shared, (), |shared| {
        let mut paged = shared.paged();
        context
            .tensors
            .iter()
            .try_for_each(|id| paged.pager.clear(*id, value))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_travels_together() {
        assert_eq!(weight_group("blk.12.attn_q.weight"), GroupKey::Layer(12));
        assert_eq!(
            weight_group("enc.blk.3.ffn_up.weight"),
            GroupKey::EncoderLayer(3)
        );
        assert_eq!(weight_group("dec.blk.3.ffn_up.weight"), GroupKey::Layer(3));
        assert_eq!(weight_group("output_norm.weight"), GroupKey::Output);
        assert_eq!(weight_group("token_embd.weight"), GroupKey::Output);
        assert_eq!(weight_group("rope_freqs.weight"), GroupKey::Shared);
        assert_eq!(role_of("blk.12.attn_q.weight"), "blk.attn_q.weight");
        assert_eq!(role_of("cache_k_l7"), "cache_k");
        assert_eq!(role_of("output_l.weight"), "output_l.weight");
        assert_eq!(state_layer("cache_k_l7"), Some(7));
        assert_eq!(state_layer("cache_s_l31"), Some(31));
        assert_eq!(state_layer("blk.0.attn_q.weight.lora_a"), None);
    }
}
