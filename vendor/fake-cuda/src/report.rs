//! What the program did wrong, and how much was copied in which way.

use std::ffi::c_char;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};

static VIOLATIONS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// What was copied, and how.
#[derive(Debug, Default)]
pub struct Counts {
    /// Copies to or from pinned memory, left to the stream.
    pub pinned: AtomicU64,
    /// Copies of pageable memory that were asked to be asynchronous, and are not.
    pub pageable: AtomicU64,
    /// Copies that the program waited for.
    pub synchronous: AtomicU64,
    /// Copies within the card.
    pub within: AtomicU64,
    /// Ranges of host memory registered so far.
    pub registered: AtomicU64,
    /// Pieces of pinned host memory given out so far.
    pub allocated: AtomicU64,
}

/// The counts of this process.
pub static COUNTS: Counts = Counts {
    pinned: AtomicU64::new(0),
    pageable: AtomicU64::new(0),
    synchronous: AtomicU64::new(0),
    within: AtomicU64::new(0),
    registered: AtomicU64::new(0),
    allocated: AtomicU64::new(0),
};

/// Adds one to a count.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Records that the program did something that it must not.
pub fn violation(sentence: String) {
    static AT_EXIT: Once = Once::new();
    // SAFETY: the function lives as long as this library, which is not unloaded.
    AT_EXIT.call_once(|| unsafe {
        libc::atexit(say_at_exit);
    });
    let mut violations = VIOLATIONS.lock().unwrap_or_else(PoisonError::into_inner);
    violations.push(sentence);
}

extern "C" fn say_at_exit() {
    let violations = VIOLATIONS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(first) = violations.first() {
        let others = violations.len();
        eprintln!("fake CUDA driver: {others} violations, the first: {first}");
    }
}

/// Writes all violations, a line each, into `text`, and gives their number. What does not
/// fit is left out.
///
/// # Safety
/// - `text` is null, or `bytes` bytes can be written there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fake_cuda_report(text: *mut c_char, bytes: usize) -> u64 {
    let violations = VIOLATIONS.lock().unwrap_or_else(PoisonError::into_inner);
    let joined = violations.join("\n");
    if !text.is_null() && bytes > 0 {
        let fitting = joined.len().min(bytes - 1);
        // SAFETY: the caller promises that many bytes.
        unsafe {
            text.cast::<u8>()
                .copy_from_nonoverlapping(joined.as_ptr(), fitting)
        };
        let end = text.wrapping_add(fitting);
        // SAFETY: as above; `fitting` is less than `bytes`.
        unsafe { end.write(0) };
    }
    violations.len() as u64
}

/// Writes the counts, in the order of [`Counts`]' fields.
///
/// # Safety
/// - six numbers can be written to `out`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fake_cuda_counts(out: *mut [u64; 6]) {
    let all = [
        &COUNTS.pinned,
        &COUNTS.pageable,
        &COUNTS.synchronous,
        &COUNTS.within,
        &COUNTS.registered,
        &COUNTS.allocated,
    ];
    // SAFETY: the caller's promise.
    unsafe { out.write(all.map(|counter| counter.load(Ordering::Relaxed))) };
}
