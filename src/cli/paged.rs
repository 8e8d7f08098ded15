//! What upstream's options may say when memory is paged.

use super::size::read_budget;
use super::support::{WhenPaged, when_paged};
use super::{Request, rpc};
use crate::device::{self, Budget};
use crate::error::{Error, Result};
use crate::ggml::InnerDevice;
use crate::llama::{Params, Settings};
use crate::telemetry::{memory, pressure};

impl Request {
    /// Refuses what cannot be had together with paging.
    pub(super) fn check_paged(&self) -> Result<()> {
        for option in &self.options {
            let name = option.name();
            let how = |word: &str| match when_paged(name) {
                Some(WhenPaged::Contradicts(why)) => Err(Error::Usage(format!(
                    "'{word}' cannot be combined with paging: {why}"
                ))),
                Some(WhenPaged::NotBuilt(what)) => Err(Error::NotBuilt(format!(
                    "'{word}' together with paging is not built yet: {what}"
                ))),
                _ => Ok(()),
            };
            if self.is_used(name) {
                how(name)?;
            } else if let Some(env) = option.env.as_deref()
                && std::env::var_os(env).is_some()
            {
                how(env)?;
            }
        }
        Ok(())
    }

    /// Checks of the parsed values, when memory is paged.
    pub(super) fn check_paged_settings(&self, settings: &Settings) -> Result<()> {
        if settings.fit && self.is_given("--fit") {
            return Err(Error::Usage(
                "'--fit on' cannot be combined with paging: the budget says what stays in \
                 memory; set --vram-budget"
                    .into(),
            ));
        }
        if self.own.paged_kv && !settings.kv_offload {
            return Err(Error::Usage(
                "'--no-kv-offload' contradicts --paged-kv: it keeps the KV cache off the device"
                    .into(),
            ));
        }
        let layers_may_split = self.has_other_devices(settings);
        let mode = i64::from(settings.split_mode);
        let none = i64::from(ggml_sys::LLAMA_SPLIT_MODE_NONE);
        if mode == none && layers_may_split {
            return Err(Error::Usage(
                "'--split-mode none' leaves a model one device, and --rpc brings others beside \
                 the paged one; leave one of them out"
                    .into(),
            ));
        }
        if mode != none && mode != i64::from(ggml_sys::LLAMA_SPLIT_MODE_LAYER) {
            return Err(Error::Usage(
                "this '--split-mode' cannot be combined with paging: whole layers are paged; use \
                 layer"
                    .into(),
            ));
        }
        if self.is_given("--tensor-split") && !layers_may_split {
            return Err(Error::Usage(
                "'--tensor-split' has nothing to split: under paging there is one device unless \
                 --rpc brings others"
                    .into(),
            ));
        }
        if settings.tensor_overrides > 0 && layers_may_split {
            return Err(Error::NotBuilt(
                "placing tensors by hand is not built yet where layers are paged and others lie \
                 on RPC servers; use --tensor-split without --override-tensor"
                    .into(),
            ));
        }
        Ok(())
    }

    /// The budget: from its file, else from its flag, else a default; of the memory of
    /// `device`, if there is one.
    pub(super) fn budget(&self, show: bool, device: Option<InnerDevice>) -> Result<Budget> {
        let default = match (show, self.own.paged_kv) {
            (true, true) => Budget::ModelShare(0.5),
            // What is not paged has to fit as a whole.
            (true, false) => Budget::ModelShare(0.75),
            (false, _) => Budget::Auto,
        };
        let budget = match &self.own.vram_budget_file {
            Some(path) => read_budget(path)?,
            None => self.own.vram_budget.unwrap_or(default),
        };
        Ok(match budget {
            Budget::Auto => Budget::Bytes(self.automatic_budget(device)),
            given => given,
        })
    }

    fn automatic_budget(&self, inner: Option<InnerDevice>) -> u64 {
        let threshold = self.mem_pressure(inner.is_some());
        match inner {
            Some(device) => device::automatic_budget(device, threshold),
            None => {
                let memory = memory::Reader::new().read();
                pressure::automatic_budget(&memory, threshold, 0)
            }
        }
    }

    /// The share of memory, a device's own or the machine's, above which the budget shrinks.
    pub(super) fn mem_pressure(&self, of_device: bool) -> f64 {
        self.own.mem_pressure.unwrap_or(match of_device {
            true => pressure::DEVICE_THRESHOLD,
            false => pressure::THRESHOLD,
        })
    }

    /// The GPU that computes what is paged; None: the processor. As in llama.cpp, no layer on
    /// a GPU (`layers`) leaves all to the processor.
    pub(super) fn inner_device(
        &self,
        params: &Params,
        settings: &Settings,
        layers: Option<u32>,
    ) -> Result<Option<InnerDevice>> {
        let inner = params.inner_device(layers != Some(0))?;
        match inner.filter(|_| self.has_other_devices(settings)) {
            None => Ok(inner),
            Some(device) => Err(Error::NotBuilt(format!(
                "layers on RPC servers beside those that {} computes under paging are not built \
                 yet; leave out --rpc",
                device.name()
            ))),
        }
    }

    /// Whether the model gets devices beside the paged one.
    fn has_other_devices(&self, settings: &Settings) -> bool {
        // `--device none` is a list with nothing but its end.
        settings.devices != 1 && !rpc::servers(&self.words, &self.options).is_empty()
    }
}
