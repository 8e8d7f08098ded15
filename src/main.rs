//! `rpaged-cli`: parse, run, map an error to an exit code.

use std::io::Write;
use std::panic::{PanicHookInfo, catch_unwind, set_hook};
use std::process::ExitCode;

use rpaged::error::Error;
use rpaged::session::signal;
use rpaged::telemetry::metrics;
use rpaged::{cli, telemetry};

/// Says something on standard error; that nobody may read it is no further failure.
fn say(sentence: &str) {
    if !metrics::RUN.is_on_stderr() {
        // In one piece, so that nothing comes between.
        drop(std::io::stderr().write_all(format!("{sentence}\n").as_bytes()));
    }
}

/// One line in place of a backtrace; the exit code is chosen where the panic is caught.
fn report_panic(info: &PanicHookInfo<'_>) {
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let payload = info.payload();
    let literal = payload.downcast_ref::<&str>().copied();
    let what = literal.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let what = what.unwrap_or("no message");
    let sentence = format!("a bug in rpaged, please report it: {what} ({place})");
    if metrics::RUN.is_on() {
        metrics::RUN.error(&sentence, 70);
    }
    say(&format!("error: {sentence}"));
}

fn main() -> ExitCode {
    set_hook(Box::new(report_panic));
    signal::ignore_file_size_limit();
    let result = catch_unwind(|| cli::run(std::env::args_os().skip(1)));
    // The hook has said what a panic was about.
    let error = match result {
        Ok(result) => result.err(),
        Err(_) => Some(Error::Bug(String::new())),
    };
    if let Some(complaint) = telemetry::finish(error.as_ref()) {
        say(&complaint);
    }
    match error {
        None => ExitCode::SUCCESS,
        Some(error) => {
            let sentence = error.to_string();
            if !sentence.is_empty() && !error.is_wanted() {
                say(&format!("error: {sentence}"));
            }
            ExitCode::from(error.exit_code())
        }
    }
}
