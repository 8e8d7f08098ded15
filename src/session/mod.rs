//! One run: load the model, complete the prompt, close with the timings.

mod closing;
mod completion;
pub mod demo;
mod loading;
mod output;
pub mod signal;

use crate::cli::Config;
use crate::error::{Error, Result};
use crate::llama::log;

/// Does the run that `config` describes.
///
/// # Errors
/// Whatever ended it before its time.
pub fn run(config: Config) -> Result<()> {
    signal::install();
    let result = complete(config);
    // What is still queued comes before whatever the caller prints about the end.
    log::stop();
    match result? {
        Some(lines) => closing::print(&lines),
        None => Ok(()),
    }
}

/// Returns the closing lines of the show, if this is it.
fn complete(config: Config) -> Result<Option<closing::Lines>> {
    let show = config.show;
    // The demo model's file must be there until the model is loaded, and its mapping
    // until the session is gone.
    let (mut session, job, _demo) = loading::load(config)?;
    signal::generation_begins();
    let started = std::time::Instant::now();
    let ended = completion::complete(&mut session, &job);
    let generated = match ended {
        Ok(generated) => generated,
        Err(Error::Interrupted { signal }) => {
            output::end_line();
            session.log_timings();
            output::text("Interrupted by user\n");
            return Err(Error::Interrupted { signal });
        }
        Err(error) => return Err(error),
    };
    output::text("\n\n");
    session.log_timings();
    output::check()?;
    let report = session.device().map(crate::device::PagedDevice::report);
    Ok(report.filter(|_| show).map(|report| closing::Lines {
        report,
        tokens: generated,
        seconds: started.elapsed().as_secs_f64(),
    }))
}
