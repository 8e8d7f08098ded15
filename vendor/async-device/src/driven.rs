//! A stream of a driver's.

use std::sync::{Arc, Mutex};

use crate::event::lock;
use crate::executor::{Executor, Work};
use crate::guard::guard;
use crate::platform::Platform;
use crate::shared::Shared;

/// A stream of a driver's, which calls us when it gets to our work.
pub struct Driven {
    platform: Arc<dyn Platform>,
    shared: Arc<Shared>,
    executor: Arc<Mutex<Executor>>,
    stream: usize,
}

impl Driven {
    /// Starts the stream.
    ///
    /// # Errors
    /// A sentence, when it does not start.
    pub fn new(
        platform: Arc<dyn Platform>,
        shared: Arc<Shared>,
        executor: Executor,
    ) -> Result<Self, String> {
        let stream = platform.start_stream()?;
        let executor = Arc::new(Mutex::new(executor));
        Ok(Self {
            platform,
            shared,
            executor,
            stream,
        })
    }

    /// Queues `work`.
    pub fn queue(&self, work: Work) {
        let (shared, executor) = (Arc::clone(&self.shared), Arc::clone(&self.executor));
        let call = Box::new(move || {
            guard(&shared, (), || lock(&executor).run(work, &shared));
        });
        self.platform.launch(self.stream, call);
    }

    /// Records a driver's event behind what is queued.
    pub fn record(&self, event: usize) {
        self.platform.record(event, self.stream);
    }

    /// Has what is queued from now on wait for a driver's event.
    pub fn wait(&self, event: usize) {
        self.platform.wait(event, self.stream);
    }

    /// Waits until everything that was queued is done.
    pub fn synchronize(&self) {
        self.platform.synchronize(self.stream);
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        self.synchronize();
        self.platform.end_stream(self.stream);
    }
}
