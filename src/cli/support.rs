//! What becomes of each of upstream's options: one table, checked by tests against the
//! parser's own list, so that an option is either honoured or refused, never ignored.

/// What becomes of an option, with or without paging.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Support {
    /// Does what it does in llama-completion.
    Works,
    /// Prints something and ends; done by us.
    Prints,
    /// Belongs to chat at a terminal, which is not built; with `-no-cnv` it is accepted and
    /// has no effect, as in llama-completion.
    Chat,
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
    "--offline", "--verbosity", "--log-prefix", "--log-timestamps", "--prompt-cache",
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
    "--reasoning-budget-message", "--reasoning-preserve", "--chat-template-kwargs",
];

const DRAFT: &str = "speculative decoding";
const SERVER: &str = "what llama-cli has a server do";
const MEDIA: &str = "images, audio and video";
const PRESET: &str = "a model by the name of a preset";

const REFUSED: &[(&str, &str)] = &[
    ("--spec-draft-type-k", DRAFT),
    ("--spec-draft-type-v", DRAFT),
    ("--spec-draft-hf", DRAFT),
    ("--spec-draft-threads", DRAFT),
    ("--spec-draft-threads-batch", DRAFT),
    ("--spec-draft-cpu-mask", DRAFT),
    ("--spec-draft-cpu-range", DRAFT),
    ("--spec-draft-cpu-strict", DRAFT),
    ("--spec-draft-prio", DRAFT),
    ("--spec-draft-poll", DRAFT),
    ("--spec-draft-cpu-mask-batch", DRAFT),
    ("--spec-draft-cpu-strict-batch", DRAFT),
    ("--spec-draft-prio-batch", DRAFT),
    ("--spec-draft-poll-batch", DRAFT),
    ("--spec-draft-override-tensor", DRAFT),
    ("--spec-draft-cpu-moe", DRAFT),
    ("--spec-draft-n-cpu-moe", DRAFT),
    ("--spec-draft-n-max", DRAFT),
    ("--spec-draft-n-min", DRAFT),
    ("--spec-synth-len", DRAFT),
    ("--spec-synth-rates", DRAFT),
    ("--spec-draft-p-split", DRAFT),
    ("--spec-draft-p-min", DRAFT),
    ("--spec-draft-backend-sampling", DRAFT),
    ("--spec-draft-sampling", DRAFT),
    ("--spec-draft-device", DRAFT),
    ("--spec-draft-ngl", DRAFT),
    ("--spec-draft-model", DRAFT),
    ("--spec-type", DRAFT),
    ("--spec-ngram-mod-n-min", DRAFT),
    ("--spec-ngram-mod-n-max", DRAFT),
    ("--spec-ngram-mod-n-match", DRAFT),
    ("--spec-ngram-simple-size-n", DRAFT),
    ("--spec-ngram-simple-size-m", DRAFT),
    ("--spec-ngram-simple-min-hits", DRAFT),
    ("--spec-ngram-map-k-size-n", DRAFT),
    ("--spec-ngram-map-k-size-m", DRAFT),
    ("--spec-ngram-map-k-min-hits", DRAFT),
    ("--spec-ngram-map-k4v-size-n", DRAFT),
    ("--spec-ngram-map-k4v-size-m", DRAFT),
    ("--spec-ngram-map-k4v-min-hits", DRAFT),
    ("--draft", DRAFT),
    ("--draft-min", DRAFT),
    ("--spec-default", DRAFT),
    ("--server-base", SERVER),
    ("--ctx-checkpoints", SERVER),
    ("--cache-ram", SERVER),
    ("--log-prompts-dir", SERVER),
    ("--show-timings", SERVER),
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
    WhenPaged::Contradicts("under paging the model has one device, the paged one");
const BUDGET_RULES: WhenPaged =
    WhenPaged::Contradicts("under paging the budget says what stays in memory; set --vram-budget");
const PLACEMENT: WhenPaged = WhenPaged::NotBuilt("placing tensors by hand");
const ADAPTERS: WhenPaged = WhenPaged::NotBuilt("adapters on paged weights");

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
             decides; with 'mlock' refused, not built yet",
        ),
    ),
    (
        "--split-mode",
        WhenPaged::Means("'none' and 'layer'; there is one device"),
    ),
    ("--fit", WhenPaged::Means("'off' only: the budget rules")),
    ("--fit-target", BUDGET_RULES),
    ("--fit-ctx", BUDGET_RULES),
    ("--device", ONE_DEVICE),
    ("--tensor-split", ONE_DEVICE),
    ("--main-gpu", ONE_DEVICE),
    ("--rpc", ONE_DEVICE),
    ("--override-tensor", PLACEMENT),
    ("--cpu-moe", PLACEMENT),
    ("--n-cpu-moe", PLACEMENT),
    ("--n-cpu-ffn", PLACEMENT),
    (
        "--kv-offload",
        WhenPaged::Means("with --paged-kv, the KV cache may not be kept off the device"),
    ),
    (
        "--lazy-mode",
        WhenPaged::NotBuilt("a second way of reading weights late"),
    ),
    (
        "--backend-sampling",
        WhenPaged::NotBuilt("sampling on the paged device"),
    ),
    ("--lora", ADAPTERS),
    ("--lora-scaled", ADAPTERS),
    ("--control-vector", ADAPTERS),
    ("--control-vector-scaled", ADAPTERS),
    ("--control-vector-layer-range", ADAPTERS),
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

/// All names in the table, for the test that compares it with the parser's list.
pub fn names() -> impl Iterator<Item = &'static str> {
    let refused = REFUSED.iter().map(|(name, _)| *name);
    WORKS
        .iter()
        .chain(PRINTS)
        .chain(CHAT)
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
