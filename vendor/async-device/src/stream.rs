//! A stream: a thread that does what is queued, in order.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use crate::event::{Recording, Waiter};
use crate::executor::{Executor, Work};
use crate::guard::guard;
use crate::shared::{Shared, count};

enum Step {
    Do(Work),
    Complete(Arc<Recording>),
    Await(Arc<Recording>, Waiter),
}

/// The queue, and the thread at its end.
#[derive(Debug)]
pub struct Stream {
    // None once the stream ends. Before the thread: it ends when nobody can queue more.
    queue: Option<Sender<Step>>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    /// Starts the thread. `shared` outlives the stream.
    ///
    /// # Errors
    /// A sentence, when the system gives no thread.
    pub fn new(shared: Arc<Shared>, executor: Executor) -> Result<Self, String> {
        let (queue, steps) = channel();
        let thread = Builder::new()
            .name("stream".to_owned())
            .spawn(move || work(&steps, executor, &shared))
            .map_err(|error| format!("could not start a stream's thread ({error})"))?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
        })
    }

    fn push(&self, step: Step) {
        let queue = self.queue.as_ref().expect("the stream has not ended");
        // The thread ends only after the queue: it is there.
        queue
            .send(step)
            .expect("a stream lives as long as its queue");
    }

    /// Queues `work`.
    pub fn queue(&self, work: Work) {
        self.push(Step::Do(work));
    }

    /// Has `recording` come when everything that was queued so far is done.
    pub fn record(&self, recording: Arc<Recording>) {
        self.push(Step::Complete(recording));
    }

    /// Has whatever is queued from now on wait for `recording`.
    pub fn wait(&self, recording: Arc<Recording>, waiter: Waiter) {
        recording.join(waiter);
        self.push(Step::Await(recording, waiter));
    }

    /// Has whatever is queued from now on come after what `other` has queued.
    pub fn follow(&self, other: &Self) {
        let recording = Arc::new(Recording::default());
        other.record(Arc::clone(&recording));
        self.wait(recording, Waiter::Own);
    }

    /// Waits until everything that was queued is done.
    pub fn synchronize(&self) {
        let recording = Arc::new(Recording::default());
        self.record(Arc::clone(&recording));
        recording.wait();
    }
}

impl Drop for Stream {
    /// Does what is queued first.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // Panics do not leave the guard.
            let _ = thread.join();
        }
    }
}

fn work(steps: &Receiver<Step>, mut executor: Executor, shared: &Shared) {
    for step in steps {
        match step {
            Step::Complete(recording) => recording.complete(),
            Step::Await(recording, waiter) => {
                if recording.wait() {
                    count(&shared.tally.waits);
                }
                recording.leave(waiter);
            }
            Step::Do(work) => {
                executor.dawdle();
                guard(shared, (), || executor.run(work, shared));
            }
        }
    }
}
