//! From what was asked for to what will be done: refuses what is not built, gives
//! upstream's flags their meaning under paging, looks at the model once.

use std::ffi::{CStr, CString};
use std::io::IsTerminal;
#[cfg(not(unix))]
use std::path::Path;
use std::path::PathBuf;

use super::support::{Support, WhenPaged, support, when_paged};
use super::{Config, Request};
use crate::device::{Budget, Faults, PagingConfig, Storage};
use crate::error::{Error, Result};
use crate::llama::{self, ModelFile, Params, Settings};
use crate::session::demo::{self, DemoModel};

const PREFETCH_THREADS: u16 = 2;
/// ggml's own limit, beyond which it crashes.
const THREADS_MAX: i32 = 512;
const CONVERSATION_ON: i32 = 1;
const CONVERSATION_AUTO: i32 = 2;

impl Request {
    /// Answers all questions: refuses, parses upstream's flags, looks at the model.
    ///
    /// # Errors
    /// `Usage` and `NotBuilt` for the command line, `Failed` for the model's file.
    pub fn resolve(mut self) -> Result<Config> {
        let show = self.own.demo && !self.has_prompt();
        if show && !self.own.dynamic_layers && !self.own.paged_kv {
            self.own.dynamic_layers = true;
            self.own.paged_kv = true;
        }
        let paged = self.own.dynamic_layers || self.own.paged_kv;
        self.check_own(paged)?;
        self.check_refused()?;
        if paged {
            self.check_paged()?;
        }
        let demo = if self.own.demo {
            Some(DemoModel::new()?)
        } else {
            None
        };
        let mut arguments = self.arguments(demo.as_ref(), show);
        let given = match self.words.gpu_layers.take() {
            // llama.cpp's parser would look for a GPU, and warn that there is none.
            Some([name, value]) if paged => Some(resident_layers(&name, &value)?),
            Some(words) => {
                arguments.extend(words);
                None
            }
            None => None,
        };
        let mut params = Params::parse(arguments)?;
        let mut settings = params.settings()?;
        check_numbers(&settings)?;
        self.check_settings(&settings, paged)?;
        if settings.n_ctx != 0 && settings.n_ctx < 8 {
            llama::log::warn("llama_completion: the smallest context is 8 tokens, using that\n");
            params.set_n_ctx(8);
            settings.n_ctx = 8;
        }

        let path = path_of(params.model_path()?);
        let file = llama::inspect(&path)?;
        check_template(&params, &settings, &file)?;
        let model_name = if demo.is_some() {
            "the demo model".into()
        } else {
            path.display().to_string()
        };
        let progress = !show && std::io::stderr().is_terminal();
        let paging = paged.then(|| PagingConfig {
            resident_layers_max: given.unwrap_or_else(|| {
                // From the environment; negative: 'auto' and 'all'.
                u32::try_from(settings.n_gpu_layers).ok()
            }),
            ..self.paging(path, show)
        });
        Ok(Config {
            params,
            settings,
            paging,
            model_name,
            progress,
            show,
            demo,
        })
    }

    /// Whether the option that goes by `name` is on the command line.
    fn is_used(&self, name: &str) -> bool {
        self.words
            .used
            .iter()
            .any(|(index, _)| self.options[*index].name() == name)
    }

    /// Whether it is on the command line or in the environment.
    fn is_given(&self, name: &str) -> bool {
        let option = self.options.iter().find(|option| option.name() == name);
        let env = option.and_then(|option| option.env.as_deref());
        self.is_used(name) || env.is_some_and(|env| std::env::var_os(env).is_some())
    }

    fn has_prompt(&self) -> bool {
        ["--prompt", "--file", "--binary-file"]
            .iter()
            .any(|name| self.is_used(name))
    }

    fn check_own(&self, paged: bool) -> Result<()> {
        if paged {
            return Ok(());
        }
        match self.own.needs_paging() {
            Some(flag) => Err(Error::Usage(format!(
                "'{flag}' needs paging; add --dynamic-layers (weights), --paged-kv (KV cache) \
                 or both"
            ))),
            None => Ok(()),
        }
    }

    /// Refuses what is not built.
    fn check_refused(&self) -> Result<()> {
        let conversation = self.words.used.iter().rev().find_map(|(index, word)| {
            let option = &self.options[*index];
            (option.name() == "--conversation").then(|| !option.args_neg.contains(word))
        });
        for (index, word) in &self.words.used {
            match support(self.options[*index].name()) {
                Some(Support::Refused(what)) => {
                    return Err(Error::NotBuilt(format!(
                        "'{word}' is not built yet: {what}"
                    )));
                }
                Some(Support::Chat) if conversation != Some(false) => {
                    return Err(Error::NotBuilt(format!(
                        "'{word}' belongs to chat mode, which is not built yet; with -no-cnv it \
                         has no effect, and the prompt is completed as it is"
                    )));
                }
                Some(_) => {}
                None => {
                    return Err(Error::NotBuilt(format!(
                        "'{word}' is not known to work yet"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Refuses what cannot be had together with paging.
    fn check_paged(&self) -> Result<()> {
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

    /// Checks that need the parsed values.
    fn check_settings(&self, settings: &Settings, paged: bool) -> Result<()> {
        if settings.conversation_mode == CONVERSATION_ON {
            return Err(Error::NotBuilt(
                "chat mode is not built yet; use -no-cnv to complete the prompt as it is".into(),
            ));
        }
        // Reached only through a configuration file or the environment.
        let hidden = [
            (settings.interactive, "interactive mode"),
            (settings.grp_attn_n != 1, "self-extended context"),
            (settings.has_draft_model, "speculative decoding"),
            (settings.embedding, "embedding"),
        ];
        if let Some((_, what)) = hidden.iter().find(|(set, _)| *set) {
            return Err(Error::NotBuilt(format!("{what} is not built yet")));
        }
        if !paged {
            return Ok(());
        }
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
        let load_modes = [
            ggml_sys::LLAMA_LOAD_MODE_AUTO,
            ggml_sys::LLAMA_LOAD_MODE_NONE,
            ggml_sys::LLAMA_LOAD_MODE_MMAP,
        ];
        if !load_modes.contains(&settings.load_mode) {
            return Err(Error::NotBuilt(
                "this '--load-mode' together with paging is not built yet; use auto, none or mmap"
                    .into(),
            ));
        }
        let rows = [
            ggml_sys::LLAMA_SPLIT_MODE_NONE,
            ggml_sys::LLAMA_SPLIT_MODE_LAYER,
        ];
        if !rows
            .iter()
            .any(|mode| i64::from(*mode) == i64::from(settings.split_mode))
        {
            return Err(Error::Usage(
                "this '--split-mode' cannot be combined with paging: there is one device".into(),
            ));
        }
        Ok(())
    }

    /// The words for llama.cpp's parser.
    fn arguments(&self, demo: Option<&DemoModel>, show: bool) -> Vec<CString> {
        let mut all = vec![c"rpaged-cli".to_owned()];
        if let Some(demo) = demo {
            all.extend([c"-m".to_owned(), demo.path().to_owned()]);
        }
        if show {
            for (name, words) in demo::SHOW {
                if !self.is_given(name) {
                    all.extend(words.iter().map(|word| (*word).to_owned()));
                }
            }
            if !["--verbose", "--verbosity", "--log-file"]
                .iter()
                .any(|name| self.is_given(name))
            {
                all.extend([c"-lv".to_owned(), c"1".to_owned()]);
            }
        }
        all.extend(self.words.upstream.iter().cloned());
        all
    }

    fn paging(&self, model: PathBuf, show: bool) -> PagingConfig {
        let default = if show {
            Budget::ModelShare(0.5)
        } else {
            Budget::Auto
        };
        PagingConfig {
            model,
            weights: self.own.dynamic_layers,
            kv: self.own.paged_kv,
            budget: self.own.vram_budget.unwrap_or(default),
            prefetch: self.own.prefetch(),
            prefetch_threads: usize::from(self.own.prefetch_threads.unwrap_or(PREFETCH_THREADS)),
            prefetch_depth: None,
            pinned_layers: Vec::new(),
            kv_page_tokens: 256,
            spill_folder: None,
            storage: Storage::Auto,
            resident_layers_max: None,
            poison: false,
            faults: Faults::default(),
        }
    }
}

/// The bound on resident layers that `--gpu-layers` gives; None for 'auto' and 'all'.
fn resident_layers(name: &CStr, value: &CStr) -> Result<Option<u32>> {
    let text = value.to_string_lossy();
    match (&*text, text.parse::<i64>()) {
        ("auto" | "all", _) => Ok(None),
        (_, Ok(count)) => Ok(u32::try_from(count).ok()),
        (_, Err(_)) => Err(Error::Usage(format!(
            "option '{}' got '{text}'; give a number of layers, 'auto' or 'all'",
            name.to_string_lossy()
        ))),
    }
}

/// Refuses numbers at which llama.cpp would abort.
fn check_numbers(settings: &Settings) -> Result<()> {
    let positive = [
        ("-b", settings.n_batch),
        ("-ub", settings.n_ubatch),
        ("-np", settings.n_parallel),
        ("-t", settings.n_threads),
    ];
    if let Some((flag, value)) = positive.iter().find(|(_, value)| *value < 1) {
        return Err(Error::Usage(format!(
            "'{flag}' must be at least 1, got '{value}'"
        )));
    }
    let threads = [
        ("-t", settings.n_threads),
        ("-tb", settings.n_threads_batch),
    ];
    if let Some((flag, value)) = threads.iter().find(|(_, value)| *value > THREADS_MAX) {
        return Err(Error::Usage(format!(
            "'{flag}' must be at most {THREADS_MAX}, got '{value}'"
        )));
    }
    if !(0..=2).contains(&settings.mirostat) {
        return Err(Error::Usage(format!(
            "'--mirostat' must be 0, 1 or 2, got '{}'",
            settings.mirostat
        )));
    }
    if settings.n_ctx < 0 {
        return Err(Error::Usage(format!(
            "'-c' must not be negative, got '{}'",
            settings.n_ctx
        )));
    }
    if settings.n_predict < -2 {
        return Err(Error::Usage(format!(
            "'-n' must be -2, -1, or a number of tokens, got '{}'",
            settings.n_predict
        )));
    }
    Ok(())
}

/// Without `-cnv` or `-no-cnv`, llama-completion chats with a model that has a template.
fn check_template(params: &Params, settings: &Settings, file: &ModelFile) -> Result<()> {
    let template = file.has_template || !params.chat_template()?.is_empty();
    if template && settings.conversation_mode == CONVERSATION_AUTO {
        return Err(Error::NotBuilt(
            "this model has a chat template, and chat mode is not built yet; use -no-cnv to \
             complete the prompt as it is"
                .into(),
        ));
    }
    Ok(())
}

#[cfg(unix)]
fn path_of(bytes: Vec<u8>) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(not(unix))]
fn path_of(bytes: Vec<u8>) -> PathBuf {
    Path::new(&*String::from_utf8_lossy(&bytes)).to_path_buf()
}
