//! One run: load the model, complete the prompt, close with the timings.

mod boundary;
mod closing;
mod completion;
pub mod demo;
mod generator;
mod loading;
mod output;
pub mod signal;
#[cfg(test)]
mod tests;

use boundary::{Boundary, Paging};

use crate::cli::Config;
use crate::device::PagedDevice;
use crate::error::{Error, Result};
use crate::llama::log;
use crate::telemetry::pressure::Sampler;

/// Does the run that `config` describes.
///
/// # Errors
/// Whatever ended it before its time.
pub fn run(config: Config) -> Result<()> {
    if config.paging.is_some() {
        signal::install_reload();
    }
    let result = complete(config);
    // What is still queued comes before whatever the caller prints about the end.
    log::stop();
    match result? {
        Some(lines) => closing::print(&lines),
        None => Ok(()),
    }
}

/// Returns the closing lines of the show, if this is it.
fn complete(mut config: Config) -> Result<Option<closing::Lines>> {
    let show = config.show;
    let metrics = config.metrics;
    let paging = config.paging.as_ref().map(|_| Paging {
        budget_file: config.budget_file.take(),
        mem_pressure: config.mem_pressure,
        source: Box::new(Sampler::new()),
        governor: None,
    });
    let mut boundary = Boundary::new(paging, config.metrics);
    // The demo model's file must be there until the model is loaded, and its mapping
    // until the session is gone.
    let (mut session, job, _demo) = loading::load(config)?;
    signal::generation_begins();
    let started = std::time::Instant::now();
    boundary.begin(session.device(), job.prompt_tokens());
    let ended = completion::complete(&mut session, &job, &mut boundary);
    boundary.finish(session.device());
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
    let report = session.device().map(PagedDevice::report);
    let quiet = show || metrics.is_on_stderr();
    if let (Some(beginning), Some(report), false) = (&boundary.beginning, &report, quiet)
        && let Some(sentence) = closing::bound(beginning, report, generated.saturating_sub(1))
    {
        log::info(format!("{sentence}\n"));
    }
    Ok(report.filter(|_| show).map(|report| closing::Lines {
        report,
        tokens: generated,
        seconds: started.elapsed().as_secs_f64(),
    }))
}
