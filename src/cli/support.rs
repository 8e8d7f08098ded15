//! What becomes of each of upstream's options: one table, checked by tests against the
//! parser's own list, so that an option is either honoured or refused, never ignored.

use super::help::{self, Entry, Topic};
use crate::llama::OptionInfo;

/// What becomes of an option, with or without paging.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Support {
    /// Does what it does in llama-completion.
    Works,
    /// Prints something and ends; done by us.
    Prints,
    /// Does something in the chat at a terminal; elsewhere it is accepted and has no effect,
    /// as in llama-completion, and a warning says so.
    Chat,
    /// Does at a terminal what it does in llama-cli; refused elsewhere.
    Terminal,
    /// Not built; the text says what is missing.
    Refused(&'static str),
}

/// What becomes of an option when weights or KV are paged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WhenPaged {
    /// Accepted, with this meaning.
    Means(&'static str),
    /// Cannot be had together with paging, for this reason.
    Contradicts(&'static str),
    /// Not built together with paging, for this reason.
    NotBuilt(&'static str),
}

/// Options, by their first long spelling, that work as upstream's.
#[rustfmt::skip]
const WORKS: &[&str] = &[
    "--verbose-prompt", "--display-prompt", "--color", "--threads", "--threads-batch",
    "--cpu-mask", "--cpu-range", "--cpu-strict", "--prio", "--poll", "--cpu-mask-batch",
    "--cpu-range-batch", "--cpu-strict-batch", "--prio-batch", "--poll-batch", "--ctx-size",
    "--predict", "--batch-size", "--ubatch-size", "--keep", "--swa-full", "--context-shift",
    "--flash-attn", "--prompt", "--perf", "--file", "--binary-file", "--escape",
    "--print-token-count", "--reverse-prompt", "--special", "--conversation", "--warmup",
    "--samplers", "--seed", "--sampler-seq", "--ignore-eos", "--temp", "--top-k", "--top-p",
    "--min-p", "--top-nsigma", "--xtc-probability", "--xtc-threshold", "--typical",
    "--repeat-last-n", "--repeat-penalty", "--presence-penalty", "--frequency-penalty",
    "--dry-multiplier", "--dry-base", "--dry-allowed-length", "--dry-penalty-last-n",
    "--dry-sequence-breaker", "--adaptive-target", "--adaptive-decay", "--dynatemp-range",
    "--dynatemp-exp", "--mirostat", "--mirostat-lr", "--mirostat-ent", "--logit-bias",
    "--grammar", "--grammar-file", "--json-schema", "--json-schema-file", "--backend-sampling",
    "--rope-scaling", "--rope-scale", "--rope-freq-base", "--rope-freq-scale", "--yarn-orig-ctx",
    "--yarn-ext-factor", "--yarn-attn-factor", "--yarn-beta-slow", "--yarn-beta-fast",
    "--kv-offload", "--repack", "--no-host", "--cache-type-k", "--cache-type-v",
    "--defrag-thold", "--parallel", "--rpc", "--load-mode", "--lazy-mode", "--numa", "--device",
    "--override-tensor", "--cpu-moe", "--n-cpu-moe", "--n-cpu-ffn", "--gpu-layers",
    "--split-mode", "--tensor-split", "--main-gpu", "--fit", "--fit-target", "--fit-ctx",
    "--check-tensors", "--override-kv", "--op-offload", "--lora", "--lora-scaled",
    "--control-vector", "--control-vector-scaled", "--control-vector-layer-range", "--model",
    "--model-url", "--docker-repo", "--hf-repo", "--hf-file", "--hf-token", "--jinja",
    "--simple-io", "--log-disable", "--log-file", "--log-jsonl", "--log-colors", "--verbose",
    "--offline", "--verbosity", "--log-prefix", "--log-timestamps",
    "--spec-draft-hf", "--spec-draft-threads", "--spec-draft-threads-batch",
    "--spec-draft-cpu-mask", "--spec-draft-cpu-range", "--spec-draft-cpu-strict",
    "--spec-draft-prio", "--spec-draft-poll", "--spec-draft-cpu-mask-batch",
    "--spec-draft-cpu-strict-batch", "--spec-draft-prio-batch", "--spec-draft-poll-batch",
    "--spec-draft-type-k", "--spec-draft-type-v", "--spec-draft-override-tensor",
    "--spec-draft-cpu-moe", "--spec-draft-n-cpu-moe", "--spec-draft-n-max", "--spec-draft-n-min",
    "--spec-draft-p-min", "--spec-draft-sampling", "--spec-draft-device", "--spec-draft-ngl",
    "--spec-draft-model", "--spec-type", "--spec-ngram-mod-n-min", "--spec-ngram-mod-n-max",
    "--spec-ngram-mod-n-match", "--spec-ngram-simple-size-n", "--spec-ngram-simple-size-m",
    "--spec-ngram-map-k-size-n", "--spec-ngram-map-k-size-m", "--spec-ngram-map-k4v-size-n",
    "--spec-ngram-map-k4v-size-m", "--spec-ngram-map-k4v-min-hits", "--spec-default",
    "--prompt-cache",
    "--prompt-cache-all", "--prompt-cache-ro", "--interactive", "--interactive-first",
    "--grp-attn-n", "--grp-attn-w", "--multiline-input", "--in-prefix-bos", "--in-prefix",
    "--in-suffix", "--system-prompt", "--system-prompt-file", "--single-turn",
    "--chat-template", "--chat-template-file", "--skip-chat-parsing",
];

const PRINTS: &[&str] = &[
    "--help",
    "--version",
    "--cache-list",
    "--completion-bash",
    "--list-devices",
];

#[rustfmt::skip]
const CHAT: &[&str] = &[
    "--reasoning-format", "--reasoning", "--reasoning-effort", "--reasoning-budget",
    "--reasoning-budget-message", "--reasoning-preserve",
];

/// Options of llama-cli's that llama-completion does not have.
const TERMINAL: &[&str] = &["--chat-template-kwargs", "--show-timings"];

const SYNTHETIC: &str = "drafts that are taken for right whatever they are, and so a wrong text";
const SPLIT: &str = "drafts that branch";
const DRAFT_DEVICE: &str = "a draft model that samples on its device; the kinds that can need \
                            models made for them";
const MIN_HITS: &str = "a bound that llama.cpp does not look at for this kind of drafting";
const REMOVED: &str = "llama.cpp has removed it; use --spec-draft-n-max and --spec-draft-n-min";
const SERVER: &str = "llama-cli has a server do it, and there is none here";
const MEDIA: &str = "images, audio and video are not read";
const PRESET: &str = "a preset fetches a model of its own; name one with -hf";

const REFUSED: &[(&str, &str)] = &[
    ("--spec-synth-len", SYNTHETIC),
    ("--spec-synth-rates", SYNTHETIC),
    ("--spec-draft-p-split", SPLIT),
    ("--spec-draft-backend-sampling", DRAFT_DEVICE),
    ("--spec-ngram-simple-min-hits", MIN_HITS),
    ("--spec-ngram-map-k-min-hits", MIN_HITS),
    ("--draft", REMOVED),
    ("--draft-min", REMOVED),
    ("--server-base", SERVER),
    ("--ctx-checkpoints", SERVER),
    ("--cache-ram", SERVER),
    ("--log-prompts-dir", SERVER),
    ("--mmproj", MEDIA),
    ("--mmproj-url", MEDIA),
    ("--mmproj-auto", MEDIA),
    ("--mmproj-offload", MEDIA),
    ("--mmproj-device", MEDIA),
    ("--image-min-tokens", MEDIA),
    ("--image-max-tokens", MEDIA),
    ("--video-fps", MEDIA),
    ("--video-timestamp-interval", MEDIA),
    ("--video-ffmpeg-dir", MEDIA),
    ("--image", MEDIA),
    ("--output", MEDIA),
    ("--gpt-oss-20b-default", PRESET),
    ("--gpt-oss-120b-default", PRESET),
    ("--vision-gemma-4b-default", PRESET),
    ("--vision-gemma-12b-default", PRESET),
];

const ONE_DEVICE: WhenPaged =
    WhenPaged::Contradicts("under paging one device computes; name it with --device");
const BUDGET_RULES: WhenPaged =
    WhenPaged::Contradicts("under paging the budget says what stays in memory; set --vram-budget");
const DRAFT_STAYS: WhenPaged =
    WhenPaged::Contradicts("under paging the draft model stays in main memory");
const PLACED: WhenPaged = WhenPaged::Means(
    "as always: these tensors stay in llama.cpp's own memory, unpaged; the budget covers them, \
     unless it is of a GPU's memory",
);
const ADAPTED: WhenPaged =
    WhenPaged::Means("as always: adapters stay in memory, and the budget covers them");

/// What upstream's options mean together with `--dynamic-layers` or `--paged-kv`; an
/// option that is not here means what it always means.
pub const PAGED: &[(&str, WhenPaged)] = &[
    (
        "--gpu-layers",
        WhenPaged::Means("an upper bound on resident layers"),
    ),
    (
        "--ctx-size",
        WhenPaged::Means("as always; without it, what the model was trained with"),
    ),
    (
        "--warmup",
        WhenPaged::Means("as always when all layers fit; skipped while layers stream"),
    ),
    (
        "--load-mode",
        WhenPaged::Means(
            "'dio' reads files past the page cache, 'none' and 'mmap' through it, 'auto' \
             decides; 'mlock' and 'mmap+mlock' lock the weights that stay, \
             and the ring (not in a GPU's memory)",
        ),
    ),
    (
        "--split-mode",
        WhenPaged::Means("'layer', or 'none' without --rpc: whole layers are paged"),
    ),
    ("--fit", WhenPaged::Means("'off' only: the budget rules")),
    ("--fit-target", BUDGET_RULES),
    ("--fit-ctx", BUDGET_RULES),
    (
        "--device",
        WhenPaged::Means(
            "the GPU that computes, in whose memory the budget is (without it the first one; \
             none with -ngl 0), and RPC servers' devices that share the model with it; 'none': \
             the processor alone",
        ),
    ),
    (
        "--rpc",
        WhenPaged::Means(
            "the servers' devices get layers, whole and outside the budget; what is left is paged",
        ),
    ),
    (
        "--tensor-split",
        WhenPaged::Means(
            "with --rpc only: the shares of the servers' devices, then that of the paged one",
        ),
    ),
    ("--main-gpu", ONE_DEVICE),
    ("--override-tensor", PLACED),
    ("--cpu-moe", PLACED),
    ("--n-cpu-moe", PLACED),
    ("--n-cpu-ffn", PLACED),
    (
        "--kv-offload",
        WhenPaged::Means("with --paged-kv, the KV cache may not be kept off the device"),
    ),
    (
        "--lazy-mode",
        WhenPaged::Means(
            "as always; tensors read that way lie in the page cache, not in the budget",
        ),
    ),
    (
        "--spec-draft-model",
        WhenPaged::Means(
            "stays in main memory; the budget covers its weights, cache and scratch, unless it is \
             of a GPU's memory",
        ),
    ),
    ("--spec-draft-device", DRAFT_STAYS),
    ("--spec-draft-ngl", DRAFT_STAYS),
    ("--spec-draft-override-tensor", DRAFT_STAYS),
    ("--spec-draft-cpu-moe", DRAFT_STAYS),
    ("--spec-draft-n-cpu-moe", DRAFT_STAYS),
    ("--lora", ADAPTED),
    ("--lora-scaled", ADAPTED),
    ("--control-vector", ADAPTED),
    ("--control-vector-scaled", ADAPTED),
];

/// What becomes of the option that goes by `name`; None when the table lacks it.
pub fn support(name: &str) -> Option<Support> {
    if WORKS.contains(&name) {
        return Some(Support::Works);
    }
    if PRINTS.contains(&name) {
        return Some(Support::Prints);
    }
    if CHAT.contains(&name) {
        return Some(Support::Chat);
    }
    if TERMINAL.contains(&name) {
        return Some(Support::Terminal);
    }
    let refused = REFUSED.iter().find(|(refused, _)| *refused == name);
    refused.map(|(_, why)| Support::Refused(why))
}

/// What becomes of it under paging; None when nothing changes.
pub fn when_paged(name: &str) -> Option<WhenPaged> {
    PAGED
        .iter()
        .find_map(|(paged, what)| (*paged == name).then_some(*what))
}

/// The table of [`PAGED`] in Markdown, as the README shows it.
pub fn paged_table() -> String {
    let mut text = String::from("| llama.cpp's option | together with paging |\n|---|---|\n");
    for (name, what) in PAGED {
        let what = match what {
            WhenPaged::Means(what) => (*what).to_owned(),
            WhenPaged::Contradicts(why) => format!("refused: {why}"),
            WhenPaged::NotBuilt(what) => format!("refused, not built yet: {what}"),
        };
        text.push_str(&format!("| `{name}` | {what} |\n"));
    }
    text
}

/// Where what works, or is printed, differs from llama-completion all the same.
const DIFFERS: &[(&str, &str)] = &[
    (
        "--help",
        "a short help, or that on a topic or a flag; --help-all prints everything",
    ),
    ("--version", "our version, then llama.cpp's"),
    ("--completion-bash", "a script for our flags as well"),
];

/// What becomes of all options, in Markdown, as the README shows it: a row for each topic
/// of what works, and for each reason to refuse.
pub fn options_table(options: &[OptionInfo]) -> String {
    let differs = |name: &str| DIFFERS.iter().any(|(other, _)| *other == name);
    let entries = help::entries(options);
    let with = |fits: &dyn Fn(&Entry) -> bool| -> String {
        let names = entries.iter().filter(|entry| fits(entry));
        let names = names.map(|entry| format!("`{}`", entry.name));
        names.collect::<Vec<_>>().join(", ")
    };
    let mut rows = Vec::new();
    for topic in Topic::all() {
        let names = with(&|entry| {
            let works = matches!(support(&entry.name), Some(Support::Works | Support::Prints));
            works && entry.topic == topic && !differs(&entry.name)
        });
        rows.push((names, "the same".to_owned()));
    }
    for (name, what) in DIFFERS {
        rows.push((format!("`{name}`"), (*what).to_owned()));
    }
    for (kind, what) in [
        (
            Support::Chat,
            "in the chat at a terminal as in llama-cli; elsewhere the same: no effect",
        ),
        (
            Support::Terminal,
            "in the chat at a terminal as in llama-cli; elsewhere refused",
        ),
    ] {
        let names = with(&|entry| support(&entry.name) == Some(kind));
        rows.push((names, what.to_owned()));
    }
    let mut reasons: Vec<&str> = Vec::new();
    for (_, why) in REFUSED {
        if !reasons.contains(why) {
            reasons.push(why);
        }
    }
    for why in reasons {
        let names = with(&|entry| support(&entry.name) == Some(Support::Refused(why)));
        rows.push((names, format!("refused: {why}")));
    }
    let mut text = String::from("| llama.cpp's options | here |\n|---|---|\n");
    for (names, what) in rows.iter().filter(|(names, _)| !names.is_empty()) {
        text.push_str(&format!("| {names} | {what} |\n"));
    }
    text
}

/// All names in the table, for the test that compares it with the parser's list.
pub fn names() -> impl Iterator<Item = &'static str> {
    let refused = REFUSED.iter().map(|(name, _)| *name);
    WORKS
        .iter()
        .chain(PRINTS)
        .chain(CHAT)
        .chain(TERMINAL)
        .copied()
        .chain(refused)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::llama;

    #[test]
    fn the_readme_shows_the_table() {
        let readme = include_str!("../../README.md").replace("\r\n", "\n");
        let table = super::paged_table();
        assert!(
            readme.contains(&table),
            "README.md lacks this table:\n{table}"
        );
    }

    #[test]
    fn the_readme_shows_what_becomes_of_all_options() {
        llama::log::start();
        let readme = include_str!("../../README.md").replace("\r\n", "\n");
        let table = options_table(&llama::options().unwrap());
        let marked = format!("<!-- all options -->\n{table}<!-- end of all options -->\n");
        assert!(
            readme.contains(&marked),
            "README.md lacks this between its marks:\n{table}"
        );
        for (name, _) in DIFFERS {
            assert!(names().any(|other| other == *name), "{name}");
        }
    }

    #[test]
    fn every_option_of_the_parser_is_in_the_table_once() {
        llama::log::start();
        let options = llama::options().unwrap();
        let theirs: BTreeSet<_> = options.iter().map(|option| option.name()).collect();
        assert_eq!(theirs.len(), options.len(), "two options go by one name");
        let ours: BTreeSet<_> = names().collect();
        assert_eq!(
            ours.len(),
            names().count(),
            "an option is in the table twice"
        );
        let unlisted: Vec<_> = theirs.difference(&ours).collect();
        assert!(
            unlisted.is_empty(),
            "in the parser, not in the table: {unlisted:?}"
        );
        let gone: Vec<_> = ours.difference(&theirs).collect();
        assert!(gone.is_empty(), "in the table, not in the parser: {gone:?}");
        for (name, _) in PAGED {
            assert!(ours.contains(name), "'{name}' under paging is no option");
        }
    }
}
