//! What the engine says to the user.

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

/// What streams is kept.
pub fn kept(limit_bytes: u64, is_pinned: bool) -> String {
    let memory = if is_pinned { "pinned memory" } else { "memory" };
    format!(
        "weights that are streamed to the device are read once and kept in {memory}, up to {} MiB",
        mib(limit_bytes)
    )
}

/// What streams is not kept, or not all of it.
pub fn staged(limit_bytes: u64) -> String {
    match limit_bytes {
        0 => "weights that are streamed to the device are read from the model's file each time, \
              through a staging buffer"
            .to_owned(),
        _ => format!(
            "the {} MiB of memory for weights that are streamed to the device do not hold all of \
             them; the others are read from the model's file each time, through a staging buffer",
            mib(limit_bytes)
        ),
    }
}

/// There is no memory to keep what streams.
pub fn not_kept(why: &str) -> String {
    format!(
        "no more memory to keep weights in that are streamed to the device ({why}); those that \
         are not kept are read from the model's file each time, through a staging buffer"
    )
}

/// Copies wait for each other.
pub fn not_pinned(why: &str) -> String {
    format!(
        "the device copies from ordinary memory, which may keep copies from overlapping with \
         what it computes ({why})"
    )
}

/// What goes out waits with what comes in.
pub fn one_stream(why: &str) -> String {
    format!(
        "the device copies in both directions on one stream, so that what it needs may wait for \
         what is written back ({why})"
    )
}
