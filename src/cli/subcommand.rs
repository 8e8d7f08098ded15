//! `rpaged-cli plan …` and `rpaged-cli inspect …`: their own flags are clap's, the rest of
//! the words are those of a run.

use std::ffi::OsString;
use std::io::Write;

use clap::Parser;

use super::{Command, Config, Request, flags, words};
use crate::error::{Error, Result};
use crate::llama::download::{HeaderFolder, remove_headers};
use crate::llama::{self, OptionInfo};
use crate::session::signal;
use crate::telemetry::metrics;

/// The command line of a subcommand, taken apart.
pub struct Split<F> {
    /// Its own flags.
    pub flags: F,
    /// The rest.
    pub rest: Vec<OsString>,
}

/// Takes the flags of `F` out of `args`; None when a help was asked for and printed.
///
/// # Errors
/// `Usage` when a value is wrong or missing.
pub fn split<F: Parser>(args: Vec<OsString>, options: &[OptionInfo]) -> Result<Option<Split<F>>> {
    let command = F::command();
    let takes_value = |name: &str| {
        let name = name.strip_prefix("--")?;
        let mut arguments = command.get_arguments();
        let found = arguments.find(|argument| argument.get_long() == Some(name))?;
        Some(found.get_action().takes_values())
    };
    let mut own = vec![OsString::from("rpaged-cli")];
    let mut rest = Vec::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy().into_owned();
        if text == "--help" || text == "-h" {
            print(&F::command().render_long_help().to_string())?;
            return Ok(None);
        }
        let name = text.split_once('=').map_or(&*text, |(name, _)| name);
        if let Some(takes_value) = takes_value(name) {
            let next = takes_value && !text.contains('=');
            own.push(arg);
            own.extend(next.then(|| args.next()).flatten());
            continue;
        }
        let option = options.iter().find(|option| option.is_spelled(&text));
        let values = option.map_or(0, |option| option.arity.count());
        let value = flags::OwnFlags::takes_value(name) == Some(true) && !text.contains('=');
        rest.push(arg);
        rest.extend(args.by_ref().take(values.max(usize::from(value))));
    }
    let flags = F::try_parse_from(own).map_err(|error| complaint(&error))?;
    Ok(Some(Split { flags, rest }))
}

/// clap's complaint as one sentence of ours.
fn complaint(error: &clap::Error) -> Error {
    use clap::error::ContextKind;
    let text = |kind| error.get(kind).map(ToString::to_string);
    let option = text(ContextKind::InvalidArg).unwrap_or_default();
    let option = option.split_whitespace().next().unwrap_or("an option");
    let reason = std::error::Error::source(error).map(ToString::to_string);
    let reason = reason.unwrap_or_else(|| error.kind().to_string());
    if error.kind() == clap::error::ErrorKind::ArgumentConflict {
        let other = text(ContextKind::PriorArg).unwrap_or_default();
        let other = other.split_whitespace().next().unwrap_or("another option");
        return Error::Usage(format!(
            "'{option}' and '{other}' cannot be combined; give one of them"
        ));
    }
    Error::Usage(match text(ContextKind::InvalidValue) {
        Some(value) if !value.is_empty() => format!("option '{option}' got '{value}': {reason}"),
        _ => format!("option '{option}' needs a value"),
    })
}

/// The configuration of a run with these words, in which weights and KV cache are paged
/// unless they say otherwise; and where the header lies of a model that lies elsewhere.
///
/// # Errors
/// Whatever a run would say of them.
pub fn resolve(
    mut args: Vec<OsString>,
    options: Vec<OptionInfo>,
    what: &str,
) -> Result<(Config, Option<HeaderFolder>)> {
    // Whether the model has a chat template is no question here.
    args.push("-no-cnv".into());
    let options_of_words = words::sort(args.iter().cloned(), &options)?;
    if options_of_words.prints.is_some() {
        return Err(Error::Usage(format!(
            "'{what}' prints one thing; see rpaged-cli {what} --help"
        )));
    }
    let Command::Run(mut request) = super::parse(args, options)? else {
        return Err(Error::Usage(format!("'{what}' wants a model; give -m")));
    };
    refuse_metrics(&request, what)?;
    if !request.own.dynamic_layers && !request.own.paged_kv {
        request.own.dynamic_layers = true;
        request.own.paged_kv = true;
    }
    let headers = HeaderFolder::new();
    signal::end_with(|_| remove_headers());
    signal::install();
    let mut config = request.resolve(&metrics::RUN)?;
    let model = config.paging.as_ref().map(|paging| paging.model.as_path());
    let fetched = headers.as_ref().zip(model);
    if let Some((_, path)) = fetched.filter(|(folder, path)| path.starts_with(folder.path())) {
        let name = path.file_name().unwrap_or_default();
        config.model_name = name.to_string_lossy().into_owned();
    }
    Ok((config, headers))
}

fn refuse_metrics(request: &Request, what: &str) -> Result<()> {
    let flags = ["--metrics", "--metrics-file"];
    let given = |flag: &&&str| {
        request
            .own
            .on_command_line
            .iter()
            .any(|word| word == **flag)
    };
    match flags.iter().find(given) {
        Some(flag) => Err(Error::Usage(format!(
            "'{flag}' belongs to a run, and '{what}' runs nothing; use --json"
        ))),
        None => Ok(()),
    }
}

/// llama.cpp is to be silent about what is only rehearsed, unless somebody wants to know.
pub fn quieten(args: &mut Vec<OsString>) {
    let given = |arg: &OsString| {
        let verbose = ["-lv", "--verbosity", "--log-verbosity", "-v", "--verbose"];
        verbose.iter().any(|word| arg == word)
    };
    if !args.iter().any(given) {
        args.extend(["-lv".into(), "0".into()]);
    }
}

/// Prints to standard output.
///
/// # Errors
/// `OutputClosed` when nobody reads it, `Failed` when it cannot be written.
pub fn print(text: &str) -> Result<()> {
    llama::log::stop();
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Error::OutputClosed,
        _ => Error::Failed(format!("could not write to standard output: {error}")),
    })
}

/// Says a sentence on standard error.
pub fn say(sentence: &str) {
    // That nobody may read it is no failure.
    drop(std::io::stderr().write_all(format!("{sentence}\n").as_bytes()));
}

/// Prints a value as one JSON object.
///
/// # Errors
/// As `print`.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::Bug(format!("no JSON can be made of it: {error}")))?;
    print(&format!("{text}\n"))
}
