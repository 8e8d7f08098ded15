//! One row or more for each option that works: a command line, and what it changes.

/// What an option changes.
pub enum Effect {
    /// The text that is generated.
    Text,
    /// Standard output contains this, and does not without the option.
    Prints(&'static str),
    /// So for standard error.
    Says(&'static str),
    /// Standard error does not contain this, and does without the option.
    Silences(&'static str),
    /// This file contains that.
    Writes(&'static str, &'static str),
    /// The run ends with this code and a sentence that contains all of these.
    Ends(i32, &'static [&'static str]),
    /// Nothing that is printed: it changes how the work is done. The text stays the same,
    /// and this line, if it is one, is refused: the value is read.
    Quiet(&'static str),
    /// What a file of tests asserts, in which the row's line stands.
    Elsewhere(&'static str),
}

/// An option, exercised.
pub struct Row {
    /// The option's name.
    pub name: &'static str,
    /// What stands before it, and what it is compared with.
    pub base: &'static str,
    /// The option.
    pub line: &'static str,
    /// What it changes.
    pub effect: Effect,
}

const fn row(name: &'static str, base: &'static str, line: &'static str, effect: Effect) -> Row {
    Row {
        name,
        base,
        line,
        effect,
    }
}

use Effect::{Elsewhere, Ends, Prints, Quiet, Says, Silences, Text, Writes};

const PAGED: &str = "--dynamic-layers --paged-kv";
const YARN: &str = "-n 60 --rope-scaling yarn --rope-scale 64 -c 256";

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    // What is printed instead of a text.
    row("--help", "!", "--help", Prints("Usage: rpaged-cli")),
    row("--version", "!", "--version", Prints("llama.cpp ")),
    row("--cache-list", "!", "-cl", Prints("number of models in cache")),
    row("--completion-bash", "!", "--completion-bash", Prints("complete -F")),
    row("--list-devices", "!", "--list-devices", Prints("Available devices")),

    // The model.
    row("--model", "", "-m {damaged}.gone", Ends(1, &["damaged.gone", "does not exist"])),
    row("--model-url", "! -no-cnv -p x", "-mu http://127.0.0.1:1/x.gguf",
        Ends(1, &["http://127.0.0.1:1/x.gguf"])),
    row("--docker-repo", "! --demo", "-dr a", Ends(2, &["'-dr'", "'--demo'"])),
    row("--hf-repo", "! -no-cnv -p x", "-hf a --offline", Ends(1, &["<user>/<model>"])),
    row("--hf-repo", "! -no-cnv -p x", "-hf a/b --offline", Ends(1, &["a/b", "--offline"])),
    row("--hf-file", "! -no-cnv -p x --offline", "-hf a/b -hff x.gguf", Ends(1, &["a/b"])),
    row("--hf-token", "", "--hf-token", Elsewhere("download.rs")),
    row("--offline", "! -no-cnv -p x -mu http://127.0.0.1:1/x.gguf", "--offline",
        Ends(1, &["x.gguf", "--offline"])),
    row("--load-mode", "-v", "-lm none", Says("CPU model buffer size =     2.54 MiB")),
    row("--load-mode", "-v", "-lm dio", Says("load_mode = dio")),
    row("--load-mode", PAGED, "-lm dio", Quiet("-lm fast")),
    row("--lazy-mode", "", "-lzm on", Quiet("-lzm never")),
    row("--check-tensors", "-m {damaged}", "--check-tensors", Ends(1, &["invalid data"])),
    row("--override-kv", "-v", "--override-kv llama.context_length=int:64",
        Says("n_ctx_train           = 64")),
    row("--lora", "", "--lora {grammar}", Ends(1, &["invalid magic"])),
    row("--lora-scaled", "", "--lora-scaled {grammar}:0.5", Ends(1, &["invalid magic"])),
    row("--control-vector", "", "--control-vector {grammar}", Ends(1, &["control vector"])),
    row("--control-vector-scaled", "", "--control-vector-scaled {grammar}:2",
        Ends(1, &["control vector"])),
    row("--control-vector-layer-range", "", "--control-vector-layer-range 1 2",
        Quiet("--control-vector-layer-range 1 x")),
    row("--repack", "-lm none -v", "--no-repack", Silences("CPU_REPACK")),

    // Prompt and text.
    row("--prompt", "", "-p The", Prints("The")),
    row("--file", "", "-f {prompt}", Prints("The dog")),
    row("--binary-file", "", "-bf {prompt}", Prints("The dog")),
    row("--escape", "-p a\\nb", "--no-escape", Prints("a\\nb")),
    row("--escape", "--no-escape -p a\\nb", "-e", Prints("a\nb")),
    row("--predict", "", "-n 2", Text),
    row("--keep", "", "--keep 3", Says("n_keep = 4")),
    row("--context-shift", "-c 256 -n 300 --ignore-eos", "--context-shift", Text),
    row("--reverse-prompt", "", "-r there", Text),
    row("--special", "", "-sp", Prints("<|bos|>")),
    row("--display-prompt", "--no-display-prompt", "--display-prompt", Prints("Once upon")),
    row("--verbose-prompt", "", "--verbose-prompt", Says("number of tokens in prompt = 5")),
    row("--color", "", "--color on", Prints("\x1b[33m")),
    row("--simple-io", "", "--simple-io", Quiet("")),
    row("--print-token-count", "-v", "-ptc 2", Says("Tokens consumed so far = 6")),
    row("--conversation", "", "-cnv", Ends(3, &["chat mode", "-no-cnv"])),
    row("--jinja", "-v", "--jinja", Says("n_keep = 0")),

    // Sampling.
    row("--samplers", "", "--samplers top_k", Says("logits -> top-k -> dist")),
    row("--seed", "", "-s 8", Text),
    row("--sampler-seq", "", "--sampler-seq k", Says("logits -> top-k -> dist")),
    row("--ignore-eos", "-n 200", "--ignore-eos", Text),
    row("--temp", "", "--temp 0", Text),
    row("--top-k", "", "--top-k 1", Text),
    row("--top-p", "", "--top-p 0.1", Text),
    row("--min-p", "", "--min-p 0.9", Text),
    row("--top-nsigma", "", "--top-nsigma 0.1", Text),
    row("--xtc-probability", "", "--xtc-probability 1", Text),
    row("--xtc-threshold", "--xtc-probability 1", "--xtc-threshold 0.4", Text),
    row("--typical", "", "--typical 0.1", Says("-> typical ->")),
    row("--repeat-last-n", "", "--repeat-last-n 3", Says("repeat_last_n = 3")),
    row("--repeat-penalty", "", "--repeat-penalty 1.5", Says("-> penalties ->")),
    row("--presence-penalty", "", "--presence-penalty 1", Says("presence_penalty = 1.000")),
    row("--frequency-penalty", "", "--frequency-penalty 1", Says("frequency_penalty = 1.000")),
    row("--dry-multiplier", "", "--dry-multiplier 1", Says("-> dry ->")),
    row("--dry-base", "", "--dry-base 2", Says("dry_base = 2.000")),
    row("--dry-allowed-length", "", "--dry-allowed-length 3", Says("dry_allowed_length = 3")),
    row("--dry-penalty-last-n", "", "--dry-penalty-last-n 5", Says("dry_penalty_last_n = 5")),
    row("--dry-sequence-breaker",
        "-n 200 -c 256 --dry-multiplier 5 --dry-allowed-length 1 --ignore-eos",
        "--dry-sequence-breaker e", Text),
    row("--adaptive-target", "", "--adaptive-target 0.5", Says("adaptive_target = 0.500")),
    row("--adaptive-decay", "", "--adaptive-decay 0.5", Says("adaptive_decay = 0.500")),
    row("--dynatemp-range", "", "--dynatemp-range 0.5", Text),
    row("--dynatemp-exp", "-n 60 --dynatemp-range 0.7", "--dynatemp-exp 30", Text),
    row("--mirostat", "", "--mirostat 2", Says("mirostat-v2")),
    row("--mirostat-lr", "", "--mirostat-lr 0.3", Says("mirostat_lr = 0.300")),
    row("--mirostat-ent", "", "--mirostat-ent 2", Says("mirostat_ent = 2.000")),
    row("--logit-bias", "", "-l 5+100", Prints("&&&&")),
    row("--grammar", "", "--grammar root::=\"xyz\"", Prints("timexyz")),
    row("--grammar-file", "", "--grammar-file {grammar}", Prints("time yes")),
    row("--json-schema", "", "-j {\"const\":7}", Prints("time7")),
    row("--json-schema-file", "", "-jf {schema}", Text),
    row("--backend-sampling", "-v", "-bs", Says("setting backend sampler")),

    // The context.
    row("--ctx-size", "", "-c 512", Says("n_ctx = 512")),
    row("--ctx-size", PAGED, "-c 512", Says("n_ctx = 512")),
    row("--batch-size", "", "-b 64", Says("n_batch = 64")),
    row("--ubatch-size", "-v", "-ub 8", Says("n_ubatch              = 8")),
    row("--swa-full", "", "--swa-full", Quiet("")),
    row("--flash-attn", "-v", "-fa off", Says("flash_attn            = disabled")),
    row("--cache-type-k", "-v", "-ctk q8_0", Says("K (q8_0)")),
    row("--cache-type-v", "-v", "-ctv q8_0", Says("V (q8_0)")),
    row("--parallel", "-v", "-np 2", Says("n_seq_max             = 2")),
    row("--warmup", "-v", "--no-warmup", Silences("warming up the model")),
    row("--warmup", PAGED, "--no-warmup", Quiet("")),
    row("--defrag-thold", "", "-dt 0.5", Says("--defrag-thold is deprecated")),
    row("--rope-scaling", "--rope-scale 8 -v", "--rope-scaling yarn", Says("YaRN scaling")),
    row("--rope-scale", "", "--rope-scale 2", Text),
    row("--rope-freq-base", "", "--rope-freq-base 100", Says("RoPE base set to 100")),
    row("--rope-freq-scale", "", "--rope-freq-scale 0.5", Text),
    row("--yarn-orig-ctx", "-v --rope-scaling yarn --rope-scale 8", "--yarn-orig-ctx 100",
        Says("n_ctx_train adjusted to 800")),
    row("--yarn-ext-factor", YARN, "--yarn-ext-factor 0", Text),
    row("--yarn-attn-factor", YARN, "--yarn-attn-factor 20", Quiet("--yarn-attn-factor x")),
    row("--yarn-beta-slow", YARN, "--yarn-beta-slow 30", Text),
    row("--yarn-beta-fast", YARN, "--yarn-beta-fast 1.5", Quiet("--yarn-beta-fast x")),

    // Processors.
    row("--threads", "", "-t 3", Says("n_threads = 3")),
    row("--threads-batch", "", "-tb 3", Says("n_threads_batch = 3")),
    row("--cpu-mask", "", "-C 1", Quiet("-C zz")),
    row("--cpu-range", "", "-Cr 0-1", Quiet("-Cr 1")),
    row("--cpu-strict", "-C 3", "--cpu-strict 1", Quiet("--cpu-strict x")),
    row("--prio", "", "--prio 1", Quiet("--prio 7")),
    row("--poll", "", "--poll 0", Quiet("--poll x")),
    row("--cpu-mask-batch", "", "-Cb 1", Quiet("-Cb zz")),
    row("--cpu-range-batch", "", "-Crb 0-1", Quiet("-Crb 1")),
    row("--cpu-strict-batch", "-Cb 3", "--cpu-strict-batch 1", Quiet("--cpu-strict-batch x")),
    row("--prio-batch", "", "--prio-batch 1", Quiet("--prio-batch 7")),
    row("--poll-batch", "", "--poll-batch 0", Quiet("--poll-batch x")),
    row("--numa", "", "--numa distribute", Quiet("--numa all")),

    // Devices.
    row("--gpu-layers", "", "-ngl 3", Says("--gpu-layers option will be ignored")),
    row("--gpu-layers", PAGED, "-ngl 3", Quiet("-ngl some")),
    row("--device", "", "-dev none", Quiet("-dev nothing")),
    row("--split-mode", "", "-sm row", Says("Setting the split mode has no effect")),
    row("--split-mode", PAGED, "-sm row", Ends(2, &["paging"])),
    row("--tensor-split", "", "-ts 1,2", Says("Setting a tensor split has no effect")),
    row("--main-gpu", "", "-mg 1", Says("Setting the main GPU has no effect")),
    row("--fit", "-v", "-fit off", Silences("fitting params to device memory")),
    row("--fit", PAGED, "-fit on", Ends(2, &["paging", "--vram-budget"])),
    row("--fit-target", "-v", "-fitt 100", Says(">= 100 MiB of system memory")),
    row("--fit-ctx", "", "-fitc 512", Quiet("-fitc x")),
    row("--override-tensor", "-v", "-ot blk=CPU", Says("buffer type overridden to CPU")),
    row("--cpu-moe", "", "-cmoe", Quiet("")),
    row("--n-cpu-moe", "", "-ncmoe 2", Quiet("-ncmoe x")),
    row("--n-cpu-ffn", "-v", "-ncffn 2", Says("buffer type overridden to CPU")),
    row("--kv-offload", "", "-nkvo", Quiet("")),
    row("--kv-offload", PAGED, "-nkvo", Ends(2, &["--no-kv-offload", "--paged-kv"])),
    row("--op-offload", "", "--no-op-offload", Quiet("")),
    row("--no-host", "", "--no-host", Quiet("")),
    row("--rpc", "", "--rpc 127.0.0.1:1", Ends(2, &["--rpc", "not supported in this build"])),

    // What is said.
    row("--verbose", "", "-v", Says("init_tokenizer")),
    row("--verbosity", "", "-lv 1", Silences("llama backend init")),
    row("--log-disable", "", "--log-disable", Silences("llama backend init")),
    row("--log-file", "", "--log-file {log}", Writes("{log}", "llama backend init")),
    row("--log-jsonl", "", "--log-jsonl", Prints("{\"type\":\"log\"")),
    row("--log-colors", "", "--log-colors on", Says("\x1b[34m")),
    row("--log-prefix", "", "--no-log-prefix", Silences(" I llama_completion")),
    row("--log-timestamps", "", "--no-log-timestamps", Silences("0.00.0")),
    row("--perf", "", "--no-perf", Says("inf tokens per second")),
];
