//! What a graph has under way on a device that computes by itself: looked at in its order,
//! it tells the time in which the device waited for copies from that in which it computed.
//!
//! ```text
//!  copies of segment 1 │ computes 1 │ copies of 2 still come │ computes 2 │
//!  ◄── a stall ───────►              ◄── a stall ───────────►
//! ```
//! The host sees that a segment is computed, then whether the copies of the next one have
//! come: as long as they have not, nothing is computed. What happened while the host was
//! still launching is not seen.

use std::time::Instant;

use super::Pager;
use super::engine::Ticket;
use super::engine_host::progress::Kind;
use crate::ggml::Fence;

/// One thing that is under way.
#[derive(Debug)]
pub(super) enum Underway {
    /// The copies up to this ticket, of this kind, for which a segment waits.
    Copies(Ticket, Kind),
    /// The computation of a segment.
    Segment(Fence),
}

impl Pager {
    /// Looks at everything that is under way up to the last copies that are waited for, and
    /// blocks until they have come; gives the seconds that were not waited for copies.
    pub fn watch_what_is_underway(&mut self) -> f64 {
        let is_copies = |underway: &Underway| matches!(underway, Underway::Copies(..));
        let end = self.underway.iter().rposition(is_copies);
        let mut seconds = 0.0;
        for underway in self.underway.drain(..end.map_or(0, |last| last + 1)) {
            let start = Instant::now();
            match underway {
                Underway::Segment(fence) => {
                    fence.synchronize();
                    seconds += start.elapsed().as_secs_f64();
                }
                Underway::Copies(ticket, kind) => {
                    // Who needs what failed is told so elsewhere.
                    let _ = self.engine.await_arrival(ticket);
                    self.stalls.add(kind, start.elapsed());
                }
            }
        }
        seconds
    }
}

#[cfg(test)]
mod tests;
