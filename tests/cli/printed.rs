//! Texts that are printed in place of a run: help, manual, completions, lists.

use super::{assert_refused, run, stdout};

#[test]
fn help_is_short_and_the_whole_of_it_has_everything() {
    let text = stdout(&run("--help"));
    assert!(text.lines().count() <= 120);
    for other in ["-h", "--usage -m nothing", "--help --demo", "-m x --help"] {
        assert_eq!(text, stdout(&run(other)), "{other}");
    }
    let all = stdout(&run("--help-all"));
    for line in text.lines().chain(all.lines()) {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let place = |what: &str| all.find(what).unwrap_or_else(|| panic!("no '{what}'"));
    assert!(place("--vram-budget SIZE") < place("--top-k"));
    for flag in [
        "--demo",
        "--mirostat",
        "-no-cnv",
        "--lora",
        "--spec-type",
        "--mmproj",
    ] {
        place(flag);
    }
    // Nothing but text where nobody sees a style.
    assert!(!text.contains('\x1b') && !all.contains('\x1b'));
}

#[test]
fn help_can_be_about_a_topic_or_a_flag() {
    let sampling = stdout(&run("--help sampling"));
    assert!(sampling.contains("--mirostat N") && !sampling.contains("--ctx-size"));
    for line in [
        "--help temp",
        "-h --temp",
        "--help=--temp",
        "--help=temperature",
    ] {
        let text = stdout(&run(line));
        assert!(text.contains("--temp"), "{line}: {text}");
    }
    assert!(stdout(&run("--help ngl")).starts_with("  -ngl, --gpu-layers"));
    assert_refused(&run("--help samplin"), 2, &["'samplin'", "'sampling'"]);
    assert_refused(&run("--help xyzzy"), 2, &["'xyzzy'", "paging, metrics"]);
}

#[test]
fn the_manual_page_and_completions_are_printed() {
    let page = stdout(&run("--man"));
    assert!(page.contains(".TH rpaged-cli 1") && page.contains(".SH SAMPLING"));
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&run(&format!("--completion {shell}")));
        assert!(
            script.contains("vram-budget") && script.contains("ngl"),
            "{shell}"
        );
    }
    let bash = stdout(&run("--completion=bash"));
    assert_eq!(bash, stdout(&run("--completion-bash")));
    assert!(bash.contains("complete -F _rpaged__cli"));
    assert_refused(&run("--completion bsh"), 2, &["'bsh'", "'bash'"]);
    assert_refused(&run("--completion"), 2, &["needs a value"]);
    assert_refused(&run("--help-all=x"), 2, &["takes no value"]);
}

#[test]
fn version_names_us_and_what_we_carry() {
    let text = stdout(&run("--version"));
    assert!(
        text.starts_with(concat!("rpaged-cli ", env!("CARGO_PKG_VERSION"))),
        "{text}"
    );
    assert!(
        text.contains("llama.cpp ") && text.contains("ggml "),
        "{text}"
    );
}

#[test]
fn lists_are_printed() {
    assert!(stdout(&run("--list-devices")).starts_with("Available devices:\n"));
    assert!(stdout(&run("--cache-list")).starts_with("number of models in cache: 0"));
}

/// What bash offers for the last of `words`; None where there is no bash.
#[cfg(unix)]
fn offered_by_bash(words: &str) -> Option<String> {
    let script = stdout(&run("--completion bash"));
    // What `complete` would do is done by hand; `compopt` works only inside of it.
    let ask = "compopt() { :; }; words=($LINE); last=$(( ${#words[@]} - 1 )); \
               COMP_WORDS=(\"${words[@]}\"); COMP_CWORD=$last; \
               _rpaged__cli rpaged-cli \"${words[$last]}\" \"${words[$last-1]}\"; \
               echo \"${COMPREPLY[*]}\"";
    let bash = std::process::Command::new("bash")
        .args(["--norc", "-c", &format!("{script}\n{ask}")])
        .env("LINE", words)
        .output();
    bash.ok().map(|output| stdout(&output).trim().to_owned())
}

#[cfg(unix)]
#[test]
fn bash_completes_flags_and_words() {
    for (words, offered) in [
        ("rpaged-cli --vram", "--vram-budget --vram-budget-file"),
        ("rpaged-cli --demo -ctk q8", "q8_0"),
        ("rpaged-cli --load-mode mm", "mmap mmap+mlock"),
        ("rpaged-cli --no-conv", "--no-conversation"),
        ("rpaged-cli -no-c", "-no-cnv"),
        ("rpaged-cli --completion z", "zsh"),
        ("rpaged-cli -ngl", "-ngl -ngld"),
    ] {
        if let Some(bash) = offered_by_bash(words) {
            assert_eq!(bash, offered, "{words}");
        }
    }
}
