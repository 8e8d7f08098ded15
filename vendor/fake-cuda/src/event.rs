//! Events: the place in a stream where they were recorded last.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::stream::{Point, Stream, Work};

/// One recording.
#[derive(Clone, Debug)]
struct Recorded {
    point: Point,
    time: Arc<Mutex<Option<Instant>>>,
}

/// An event. Who waits for it waits for its newest recording at that time; one that was
/// never recorded has come.
#[derive(Debug)]
pub struct Event {
    newest: Option<Recorded>,
    /// Whether it keeps the time.
    pub is_timed: bool,
}

impl Event {
    /// Never recorded.
    pub fn new(is_timed: bool) -> Self {
        let newest = None;
        Self { newest, is_timed }
    }

    /// Records it at the end of a stream.
    pub fn record(&mut self, stream: &Arc<Stream>, after: Vec<Point>) {
        let time = Arc::default();
        let point = stream.push(after, Work::Mark(Arc::clone(&time)));
        self.newest = Some(Recorded { point, time });
    }

    /// The newest recording.
    pub fn point(&self) -> Option<Point> {
        self.newest.as_ref().map(|recorded| recorded.point.clone())
    }

    /// When it came.
    pub fn time(&self) -> Option<Instant> {
        let time = &self.newest.as_ref()?.time;
        *time.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
