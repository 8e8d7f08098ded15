//! `rpaged-cli`: parse, run, map an error to an exit code.

use std::panic::{PanicHookInfo, catch_unwind, set_hook};
use std::process::ExitCode;

use rpaged::cli;
use rpaged::error::Error;

/// One line in place of a backtrace; the exit code is chosen where the panic is caught.
#[allow(clippy::print_stderr, reason = "the program's edge")]
fn report_panic(info: &PanicHookInfo<'_>) {
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let what = info.payload_as_str().unwrap_or("no message");
    eprintln!("error: a bug in rpaged, please report it: {what} ({place})");
}

#[allow(clippy::print_stderr, reason = "the program's edge")]
fn main() -> ExitCode {
    set_hook(Box::new(report_panic));
    let Ok(result) = catch_unwind(|| cli::run(std::env::args_os().skip(1))) else {
        return ExitCode::from(70);
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Both were asked for from outside: nobody needs to be told.
            if !matches!(error, Error::Interrupted { .. } | Error::OutputClosed) {
                eprintln!("error: {error}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}
