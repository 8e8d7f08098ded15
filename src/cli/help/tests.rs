//! The texts, against the flags there are and against the program's own parser.

use std::ffi::OsString;

use clap_complete::Shell;

use super::*;
use crate::cli::{self, Command};

fn options() -> Vec<OptionInfo> {
    llama::log::start();
    llama::options().unwrap()
}

fn text(about: &About, width: usize) -> String {
    help(&options(), about, Page::new(width, false))
}

/// The words of a command line, as a shell would see them, up to a pipe.
fn words(line: &str) -> Vec<OsString> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for letter in line.chars() {
        match letter {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            letter => word.push(letter),
        }
    }
    words.push(word);
    let end = words
        .iter()
        .position(|word| ["|", ">>", "2>&1"].contains(&word.as_str()));
    words.truncate(end.unwrap_or(words.len()));
    words.into_iter().map(OsString::from).collect()
}

#[test]
fn every_spelling_heads_one_entry_of_the_whole_help() {
    let options = options();
    let text = text(&About::Everything, 400);
    for spelling in spellings(&options) {
        let heads = text.lines().filter(|line| line.starts_with("  -"));
        let count = heads
            .flat_map(|line| line.split([' ', ',']))
            .filter(|word| *word == spelling)
            .count();
        assert_eq!(count, 1, "{spelling}");
    }
}

#[test]
fn nothing_is_wider_than_the_terminal() {
    for width in [40, 60, 80, 100] {
        for about in [About::Most, About::Everything, About::Topic(Topic::Chat)] {
            for line in text(&about, width).lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
        }
    }
}

#[test]
fn the_short_help_fits_two_screens_and_shows_ours_first() {
    let text = text(&About::Most, 80);
    assert!(text.lines().count() <= 120, "{}", text.lines().count());
    for spelling in OwnFlags::spellings()
        .iter()
        .filter(|name| *name != "--demo")
    {
        assert!(text.contains(&format!("  {spelling}")), "{spelling}");
    }
    let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("no '{what}'"));
    assert!(place("--vram-budget SIZE") < place("Sampling"));
    assert!(place("--top-k") < place("--help-all"));
}

#[test]
fn one_flag_and_one_topic_can_be_asked_for() {
    let one = text(&About::Option("-ngl".to_owned()), 80);
    assert!(
        one.contains("-ngl, --gpu-layers, --n-gpu-layers N"),
        "{one}"
    );
    assert!(
        one.contains("--help devices") && one.lines().count() < 12,
        "{one}"
    );
    let topic = text(&About::Topic(Topic::Sampling), 80);
    assert!(topic.contains("--mirostat N") && !topic.contains("--model"));
}

#[test]
fn every_example_is_understood() {
    let own = entries(&options());
    let own = own.iter().filter_map(|entry| entry.example.as_deref());
    let examples: Vec<_> = EXAMPLES.iter().map(|(line, _)| *line).chain(own).collect();
    assert!(examples.len() > 20);
    for line in examples {
        let words = words(line);
        assert_eq!(words[0], "rpaged-cli", "{line}");
        if ["bench", "plan", "inspect"]
            .iter()
            .any(|first| words[1] == *first)
        {
            // Their flags are their own; their tests read them.
            continue;
        }
        match cli::parse(words[1..].iter().cloned(), options()) {
            Ok(Command::Run(request)) => request.own.check_needs().unwrap(),
            Ok(Command::Print(_)) => {}
            Err(error) => panic!("{line}: {error}"),
        }
    }
}

#[test]
fn completions_know_flags_words_and_files() {
    let options = options();
    let bash = completion(&options, Shell::Bash);
    for word in [
        " --dynamic-layers ",
        " -ngl ",
        " -no-cnv ",
        " --completion ",
        "q8_0",
    ] {
        assert!(bash.contains(word), "{word}");
    }
    let zsh = completion(&options, Shell::Zsh);
    assert!(zsh.contains("'-ctk=[") && zsh.contains("--model=[") && zsh.contains("_files"));
    let fish = completion(&options, Shell::Fish);
    assert!(fish.contains("-s m -l model ") && fish.contains(" -o ngl"));
    let power = completion(&options, Shell::PowerShell);
    assert!(power.contains("'--paged-kv'") && power.contains("'-ngl'"));
    for script in [bash, zsh, fish, power] {
        assert!(!script.contains('\u{e000}'));
    }
}

#[test]
fn the_manual_page_has_every_flag() {
    let options = options();
    let page = manual(&options).unwrap();
    assert!(page.contains(".SH PAGING") && page.contains(".SH \"EXIT STATUS\""));
    for spelling in spellings(&options) {
        assert!(page.contains(&spelling.replace('-', "\\-")), "{spelling}");
    }
    assert!(!page.contains(['\u{e000}', '\u{e001}', '\u{e002}']));
}
