//! From a configuration to a session that is ready to generate.

use super::demo::DemoModel;
use super::job::Job;
use super::progress::Loading;
use super::signal;
use crate::cli::Config;
use crate::device::PagedDevice;
use crate::error::Result;
use crate::llama::{self, Session, Settings, log};

/// Loads the model; returns with the session what is to be generated, and the demo model's
/// file, which has to outlive the session.
pub(super) fn load(config: Config) -> Result<(Session, Job, Option<DemoModel>)> {
    let (mut session, settings, demo) = open(config)?;
    let job = Job::new(&mut session, settings)?;
    Ok((session, job, demo))
}

/// Loads the model; the demo model's file has to outlive the session.
pub(super) fn open(mut config: Config) -> Result<(Session, Settings, Option<DemoModel>)> {
    announce(&config);
    llama::start_backend(config.settings.numa);
    let device = config.paging.take().map(PagedDevice::new).transpose()?;
    let bar = config.progress.then(Loading::begin);
    if let Some(bar) = bar.clone() {
        config
            .params
            .on_progress(Box::new(move |share| bar.set(share)));
    }
    let params = config.params;
    let loaded = Session::new(params, device, &config.model_name);
    if let Some(bar) = bar {
        bar.end();
    }
    let mut session = loaded?;
    if let Some(demo) = &config.demo {
        demo.loaded();
    }
    session.set_abort(signal::abort);
    let report = session.device().map(PagedDevice::report);
    if config.settings.warmup && report.is_some_and(|report| report.is_all_resident()) {
        // While weights stream, it would cost a pass over the model and warm nothing.
        session.warm_up()?;
    }
    session.reset_timings();
    Ok((session, config.settings, config.demo))
}

/// Upstream's warnings about the context's shape, and where it stands.
fn announce(config: &Config) {
    let settings = &config.settings;
    if settings.rope_freq_base != 0.0 {
        log::warn(format!(
            "llama_completion: RoPE base set to {}\n",
            settings.rope_freq_base
        ));
    }
    if settings.rope_freq_scale != 0.0 {
        log::warn(format!(
            "llama_completion: RoPE scale set to {}\n",
            settings.rope_freq_scale
        ));
    }
    log::info("llama_completion: llama backend init\n");
    log::info(format!("llama_completion: loading {}\n", config.model_name));
    if let Some(paging) = &config.paging {
        log::info("llama_completion: weights or KV are paged; --fit is off\n");
        if let Some(device) = paging.inner {
            log::info(format!(
                "llama_completion: {} computes ({})\n",
                device.name(),
                device.description()
            ));
        }
    }
}
