//! `rpaged-cli bench`: its command line, typed and made a plan.

mod flags;
mod words;

use std::ffi::OsString;
use std::time::Duration;

use clap::{CommandFactory, Parser};

use self::flags::{BenchFlags, Texts, Truths};
use super::help::Page;
use super::print;
use super::printing::Print;
use super::resolve::{KV_PAGE_TOKENS, PREFETCH_THREADS, THREADS_MAX};
use crate::bench::case::Axes;
use crate::bench::ranges::Numbers;
use crate::bench::{self, Format, Models, Paging, Plan, Process, Results, Runs};
use crate::device::{Budget, Cold};
use crate::error::{Error, Result};
use crate::session::signal;

/// Does what the command line behind `bench` asks for.
///
/// # Errors
/// Whatever ended it before its time.
pub fn run(args: Vec<OsString>) -> Result<()> {
    signal::install();
    let shown: Vec<String> = args
        .iter()
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    let words = words::sort(args)?;
    // A text that is asked for comes whatever else is wrong.
    for (flag, what) in [
        ("--version", Print::Version),
        ("--list-devices", Print::Devices(Vec::new())),
    ] {
        if words.iter().any(|word| word == flag) {
            return print(what);
        }
    }
    if words.iter().any(|word| word == "--help") {
        return super::print_text(&help(Page::for_stdout()));
    }
    let named = std::iter::once("bench").chain(words.iter().map(String::as_str));
    let flags = BenchFlags::try_parse_from(named).map_err(|error| say(&error, &shown))?;
    bench::run(plan(flags)?)
}

/// clap's complaint as one sentence of ours.
fn say(error: &clap::Error, args: &[String]) -> Error {
    use clap::error::ContextKind;
    let text = |kind| error.get(kind).map(ToString::to_string);
    let option = text(ContextKind::InvalidArg).unwrap_or_default();
    let option = option.split_whitespace().next().unwrap_or("an option");
    let option = words::spelled(option, args);
    let value = text(ContextKind::InvalidValue).unwrap_or_default();
    let reason = std::error::Error::source(error).map(ToString::to_string);
    let reason = reason.unwrap_or_else(|| error.kind().to_string());
    Error::Usage(format!("option '{option}' got '{value}': {reason}"))
}

/// All flags in a text.
fn help(mut page: Page) -> String {
    page.heading(
        "rpaged-cli bench",
        "measures as llama-bench does, over many budgets in one go",
    );
    for (line, about) in [
        ("rpaged-cli bench -m MODEL", "as llama-bench"),
        (
            "rpaged-cli bench -m MODEL --vram-budgets 25%,50%,110% --stock --plot a.svg",
            "paged against stock, and a picture",
        ),
        (
            "rpaged-cli bench -m MODEL --vram-budgets 2GiB -o jsonl --resume sweep.jsonl",
            "what Ctrl-C ended goes on",
        ),
    ] {
        page.flag(line, 2);
        page.paragraph(about, 6);
    }
    page.blank();
    page.paragraph(
        "Lists have ',' between their values, or the flag is given several times. Numbers can \
         be ranges: '1-8', '1-9+2', '1-64*2'. All combinations are measured.",
        0,
    );
    page.blank();
    for argument in BenchFlags::command().get_arguments() {
        let long = format!("--{}", argument.get_long().unwrap_or_default());
        let shorts = words::SHORT.iter().filter(|(_, other)| *other == long);
        let mut names: Vec<&str> = shorts.map(|(short, _)| *short).collect();
        names.push(&long);
        let mut line = names.join(", ");
        if argument.get_action().takes_values() {
            let hints = argument.get_value_names().unwrap_or_default();
            line.extend(hints.iter().map(|hint| format!(" {hint}")));
        }
        page.flag(&line, 0);
        let about = argument.get_long_help().or(argument.get_help());
        let about = about.map(ToString::to_string).unwrap_or_default();
        page.paragraph(&about.replace('\n', " "), 8);
    }
    page.into_text()
}

fn plan(flags: BenchFlags) -> Result<Plan> {
    check_refused(&flags)?;
    let axes = axes(&flags)?;
    check_numbers(&axes)?;
    let mut budgets: Vec<(String, Budget)> = flags
        .vram_budgets
        .iter()
        .flat_map(|list| list.0.clone())
        .collect();
    let asks_for_paging = flags.dynamic_layers || flags.paged_kv;
    if asks_for_paging && budgets.is_empty() {
        budgets.push(("auto".to_owned(), Budget::Auto));
    }
    check_paging(&flags, !budgets.is_empty())?;
    check_folders(&flags)?;
    if flags.depth_dir.is_some() && axes.n_depth.iter().all(|depth| *depth == 0) {
        return Err(Error::Usage(
            "'--depth-dir' needs a depth to keep; add -d".to_owned(),
        ));
    }
    let cold: Vec<Cold> = flags.cold.iter().flat_map(|list| list.0.clone()).collect();
    Ok(Plan {
        axes,
        cold: if cold.is_empty() {
            vec![Cold::Auto]
        } else {
            cold
        },
        stock: flags.stock,
        paging: paging(&flags, asks_for_paging),
        process: Process {
            numa: flags.numa.clone().unwrap_or_default(),
            priority: flags.prio,
            verbose: flags.verbose,
        },
        runs: Runs {
            repetitions: flags.repetitions,
            delay: Duration::from_secs(flags.delay),
            warm_up: !flags.no_warmup,
            progress: flags.progress,
            journal: flags.resume.clone(),
            depth_folder: flags.depth_dir.clone(),
        },
        results: results(&flags),
        models: models(flags),
        budgets,
    })
}

/// Refuses what is not built.
fn check_refused(flags: &BenchFlags) -> Result<()> {
    if flags.rpc.is_some() {
        return Err(Error::NotBuilt(
            "'-rpc' is not built: this llama.cpp has no RPC".to_owned(),
        ));
    }
    for (flag, values) in [("-fitt", &flags.fit_target), ("-fitc", &flags.fit_ctx)] {
        let other = values
            .iter()
            .flat_map(|value| value.split(','))
            .find(|value| *value != "0");
        if let Some(other) = other {
            return Err(Error::NotBuilt(format!(
                "'{flag} {other}' is not built yet: there is no device here whose memory a model \
                 could be fitted to; see --vram-budgets"
            )));
        }
    }
    Ok(())
}

/// Flags that do something only with paging, or with one kind of it.
fn check_paging(flags: &BenchFlags, paged: bool) -> Result<()> {
    let only_weights = flags.dynamic_layers && !flags.paged_kv;
    let only_kv = flags.paged_kv && !flags.dynamic_layers;
    let given = [
        (
            "--stock",
            flags.stock,
            !paged,
            "budgets beside it; add --vram-budgets",
        ),
        (
            "--pin-layers",
            flags.pin_layers.is_some(),
            !paged || only_kv,
            "paged weights",
        ),
        (
            "--cold",
            !flags.cold.is_empty(),
            !paged || only_kv,
            "paged weights",
        ),
        (
            "--prefetch-depth",
            flags.prefetch_depth.is_some(),
            !paged,
            "--vram-budgets",
        ),
        (
            "--prefetch-threads",
            flags.prefetch_threads.is_some(),
            !paged,
            "--vram-budgets",
        ),
        (
            "--async-prefetch",
            flags.async_prefetch,
            !paged,
            "--vram-budgets",
        ),
        (
            "--no-async-prefetch",
            flags.no_async_prefetch,
            !paged,
            "--vram-budgets",
        ),
        (
            "--kv-page-size",
            flags.kv_page_size.is_some(),
            !paged || only_weights,
            "a paged KV cache",
        ),
        (
            "--spill-dir",
            flags.spill_dir.is_some(),
            !paged || only_weights,
            "a paged KV cache",
        ),
    ];
    let lacking = given.iter().find(|(_, given, lacks, _)| *given && *lacks);
    if let Some((flag, _, _, what)) = lacking {
        return Err(Error::Usage(format!("'{flag}' needs {what}")));
    }
    Ok(())
}

/// Refuses folders that are not there.
fn check_folders(flags: &BenchFlags) -> Result<()> {
    let folders = [
        (
            &flags.spill_dir,
            "the KV cache cannot spill there, see --spill-dir",
        ),
        (
            &flags.depth_dir,
            "nothing can be kept there, see --depth-dir",
        ),
    ];
    for (folder, what) in folders {
        if let Some(folder) = folder.as_ref().filter(|folder| !folder.is_dir()) {
            let name = folder.display();
            return Err(Error::Failed(format!("'{name}' is no folder; {what}")));
        }
    }
    Ok(())
}

fn paging(flags: &BenchFlags, asked: bool) -> Paging {
    Paging {
        weights: flags.dynamic_layers || !asked,
        kv: flags.paged_kv || !asked,
        prefetch: !flags.no_async_prefetch,
        prefetch_threads: usize::from(flags.prefetch_threads.unwrap_or(PREFETCH_THREADS)),
        prefetch_depth: flags.prefetch_depth.unwrap_or(1),
        pinned_layers: flags.pin_layers.clone().unwrap_or_default().0,
        kv_page_tokens: flags.kv_page_size.unwrap_or(KV_PAGE_TOKENS),
        spill_folder: flags.spill_dir.clone(),
    }
}

fn results(flags: &BenchFlags) -> Results {
    let given = flags.output.as_deref().map(Format::named);
    let of_name = |path: &std::path::Path| {
        let end = path.extension()?.to_string_lossy().to_lowercase();
        Format::named(&end)
    };
    let file = flags.output_file.clone().map(|path| {
        let format = given.flatten().or_else(|| of_name(&path));
        (path, format.unwrap_or(Format::Md))
    });
    Results {
        stdout: given.unwrap_or(Some(Format::Md)),
        stderr: flags.output_err.as_deref().and_then(Format::named),
        file,
        plot: flags.plot.clone(),
    }
}

fn models(flags: BenchFlags) -> Models {
    let mut files = texts(&flags.hf_file).into_iter();
    let repositories = texts(&flags.hf_repo).into_iter();
    Models {
        paths: texts(&flags.model),
        repositories: repositories
            .map(|repository| (repository, files.next()))
            .collect(),
        token: flags.hf_token,
        offline: flags.offline,
        demo: flags.demo,
    }
}

fn texts(lists: &[Texts]) -> Vec<String> {
    lists.iter().flat_map(|list| list.0.clone()).collect()
}

/// The lists, with llama-bench's defaults for those that were not given.
fn axes(flags: &BenchFlags) -> Result<Axes> {
    fn or<T: Clone, L>(lists: &[L], of: impl Fn(&L) -> Vec<T>, default: Vec<T>) -> Vec<T> {
        if lists.is_empty() {
            return default;
        }
        lists.iter().flat_map(of).collect()
    }
    let numbers = |lists: &[Numbers], default| or(lists, |list| list.0.clone(), default);
    let texts = |lists: &[Texts], default| or(lists, |list| list.0.clone(), default);
    let truths = |lists: &[Truths], default| or(lists, |list| list.0.clone(), default);
    let default = Axes::default();
    Ok(Axes {
        model: Vec::new(),
        n_gpu_layers: numbers(&flags.n_gpu_layers, default.n_gpu_layers),
        n_cpu_moe: numbers(&flags.n_cpu_moe, default.n_cpu_moe),
        split_mode: texts(&flags.split_mode, default.split_mode),
        load_mode: texts(&flags.load_mode, default.load_mode),
        lazy_mode: texts(&flags.lazy_mode, default.lazy_mode),
        main_gpu: numbers(&flags.main_gpu, default.main_gpu),
        devices: texts(&flags.device, default.devices),
        tensor_split: texts(&flags.tensor_split, default.tensor_split),
        overrides: texts(&flags.override_tensor, default.overrides),
        no_host: truths(&flags.no_host, default.no_host),
        repack: truths(&flags.repack, default.repack),
        variant: default.variant,
        embeddings: truths(&flags.embeddings, default.embeddings),
        no_op_offload: truths(&flags.no_op_offload, default.no_op_offload),
        n_batch: numbers(&flags.batch_size, default.n_batch),
        n_ubatch: numbers(&flags.ubatch_size, default.n_ubatch),
        type_k: texts(&flags.cache_type_k, default.type_k),
        type_v: texts(&flags.cache_type_v, default.type_v),
        no_kv_offload: truths(&flags.no_kv_offload, default.no_kv_offload),
        flash_attn: numbers(&flags.flash_attn, default.flash_attn),
        n_threads: numbers(&flags.threads, default.n_threads),
        cpu_mask: texts(&flags.cpu_mask, default.cpu_mask),
        cpu_strict: truths(&flags.cpu_strict, default.cpu_strict),
        n_depth: numbers(&flags.n_depth, default.n_depth),
        poll: numbers(&flags.poll, default.poll),
        n_prompt: numbers(&flags.n_prompt, default.n_prompt),
        n_gen: numbers(&flags.n_gen, default.n_gen),
        n_pg: flags.pg.clone(),
    })
}

/// Tokens that a test may have: a context counts them in 31 bits.
const TOKENS_MAX: i32 = 1 << 28;

/// Refuses numbers at which llama.cpp would abort, and empty lists.
fn check_numbers(axes: &Axes) -> Result<()> {
    let lists = [
        ("-b", &axes.n_batch, 1, TOKENS_MAX),
        ("-ub", &axes.n_ubatch, 1, TOKENS_MAX),
        ("-t", &axes.n_threads, 1, THREADS_MAX),
        ("--poll", &axes.poll, 0, 100),
        ("-p", &axes.n_prompt, 0, TOKENS_MAX),
        ("-n", &axes.n_gen, 0, TOKENS_MAX),
        ("-d", &axes.n_depth, 0, TOKENS_MAX),
    ];
    for (flag, values, least, most) in lists {
        if let Some(value) = values.iter().find(|value| !(least..=most).contains(*value)) {
            return Err(Error::Usage(format!(
                "'{flag}' must be from {least} to {most}, got '{value}'"
            )));
        }
    }
    let pairs = axes.n_pg.iter().flat_map(|pair| [pair.0, pair.1]);
    if let Some(value) = pairs.max().filter(|value| *value > TOKENS_MAX) {
        return Err(Error::Usage(format!(
            "'-pg' must be at most {TOKENS_MAX}, got '{value}'"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(line: &str) -> Result<Plan> {
        let words = words::sort(line.split_whitespace().map(OsString::from))?;
        let named = std::iter::once("bench").chain(words.iter().map(String::as_str));
        let shown: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        plan(BenchFlags::try_parse_from(named).map_err(|error| say(&error, &shown))?)
    }

    fn refused(line: &str) -> String {
        plan_of(line)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn every_flag_of_llama_bench_is_understood() {
        let line = "--numa distribute -r 3 --prio 1 --delay 2 -o csv -oe json -v --progress \
                    --no-warmup -fitt 0 -fitc 0 -m a,b -hf c/d -hff e -hft f --offline -p 16-64*2 \
                    -n 1,2 -pg 8,2 -d 0-4+2 -b 32 -ub 16 -ctk q8_0 -ctv f16 -t 1-2 -C 0x3 \
                    --cpu-strict 1 --poll 0 -ngl -1,99 -ncmoe 2 -sm row -mg 0 -nkvo 0,1 -fa on,off \
                    -dev none -lm mmap -lzm off -embd 1 -ts 3/1 -ot a=CPU;b=CPU -nopo 1 \
                    --no-host 1 --repack 0";
        let plan = plan_of(line).unwrap();
        let axes = &plan.axes;
        assert_eq!(plan.models.paths, ["a", "b"]);
        assert_eq!(
            plan.models.repositories,
            [("c/d".to_owned(), Some("e".to_owned()))]
        );
        assert_eq!((plan.runs.repetitions, plan.process.priority), (3, 1));
        assert_eq!(axes.n_prompt, [16, 32, 64]);
        assert_eq!(
            (&axes.n_depth[..], &axes.n_gpu_layers[..]),
            (&[0, 2, 4][..], &[-1, 99][..])
        );
        assert_eq!(
            (&axes.flash_attn[..], &axes.no_kv_offload[..]),
            (&[1, 0][..], &[false, true][..])
        );
        assert_eq!(
            (axes.overrides[0].as_str(), axes.tensor_split[0].as_str()),
            ("a=CPU;b=CPU", "3.00/1.00")
        );
        assert_eq!(
            (plan.results.stdout, plan.results.stderr),
            (Some(Format::Csv), Some(Format::Json))
        );
        let other = "--n_prompt 5 --n-prompt=7 --batch_size 9";
        assert_eq!(plan_of(other).unwrap().axes.n_prompt, [5, 7]);
    }

    #[test]
    fn without_flags_it_measures_what_llama_bench_does() {
        let plan = plan_of("-m a").unwrap();
        assert_eq!((plan.runs.repetitions, plan.runs.warm_up), (5, true));
        assert_eq!(
            (&plan.axes.n_prompt[..], &plan.axes.n_gen[..]),
            (&[512][..], &[128][..])
        );
        assert!(plan.budgets.is_empty() && !plan.stock);
        assert_eq!(plan.results.stdout, Some(Format::Md));
    }

    #[test]
    fn budgets_page_weights_and_kv_unless_one_is_named() {
        let pages = |line: &str| {
            let paging = plan_of(line).unwrap().paging;
            (paging.weights, paging.kv)
        };
        assert_eq!(pages("--vram-budgets 10%,2G"), (true, true));
        assert_eq!(pages("--vram-budget 10% --paged-kv"), (false, true));
        assert_eq!(pages("--dynamic-layers"), (true, false));
        let plan = plan_of("--dynamic-layers").unwrap();
        assert_eq!(plan.budgets, [("auto".to_owned(), Budget::Auto)]);
    }

    #[test]
    fn who_computes_what_is_cold_is_a_list() {
        let cold = |line: &str| plan_of(line).unwrap().cold;
        assert_eq!(cold("--vram-budgets 10%"), [Cold::Auto]);
        let all = [Cold::Stream, Cold::Cpu, Cold::Auto];
        assert_eq!(cold("--dynamic-layers --cold stream,cpu --cold auto"), all);
    }

    #[test]
    fn a_file_has_the_format_that_its_name_ends_in() {
        let results = |line: &str| plan_of(line).unwrap().results;
        let both = results("--output-file a.jsonl");
        assert_eq!(both.file.unwrap().1, Format::Jsonl);
        assert_eq!(both.stdout, Some(Format::Md));
        assert_eq!(
            results("--output-file a.csv -o sql").file.unwrap().1,
            Format::Sql
        );
        assert_eq!(results("-o none").stdout, None);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (line, parts) in [
            (
                "--n-promt 5",
                &["--n-promt", "did you mean '--n-prompt'"][..],
            ),
            ("-ctkk f16", &["did you mean '-ctk'"]),
            ("model.gguf", &["model.gguf", "-m"]),
            ("-p", &["'-p' needs a value"]),
            ("-p x", &["'-p' got 'x'", "ranges"]),
            ("-p -n", &["'-p' got '-n'"]),
            ("-ctk q9", &["'-ctk' got 'q9'", "q8_0"]),
            ("-b 0", &["'-b' must be from 1"]),
            ("-t 9999", &["'-t'", "512"]),
            ("-r 0", &["'-r' got '0'"]),
            ("-o results.csv", &["'-o'", "--output-file"]),
            ("-fitt 512", &["-fitt 512", "--vram-budgets"]),
            ("-rpc a:1", &["-rpc"]),
            ("--stock", &["--stock", "--vram-budgets"]),
            ("--vram-budgets 10%,lots", &["'lots'", "--vram-budgets"]),
            ("--vram-budgets 0%", &["more than zero"]),
            ("--pin-layers 1", &["--pin-layers"]),
            ("--depth-dir .", &["--depth-dir", "-d"]),
            ("-d 0 --depth-dir .", &["a depth to keep"]),
            ("--cold cpu", &["--cold", "paged weights"]),
            ("--paged-kv --cold cpu", &["--cold", "paged weights"]),
            (
                "--dynamic-layers --cold gpu",
                &["'gpu'", "--cold", "stream"],
            ),
            (
                "--vram-budgets 1G --dynamic-layers --kv-page-size 64",
                &["--kv-page-size"],
            ),
            (
                "--vram-budgets 1G --spill-dir /nonexistent",
                &["/nonexistent", "--spill-dir"],
            ),
            (
                "--vram-budget-file a",
                &["--vram-budget-file", "--vram-budgets"],
            ),
            ("--verbose=1", &["takes no value"]),
        ] {
            let sentence = refused(line);
            for part in parts {
                assert!(
                    sentence.contains(part),
                    "'{part}' is not in: {sentence} ({line})"
                );
            }
        }
    }

    #[test]
    fn help_names_every_flag_in_80_columns() {
        let text = help(Page::new(80, false));
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        for (short, long) in words::SHORT {
            assert!(text.contains(short) && text.contains(long), "{short}");
        }
    }
}
