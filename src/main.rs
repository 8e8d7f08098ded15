//! `rpaged-cli`: parse, run, map an error to an exit code.

use std::io::Write;
use std::panic::{PanicHookInfo, catch_unwind, set_hook};
use std::process::ExitCode;

use rpaged::cli;
use rpaged::error::Error;
use rpaged::session::signal;

/// Says what went wrong; that nobody may read standard error is no further failure.
fn say(sentence: &str) {
    // In one piece, so that nothing comes between.
    drop(std::io::stderr().write_all(format!("error: {sentence}\n").as_bytes()));
}

/// One line in place of a backtrace; the exit code is chosen where the panic is caught.
fn report_panic(info: &PanicHookInfo<'_>) {
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let payload = info.payload();
    let literal = payload.downcast_ref::<&str>().copied();
    let what = literal.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let what = what.unwrap_or("no message");
    say(&format!(
        "a bug in rpaged, please report it: {what} ({place})"
    ));
}

fn main() -> ExitCode {
    set_hook(Box::new(report_panic));
    signal::ignore_file_size_limit();
    let Ok(result) = catch_unwind(|| cli::run(std::env::args_os().skip(1))) else {
        return ExitCode::from(70);
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Both were asked for from outside: nobody needs to be told.
            if !matches!(error, Error::Interrupted { .. } | Error::OutputClosed) {
                say(&error.to_string());
            }
            ExitCode::from(error.exit_code())
        }
    }
}
