//! A bound on host memory that several share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of host memory that may be taken for copies of the model's weights: those that an
/// engine keeps, and those that the processor computes from.
#[derive(Debug)]
pub struct Room {
    limit_bytes: u64,
    left_bytes: AtomicU64,
}

/// A part of a room, given back when it is dropped.
#[derive(Debug)]
pub struct Part {
    room: Arc<Room>,
    bytes: u64,
}

impl Room {
    /// Room for `bytes` bytes.
    pub fn new(bytes: u64) -> Self {
        Self {
            limit_bytes: bytes,
            left_bytes: AtomicU64::new(bytes),
        }
    }

    /// What it was made for, in bytes.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// What is not taken, in bytes.
    pub fn left_bytes(&self) -> u64 {
        self.left_bytes.load(Ordering::Relaxed)
    }

    /// Takes `bytes` bytes; None when there is not so much left.
    pub fn take(self: &Arc<Self>, bytes: u64) -> Option<Part> {
        let take = |left: u64| left.checked_sub(bytes);
        let taken = self
            .left_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.is_ok().then(|| Part {
            room: Arc::clone(self),
            bytes,
        })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let left = &self.room.left_bytes;
        left.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let room = Arc::new(Room::new(10));
        let part = room.take(7).unwrap();
        assert!(room.take(4).is_none());
        assert_eq!(room.left_bytes(), 3);
        drop(part);
        assert!(room.take(10).is_some());
        assert_eq!((room.left_bytes(), room.limit_bytes()), (10, 10));
    }
}
