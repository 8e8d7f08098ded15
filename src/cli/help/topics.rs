//! What the flags are about: the sections of every text about them.

use crate::llama::OptionInfo;

/// What a flag is about.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Topic {
    /// Models larger than memory: ours.
    Paging,
    /// Records of a run: ours.
    Metrics,
    /// Where the model is, how it is loaded, what is added to it.
    Model,
    /// The prompt, the text that is generated, and how both are shown.
    Text,
    /// Talking to a model.
    Chat,
    /// Which token comes next.
    Sampling,
    /// The context: its size, its cache, its positions.
    Context,
    /// The processors that compute.
    Threads,
    /// Other devices than the processor.
    Devices,
    /// Guessing several tokens ahead.
    Drafting,
    /// What is said on standard error.
    Logging,
    /// Pictures and sound.
    Media,
    /// Texts about the program.
    Information,
}

/// Each topic: the word for `--help`, the heading, and a sentence.
const TOPICS: [(Topic, &str, &str, &str); 13] = [
    (
        Topic::Paging,
        "paging",
        "Paging",
        "A model larger than the memory it is given.",
    ),
    (
        Topic::Metrics,
        "metrics",
        "Metrics",
        "What a run did, as JSON Lines.",
    ),
    (
        Topic::Model,
        "model",
        "Model",
        "Where the model is, how it is loaded, what is added to it.",
    ),
    (
        Topic::Text,
        "text",
        "Text",
        "The prompt, how much is generated, how both are shown.",
    ),
    (Topic::Chat, "chat", "Chat", "Talking to a model."),
    (
        Topic::Sampling,
        "sampling",
        "Sampling",
        "Which token comes next.",
    ),
    (
        Topic::Context,
        "context",
        "Context",
        "The context's size, its cache and its positions.",
    ),
    (
        Topic::Threads,
        "threads",
        "Threads",
        "The processors that compute.",
    ),
    (
        Topic::Devices,
        "devices",
        "Devices",
        "What computes on other devices than the processor.",
    ),
    (
        Topic::Drafting,
        "drafting",
        "Drafting",
        "Guessing tokens ahead, and checking several at once.",
    ),
    (
        Topic::Logging,
        "logging",
        "Logging",
        "What is said on standard error.",
    ),
    (Topic::Media, "media", "Media", "Pictures and sound."),
    (
        Topic::Information,
        "information",
        "Information",
        "Flags that print something and end.",
    ),
];

/// llama.cpp's options by topic; those of a section that is a topic need not be listed.
#[rustfmt::skip]
const OPTIONS: &[(Topic, &[&str])] = &[
    (Topic::Model, &[
        "--model", "--model-url", "--docker-repo", "--hf-repo", "--hf-file", "--hf-token",
        "--offline", "--load-mode", "--lazy-mode", "--check-tensors", "--override-kv", "--repack",
        "--lora", "--lora-scaled", "--control-vector", "--control-vector-scaled",
        "--control-vector-layer-range", "--gpt-oss-20b-default", "--gpt-oss-120b-default",
        "--vision-gemma-4b-default", "--vision-gemma-12b-default",
    ]),
    (Topic::Text, &[
        "--prompt", "--file", "--binary-file", "--escape", "--predict", "--keep",
        "--context-shift", "--reverse-prompt", "--special", "--display-prompt",
        "--verbose-prompt", "--color", "--simple-io", "--print-token-count", "--prompt-cache",
        "--prompt-cache-all", "--prompt-cache-ro",
    ]),
    (Topic::Chat, &[
        "--conversation", "--single-turn", "--system-prompt", "--system-prompt-file",
        "--interactive", "--interactive-first", "--multiline-input", "--in-prefix",
        "--in-prefix-bos", "--in-suffix", "--chat-template", "--chat-template-file",
        "--chat-template-kwargs", "--jinja", "--skip-chat-parsing", "--reasoning",
        "--reasoning-format", "--reasoning-effort", "--reasoning-budget",
        "--reasoning-budget-message", "--reasoning-preserve", "--show-timings", "--server-base",
    ]),
    (Topic::Context, &[
        "--ctx-size", "--batch-size", "--ubatch-size", "--flash-attn", "--cache-type-k",
        "--cache-type-v", "--swa-full", "--parallel", "--warmup", "--defrag-thold",
        "--rope-scaling", "--rope-scale", "--rope-freq-base", "--rope-freq-scale",
        "--yarn-orig-ctx", "--yarn-ext-factor", "--yarn-attn-factor", "--yarn-beta-slow",
        "--yarn-beta-fast", "--grp-attn-n", "--grp-attn-w", "--ctx-checkpoints", "--cache-ram",
    ]),
    (Topic::Threads, &[
        "--threads", "--threads-batch", "--cpu-mask", "--cpu-range", "--cpu-strict", "--prio",
        "--poll", "--cpu-mask-batch", "--cpu-range-batch", "--cpu-strict-batch", "--prio-batch",
        "--poll-batch", "--numa",
    ]),
    (Topic::Devices, &[
        "--gpu-layers", "--device", "--split-mode", "--tensor-split", "--main-gpu", "--fit",
        "--fit-target", "--fit-ctx", "--override-tensor", "--cpu-moe", "--n-cpu-moe",
        "--n-cpu-ffn", "--kv-offload", "--op-offload", "--no-host", "--rpc",
    ]),
    (Topic::Drafting, &[
        "--spec-draft-type-k", "--spec-draft-type-v", "--draft", "--draft-min", "--spec-default",
    ]),
    (Topic::Logging, &[
        "--verbose", "--verbosity", "--log-disable", "--log-file", "--log-jsonl", "--log-colors",
        "--log-prefix", "--log-timestamps", "--log-prompts-dir", "--perf",
    ]),
    (Topic::Media, &[
        "--mmproj", "--mmproj-url", "--mmproj-auto", "--mmproj-offload", "--mmproj-device",
        "--image", "--image-min-tokens", "--image-max-tokens", "--video-fps",
        "--video-timestamp-interval", "--video-ffmpeg-dir", "--output",
    ]),
    (Topic::Information, &[
        "--help", "--version", "--list-devices", "--cache-list", "--completion-bash",
    ]),
];

impl Topic {
    /// All of them, in the order of the help.
    pub fn all() -> impl Iterator<Item = Self> {
        TOPICS.iter().map(|(topic, ..)| *topic)
    }

    /// The topic that goes by `word`.
    pub fn named(word: &str) -> Option<Self> {
        let word = word.to_ascii_lowercase();
        Self::all().find(|topic| topic.word() == word)
    }

    fn texts(self) -> (&'static str, &'static str, &'static str) {
        let found = TOPICS.iter().find(|(topic, ..)| *topic == self);
        found.map_or(("", "", ""), |(_, word, heading, about)| {
            (*word, *heading, *about)
        })
    }

    /// The word for `--help`.
    pub fn word(self) -> &'static str {
        self.texts().0
    }

    /// The heading.
    pub fn heading(self) -> &'static str {
        self.texts().1
    }

    /// A sentence on what it is.
    pub fn about(self) -> &'static str {
        self.texts().2
    }

    /// What llama.cpp's `option` is about, and its place there.
    pub fn of_upstream(option: &OptionInfo) -> Option<(Self, usize)> {
        let listed = OPTIONS.iter().find_map(|(topic, names)| {
            let place = names.iter().position(|name| *name == option.name())?;
            Some((*topic, place))
        });
        // Behind those that are listed, in llama.cpp's order.
        listed.or(match option.section.as_str() {
            "sampling params" => Some((Self::Sampling, usize::MAX)),
            "speculative params" => Some((Self::Drafting, usize::MAX)),
            _ => None,
        })
    }

    /// What our flag `name` is about.
    pub fn of_own(name: &str) -> Self {
        if name.starts_with("--metrics") {
            Self::Metrics
        } else if name.starts_with("--chat") {
            Self::Chat
        } else if name == "--demo" {
            Self::Model
        } else {
            Self::Paging
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_option_has_one_topic() {
        crate::llama::log::start();
        let options = crate::llama::options().unwrap();
        let without: Vec<_> = options
            .iter()
            .filter(|option| Topic::of_upstream(option).is_none())
            .map(OptionInfo::name)
            .collect();
        assert!(without.is_empty(), "without a topic: {without:?}");
        let mut seen = BTreeSet::new();
        for name in OPTIONS.iter().flat_map(|(_, names)| *names) {
            assert!(seen.insert(name), "'{name}' is listed twice");
            let there = options.iter().any(|option| option.name() == *name);
            assert!(there, "'{name}' is no option's name");
        }
    }

    #[test]
    fn every_topic_has_its_texts() {
        for topic in Topic::all() {
            assert_eq!(Topic::named(topic.word()), Some(topic));
            assert!(!topic.heading().is_empty() && topic.about().ends_with('.'));
        }
    }
}
