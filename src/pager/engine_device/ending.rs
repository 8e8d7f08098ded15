//! How an engine ends: when one of its streams does, so do the others, and nobody is told
//! before nothing touches memory any more.

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::super::engine_host::progress::Progress;
use super::lane::Lane;
use super::requests::Requests;

/// A stream's part in the end of all: has the others end when it is dropped, unless that
/// is due, and tells those that wait for requests when it is the last one.
#[derive(Debug)]
pub struct Ending {
    pub progress: Arc<Progress>,
    pub requests: Arc<Requests>,
    is_due: bool,
    all: Arc<All>,
}

/// What all streams share.
#[derive(Debug)]
struct All {
    progress: Arc<Progress>,
    requests: Arc<Requests>,
    lanes: Vec<Arc<Lane>>,
    // Wakes the reader.
    ended: Sender<()>,
}

impl Ending {
    /// One for each of these streams.
    pub fn of(
        lanes: &[Arc<Lane>],
        progress: &Arc<Progress>,
        requests: &Arc<Requests>,
        ended: Sender<()>,
    ) -> Vec<Self> {
        let all = Arc::new(All {
            progress: Arc::clone(progress),
            requests: Arc::clone(requests),
            lanes: lanes.to_vec(),
            ended,
        });
        let ending = |_: &Arc<Lane>| Self {
            progress: Arc::clone(progress),
            requests: Arc::clone(requests),
            is_due: false,
            all: Arc::clone(&all),
        };
        lanes.iter().map(ending).collect()
    }

    /// The stream has done all that was asked of it.
    pub fn is_due(&mut self) {
        self.is_due = true;
    }

    /// Why the stream ends, and with it the others.
    pub fn say(&mut self, why: &str) {
        self.requests.end(why);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.is_due {
            return;
        }
        self.requests.end("the copy thread died");
        self.all.lanes.iter().for_each(|lane| lane.end());
        // Where that is known to the reader already, nothing is to be done.
        let _ = self.all.ended.try_send(());
    }
}

impl Drop for All {
    fn drop(&mut self) {
        let why = self.requests.why_ended();
        let why = why.as_deref().unwrap_or("the copy thread has ended");
        self.progress.end(why);
        self.requests.end(why);
        self.lanes.iter().for_each(|lane| lane.end());
    }
}
