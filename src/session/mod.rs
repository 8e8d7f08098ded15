//! One run: load the model, complete the prompt or chat, close with the timings.

pub(crate) mod boundary;
mod closing;
pub mod cold;
mod completion;
mod conversation;
pub mod demo;
mod dialogue;
pub mod generator;
mod job;
mod loading;
mod output;
pub mod progress;
mod prompt_cache;
pub(crate) mod replace;
mod room;
pub mod signal;
mod stops;
#[cfg(test)]
mod tests;

use std::path::Path;

use boundary::{Boundary, Paging};

use crate::calibration;
use crate::chat;
use crate::cli::{Config, Mode};
use crate::device::PagedDevice;
use crate::error::{Error, Result};
use crate::llama::log;
use crate::telemetry::fuller::Fuller;
use crate::telemetry::pressure::{DeviceSampler, Sampler};

/// Does the run that `config` describes.
///
/// # Errors
/// Whatever ended it before its time.
pub fn run(config: Config) -> Result<()> {
    if config.paging.is_some() {
        signal::install_reload();
    }
    let result = match config.mode.clone() {
        Mode::Complete => complete(config),
        Mode::Chat { colours, history } => {
            converse(config, colours, history.as_deref()).map(|()| None)
        }
    };
    // What is still queued comes before whatever the caller prints about the end.
    log::stop();
    match result? {
        Some(lines) => closing::print(&lines),
        None => Ok(()),
    }
}

/// What is done between the tokens of this run.
fn boundary(config: &mut Config) -> Boundary {
    let budget_file = config.budget_file.take();
    // In a chat the user may set it (/vram).
    let may_change = budget_file.is_some() || matches!(config.mode, Mode::Chat { .. });
    let paging = config.paging.as_ref().map(|paging| Paging {
        budget_file,
        mem_pressure: config.mem_pressure,
        source: match paging.device_with_memory() {
            Some(device) if device.shares_memory() => {
                Box::new(Fuller::new(DeviceSampler::new(device), Sampler::new()))
            }
            Some(device) => Box::new(DeviceSampler::new(device)),
            None => Box::new(Sampler::new()),
        },
        governor: None,
    });
    let mut boundary = Boundary::new(paging, config.metrics);
    // Before the model takes the memory that is measured with.
    boundary.choose_shares(config.paging.as_ref().and_then(|paging| {
        let run = calibration::Run::new(paging, &config.settings);
        let ahead = (!may_change).then_some(cold::Ahead {
            budget: paging.budget,
            context_tokens: u64::try_from(config.settings.n_ctx).unwrap_or(0),
        });
        cold::Shares::of_run(paging, &run, ahead, config.progress)
    }));
    boundary
}

/// Chats at the terminal.
fn converse(mut config: Config, colours: bool, history: Option<&Path>) -> Result<()> {
    let mut boundary = boundary(&mut config);
    let (mut session, settings, _demo) = loading::open(config)?;
    signal::generation_begins();
    boundary.watch(session.drafting());
    let ended = chat::talk(&mut session, &settings, &mut boundary, (colours, history));
    boundary.finish(session.device());
    if let Err(error) = ended {
        if error.is_wanted() {
            output::end_line();
        }
        return Err(error);
    }
    session.log_timings();
    Ok(())
}

/// Returns the closing lines of the show, if this is it.
fn complete(mut config: Config) -> Result<Option<closing::Lines>> {
    let (show, metrics) = (config.show, config.metrics);
    let mem_pressure = config.mem_pressure;
    let lesson = closing::Lesson::new(&config);
    let mut boundary = boundary(&mut config);
    // The demo model's file must be there until the model is loaded, and its mapping
    // until the session is gone.
    let (mut session, job, _demo) = loading::load(config)?;
    signal::generation_begins();
    let started = std::time::Instant::now();
    boundary.watch(session.drafting());
    boundary.begin(session.device(), job.prompt_tokens());
    let ended = completion::complete(&mut session, job, &mut boundary);
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
    let tokens = generated.saturating_sub(1);
    if let (Some(lesson), Some(beginning), Some(device)) =
        (lesson, &boundary.beginning, session.device())
    {
        lesson.teach(beginning, device, tokens);
    }
    let quiet = show || metrics.is_on_stderr();
    if let (Some(beginning), Some(device), false) = (&boundary.beginning, session.device(), quiet)
        && let Some(sentence) = closing::bound(beginning, device, tokens, mem_pressure)
    {
        log::info(format!("{sentence}\n"));
    }
    Ok(report.filter(|_| show).map(|report| closing::Lines {
        report,
        tokens: generated,
        seconds: started.elapsed().as_secs_f64(),
    }))
}
