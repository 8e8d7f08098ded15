//! From what was asked for to what will be done: refuses what is not built, gives
//! upstream's flags their meaning under paging, looks at the model once.

use std::ffi::CString;
use std::io::IsTerminal;
#[cfg(not(unix))]
use std::path::Path;
use std::path::PathBuf;

use super::drafting;
use super::rpc;
use super::support::{Support, support};
use super::{Config, Mode, Request, values};
use crate::device::{Budget, Faults, LAZY_BYTES_MIN, PagingConfig, Storage};
use crate::error::{Error, Result};
use crate::forecast;
use crate::llama::{self, ModelFile, Params, Settings};
use crate::session::demo::{self, DemoModel};
use crate::session::progress;
use crate::telemetry::metrics::Metrics;

pub(super) const PREFETCH_THREADS: u16 = 2;
pub(super) const KV_PAGE_TOKENS: u32 = 256;
/// Under paging this one is ours.
const GPU_LAYERS: &str = "--gpu-layers";
/// The options that say where the model is.
const MODELS: &[&str] = &[
    "--model",
    "--model-url",
    "--docker-repo",
    "--hf-repo",
    "--hf-file",
];
/// The options that only the plain conversation has, which reads lines.
const PLAIN: &[&str] = &[
    "--simple-io",
    "--in-prefix",
    "--in-suffix",
    "--in-prefix-bos",
    "--interactive",
    "--interactive-first",
    "--keep",
    "--prompt-cache",
    "--prompt-cache-all",
    "--prompt-cache-ro",
    "--grp-attn-n",
    "--grp-attn-w",
];
/// ggml's own limit, beyond which it crashes.
pub(super) const THREADS_MAX: i32 = 512;
/// llama.cpp's own limit of `-np`, which it looks at when it has made as many samplers.
const SEQUENCES_MAX: i32 = 256;
/// How much llama.cpp logs unless it is told otherwise.
const VERBOSITY: i32 = 3;
const CONVERSATION_ON: i32 = 1;
const CONVERSATION_AUTO: i32 = 2;

impl Request {
    /// Answers all questions: refuses, parses upstream's flags, looks at the model.
    ///
    /// # Errors
    /// `Usage` and `NotBuilt` for the command line, `Failed` for the model's file.
    pub fn resolve(mut self, metrics: &'static Metrics) -> Result<Config> {
        let show = self.own.demo && !self.has_prompt() && !self.wants_chat();
        if show && !self.own.dynamic_layers && !self.own.paged_kv {
            self.own.dynamic_layers = true;
            self.own.paged_kv = true;
        }
        let paged = self.own.dynamic_layers || self.own.paged_kv;
        let may_chat = !show && self.may_chat();
        self.check(paged)?;
        let demo = if self.own.demo {
            Some(DemoModel::new()?)
        } else {
            None
        };
        let mut arguments = self.arguments(demo.as_ref(), show, may_chat);
        let given = if paged {
            self.resident_layers()?
        } else {
            arguments.extend(self.words.gpu_layers.take().into_iter().flatten());
            None
        };
        let mut params = self.parse(arguments, paged)?;
        let mut settings = params.settings()?;
        check_numbers(&settings)?;
        self.check_settings(&settings, paged)?;
        raise_context(&mut params, &mut settings);
        let path = path_of(params.model_path()?);
        let file = llama::inspect(&path)?;
        let mode = self.mode(may_chat, &mut params, &mut settings, &file)?;
        let of_drafting = |(index, _): &&(usize, String)| self.options[*index].is_about_drafting();
        let used = self.words.used.iter().filter(of_drafting);
        drafting::check_words(&params, used.map(|(_, word)| word.as_str()))?;
        drafting::check(&params, &settings, &path)?;
        self.check_pins(&file)?;
        self.check_spill_folder()?;
        let model_name = if demo.is_some() {
            "the demo model".into()
        } else {
            path.display().to_string()
        };
        let paging = if paged {
            // From a configuration file; negative: 'auto' and 'all'.
            let layers = given.unwrap_or(u32::try_from(settings.n_gpu_layers).ok());
            let inner = self.inner_device(&params, &settings, layers)?;
            let budget = self.budget(show, inner.filter(|inner| !inner.is_host()))?;
            Some(PagingConfig {
                budget,
                inner,
                storage: storage(settings.load_mode),
                lock: self.own.dynamic_layers && is_locked(settings.load_mode),
                lazy_bytes_min: lazy_bytes_min(settings.lazy_mode),
                resident_layers_max: layers,
                ..self.paging(path)
            })
        } else {
            None
        };
        self.raise_ubatch(paging.as_ref(), &mut params, &mut settings, &model_name)?;
        let device = paging.as_ref().and_then(PagingConfig::device_with_memory);
        Ok(Config {
            params,
            settings,
            mode,
            paging,
            model_name,
            progress: !show && progress::can_be_shown(),
            show,
            demo,
            mem_pressure: self.mem_pressure(device.is_some()),
            budget_file: self.own.vram_budget_file,
            metrics,
        })
    }

    /// Has more of a prompt computed at once, where that saves bytes over a link.
    fn raise_ubatch(
        &self,
        paging: Option<&PagingConfig>,
        params: &mut Params,
        settings: &mut Settings,
        name: &str,
    ) -> Result<()> {
        let Some(paging) = paging else { return Ok(()) };
        let given = forecast::ubatch::Given {
            batch: self.is_given("--batch-size"),
            ubatch: self.is_given("--ubatch-size"),
        };
        let given = given.or_by(settings);
        forecast::ubatch::raise(params, settings, paging, given, name).map(drop)
    }

    /// Refuses what the words alone show to be wrong.
    fn check(&self, paged: bool) -> Result<()> {
        self.own.check_needs()?;
        self.check_one_model()?;
        self.check_refused()?;
        rpc::check(&rpc::servers(&self.words, &self.options))?;
        if paged {
            self.check_paged()?;
        }
        Ok(())
    }

    /// Has llama.cpp read its flags, and fetch a model that is elsewhere.
    fn parse(&self, arguments: Vec<CString>, paged: bool) -> Result<Params> {
        if self.is_used("--log-disable") {
            llama::log::note_disabled();
        }
        // llama.cpp goes on without a log that it cannot open.
        if let Some(path) = self.words.values_of("--log-file", &self.options).last() {
            let opened = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path);
            opened.map_err(|error| {
                Error::Failed(format!("could not open '{path}' for --log-file: {error}"))
            })?;
        }
        if progress::can_be_shown() {
            progress::show_downloads();
        }
        let hidden = self.hidden_variables(paged);
        Params::parse(arguments, &hidden).map_err(|error| self.advised(error))
    }

    /// A refusal by llama.cpp's parser, with the nearest of the words that the option takes.
    fn advised(&self, error: Error) -> Error {
        let (Error::Usage(sentence), Some((name, value))) = (&error, llama::blamed()) else {
            return error;
        };
        let option = self.options.iter().find(|option| option.is_spelled(&name));
        let advice = option.map(|option| values::advice(option, &value));
        Error::Usage(format!("{sentence}{}", advice.unwrap_or_default()))
    }

    /// Whether the option that goes by `name` is on the command line.
    pub(super) fn is_used(&self, name: &str) -> bool {
        self.words
            .used
            .iter()
            .any(|(index, _)| self.options[*index].name() == name)
    }

    /// Whether it is on the command line or in the environment.
    pub(super) fn is_given(&self, name: &str) -> bool {
        let option = self.options.iter().find(|option| option.name() == name);
        let env = option.and_then(|option| option.env.as_deref());
        self.is_used(name) || env.is_some_and(|env| std::env::var_os(env).is_some())
    }

    fn has_prompt(&self) -> bool {
        ["--prompt", "--file", "--binary-file"]
            .iter()
            .any(|name| self.is_used(name))
    }

    /// The demo's model and another one contradict each other.
    fn check_one_model(&self) -> Result<()> {
        let other = |(index, _): &&(usize, String)| MODELS.contains(&self.options[*index].name());
        match self.words.used.iter().find(other) {
            Some((_, word)) if self.own.demo => Err(Error::Usage(format!(
                "'{word}' and '--demo' both name a model; give one of them"
            ))),
            _ => Ok(()),
        }
    }

    /// Layers that stay have to be there.
    fn check_pins(&self, file: &ModelFile) -> Result<()> {
        let last = self
            .own
            .pin_layers
            .as_ref()
            .and_then(|layers| layers.0.last());
        match last {
            Some(last) if self.own.dynamic_layers && *last >= file.layers => {
                Err(Error::Usage(format!(
                    "the model has {} layers, counted from 0: there is no layer '{last}' for \
                     --pin-layers",
                    file.layers
                )))
            }
            _ => Ok(()),
        }
    }

    /// Better now than when the first page is to be spilled.
    fn check_spill_folder(&self) -> Result<()> {
        match &self.own.spill_dir {
            Some(folder) if self.own.paged_kv && !folder.is_dir() => Err(Error::Failed(format!(
                "'{}' is no folder; the KV cache cannot spill there, see --spill-dir",
                folder.display()
            ))),
            _ => Ok(()),
        }
    }

    /// What `-cnv` and `-no-cnv` say, if they are given.
    fn conversation(&self) -> Option<bool> {
        self.words.used.iter().rev().find_map(|(index, word)| {
            let option = &self.options[*index];
            (option.name() == "--conversation").then(|| !option.args_neg.contains(word))
        })
    }

    /// Whether the command line speaks of a conversation.
    fn wants_chat(&self) -> bool {
        let speaks = |(index, _): &(usize, String)| {
            let kind = support(self.options[*index].name());
            matches!(kind, Some(Support::Chat | Support::Terminal))
        };
        self.conversation()
            .unwrap_or_else(|| self.words.used.iter().any(speaks))
    }

    /// Whether a conversation would be the chat at the terminal: one on both ends, and
    /// nothing asked for that only the plain conversation has.
    fn may_chat(&self) -> bool {
        self.conversation() != Some(false)
            && std::io::stdin().is_terminal()
            && std::io::stdout().is_terminal()
            && !PLAIN.iter().any(|name| self.is_given(name))
    }

    /// What is done with the prompt. Without `-cnv` or `-no-cnv`, a model that has a
    /// template is chatted with, as by llama-completion.
    fn mode(
        &self,
        may_chat: bool,
        params: &mut Params,
        settings: &mut Settings,
        file: &ModelFile,
    ) -> Result<Mode> {
        let chats = match settings.conversation_mode {
            CONVERSATION_ON => true,
            CONVERSATION_AUTO => file.has_template || !params.chat_template()?.is_empty(),
            _ => false,
        };
        if chats && may_chat {
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let colours = settings.use_color && (!plain || self.is_given("--color"));
            let history = self.own.chat_history.clone();
            return Ok(Mode::Chat { colours, history });
        }
        if may_chat && !self.is_given("--jinja") {
            // It was switched on for a chat, see `arguments`.
            params.set_jinja(false);
            settings.use_jinja = false;
        }
        if may_chat && !self.logs_as_told() {
            // So for the verbosity.
            llama::log::set_verbosity(VERBOSITY);
        }
        self.check_chat_words()?;
        Ok(Mode::Complete)
    }

    /// What is for the chat alone, and this is none.
    fn check_chat_words(&self) -> Result<()> {
        self.own.check_no_chat()?;
        for (index, word) in &self.words.used {
            match support(self.options[*index].name()) {
                Some(Support::Terminal) => {
                    return Err(Error::Usage(format!(
                        "'{word}' is for the chat at a terminal, which this is not"
                    )));
                }
                Some(Support::Chat) if self.conversation() != Some(false) => {
                    llama::log::warn(format!(
                        "'{word}' has no effect but in a chat at a terminal, as in \
                         llama-completion\n"
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Refuses what is not built.
    fn check_refused(&self) -> Result<()> {
        for (index, word) in &self.words.used {
            match support(self.options[*index].name()) {
                Some(Support::Refused(what)) => {
                    return Err(Error::NotBuilt(format!("'{word}' is refused: {what}")));
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

    /// Checks that need the parsed values.
    fn check_settings(&self, settings: &Settings, paged: bool) -> Result<()> {
        // Reached only through a configuration file or the environment.
        let hidden = [(settings.embedding, "embedding")];
        if let Some((_, what)) = hidden.iter().find(|(set, _)| *set) {
            return Err(Error::NotBuilt(format!("{what} is not built yet")));
        }
        if paged {
            self.check_paged_settings(settings)
        } else {
            Ok(())
        }
    }

    /// Whether the chat template is given by a name: Jinja would take the name itself for
    /// the template, but for the one that it knows.
    fn names_template(&self) -> bool {
        const TEMPLATE: &str = "--chat-template";
        let variable = self
            .variable(TEMPLATE)
            .and_then(|name| std::env::var(name).ok());
        let values = self.words.values_of(TEMPLATE, &self.options);
        let last = values.into_iter().last().or(variable);
        last.is_some_and(|value| !value.contains('{') && value != "chatml")
    }

    /// The words for llama.cpp's parser.
    fn arguments(&self, demo: Option<&DemoModel>, show: bool, may_chat: bool) -> Vec<CString> {
        let mut all = vec![c"rpaged-cli".to_owned()];
        if may_chat && !self.is_given("--jinja") && !self.names_template() {
            // As llama-cli has it: a chat wants the template itself, not one that looks
            // alike. Before the rest, because a template is judged by it.
            all.push(c"--jinja".to_owned());
        }
        if may_chat && !self.logs_as_told() {
            // On the terminal the chat is what counts.
            all.extend([c"-lv".to_owned(), c"1".to_owned()]);
        }
        if let Some(demo) = demo {
            all.extend([c"-m".to_owned(), demo.path().to_owned()]);
        }
        if show {
            for (name, words) in demo::SHOW {
                if !self.is_given(name) {
                    all.extend(words.iter().map(|word| (*word).to_owned()));
                }
            }
            if !self.logs_as_told() {
                all.extend([c"-lv".to_owned(), c"1".to_owned()]);
            }
        }
        all.extend(self.words.upstream.iter().cloned());
        all
    }

    /// Whether the user has said how much is to be logged.
    fn logs_as_told(&self) -> bool {
        ["--verbose", "--verbosity", "--log-file"]
            .iter()
            .any(|name| self.is_given(name))
    }

    /// The bound on resident layers that `--gpu-layers` gives, on the command line or in
    /// the environment; None when neither says anything.
    fn resident_layers(&mut self) -> Result<Option<Option<u32>>> {
        if let Some([name, value]) = self.words.gpu_layers.take() {
            let name = format!("option '{}'", name.to_string_lossy());
            return resident_layers(&name, &value.to_string_lossy()).map(Some);
        }
        let given = |variable: &str| {
            let value = std::env::var_os(variable)?;
            let name = format!("environment variable '{variable}'");
            Some(resident_layers(&name, &value.to_string_lossy()))
        };
        self.variable(GPU_LAYERS).and_then(given).transpose()
    }

    /// The environment variable of the option that goes by `name`.
    fn variable(&self, name: &str) -> Option<&str> {
        let option = self.options.iter().find(|option| option.name() == name);
        option.and_then(|option| option.env.as_deref())
    }

    /// The environment variables that llama.cpp's parser is not to see: at the number of
    /// layers it would look for a GPU, and warn that there is none; beside the demo's
    /// model it would download another.
    fn hidden_variables(&self, paged: bool) -> Vec<CString> {
        let layers: &[&str] = if paged { &[GPU_LAYERS] } else { &[] };
        let models = if self.own.demo { MODELS } else { &[] };
        let names = layers.iter().chain(models);
        let variables = names.filter_map(|name| self.variable(name));
        variables
            .filter_map(|name| CString::new(name).ok())
            .collect()
    }

    fn paging(&self, model: PathBuf) -> PagingConfig {
        let own = &self.own;
        PagingConfig {
            model,
            weights: own.dynamic_layers,
            kv: own.paged_kv,
            budget: Budget::Auto,
            prefetch: own.prefetch(),
            prefetch_threads: usize::from(own.prefetch_threads.unwrap_or(PREFETCH_THREADS)),
            prefetch_depth: own.prefetch_depth.unwrap_or(1),
            pinned_layers: own.pin_layers.clone().unwrap_or_default().0,
            kv_page_tokens: own.kv_page_size.unwrap_or(KV_PAGE_TOKENS),
            spill_folder: own.spill_dir.clone(),
            storage: Storage::Auto,
            lock: false,
            cold: own.cold.unwrap_or_default(),
            lazy_bytes_min: None,
            inner: None,
            resident_layers_max: None,
            poison: false,
            faults: Faults::default(),
        }
    }
}

/// How the model's files are read, from llama.cpp's mode of loading.
fn storage(load_mode: i32) -> Storage {
    match load_mode {
        ggml_sys::LLAMA_LOAD_MODE_AUTO | ggml_sys::LLAMA_LOAD_MODE_MLOCK => Storage::Auto,
        ggml_sys::LLAMA_LOAD_MODE_DIRECT_IO => Storage::Direct,
        _ => Storage::Cached,
    }
}

/// Whether weights are locked in memory.
fn is_locked(load_mode: i32) -> bool {
    let modes = [
        ggml_sys::LLAMA_LOAD_MODE_MLOCK,
        ggml_sys::LLAMA_LOAD_MODE_MMAP_MLOCK,
    ];
    modes.contains(&load_mode)
}

/// From how many bytes on llama.cpp reads tensors by row.
fn lazy_bytes_min(lazy_mode: i32) -> Option<u64> {
    match u32::try_from(lazy_mode) {
        Ok(ggml_sys::LLAMA_LAZY_MODE_ON) => Some(0),
        Ok(ggml_sys::LLAMA_LAZY_MODE_AUTO) => Some(LAZY_BYTES_MIN),
        _ => None,
    }
}

/// The bound on resident layers that `text` gives; None for 'auto' and 'all', which
/// negative numbers spell as well. `name` says who gave it.
fn resident_layers(name: &str, text: &str) -> Result<Option<u32>> {
    match (text, text.parse::<i64>()) {
        ("auto" | "all", _) => Ok(None),
        (_, Ok(count)) => Ok(u32::try_from(count).ok()),
        (_, Err(_)) => Err(Error::Usage(format!(
            "{name} got '{text}'; give a number of layers, 'auto' or 'all'"
        ))),
    }
}

/// As llama-completion does.
fn raise_context(params: &mut Params, settings: &mut Settings) {
    if settings.n_ctx != 0 && settings.n_ctx < 8 {
        llama::log::warn("llama_completion: the smallest context is 8 tokens, using that\n");
        params.set_n_ctx(8);
        settings.n_ctx = 8;
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
    if settings.n_parallel > SEQUENCES_MAX {
        return Err(Error::Usage(format!(
            "'-np' must be at most {SEQUENCES_MAX}, got '{}'",
            settings.n_parallel
        )));
    }
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

#[cfg(unix)]
fn path_of(bytes: Vec<u8>) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(not(unix))]
fn path_of(bytes: Vec<u8>) -> PathBuf {
    Path::new(&*String::from_utf8_lossy(&bytes)).to_path_buf()
}
