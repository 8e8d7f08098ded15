//! What a run takes and does: memory of machine, control group and process; the governor
//! that gives memory back when it gets scarce; metrics.

#[cfg(unix)]
pub mod capture;
#[cfg(target_os = "linux")]
mod cgroup;
pub mod drafts;
pub mod fuller;
pub mod memory;
pub mod metrics;
pub mod prediction;
pub mod pressure;

use crate::error::Error;

/// The end of the run: what standard error still holds becomes records, then what ended
/// it, then the summary. Without metrics it does nothing. Returns a last complaint.
pub fn finish(error: Option<&Error>) -> Option<String> {
    #[cfg(unix)]
    capture::finish();
    let metrics = &*metrics::RUN;
    if !metrics.is_on() {
        return None;
    }
    // What was asked for from outside is no error; a panic has been told of by its hook.
    let is_news = |error: &&Error| !error.is_wanted() && !error.to_string().is_empty();
    if let Some(error) = error.filter(is_news) {
        metrics.error(&error.to_string(), error.exit_code());
    }
    metrics.end(error);
    metrics.take_complaint()
}
