//! The command line: ours is clap's, the rest is read by llama.cpp's own parser; both are
//! typed first ([`Command`]), then resolved once into one [`Config`].

mod bench;
mod drafting;
pub mod flags;
pub mod help;
mod inspect;
mod metrics_file;
mod nearest;
mod paged;
mod plan;
mod printing;
mod resolve;
mod rpc;
pub mod size;
mod subcommand;
pub mod support;
pub mod values;
pub mod words;

pub(crate) use self::nearest::nearest;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::llama::{self, OptionInfo, Params, Settings};
use crate::session::demo::DemoModel;
use crate::session::{self, signal};
use crate::telemetry;
use crate::telemetry::metrics::{self, Metrics};

use flags::OwnFlags;
use metrics_file::MetricsFile;
pub use printing::{About, Print};
use words::Words;

/// What the command line asks for; nothing has been looked at yet.
pub enum Command {
    /// Print a text and end.
    Print(Print),
    /// Complete a prompt.
    Run(Box<Request>),
}

/// A completion as asked for.
pub struct Request {
    /// Our flags.
    pub own: OwnFlags,
    /// Upstream's flags.
    pub words: Words,
    /// Upstream's options, to which `words` refers.
    pub options: Vec<OptionInfo>,
}

/// What a run does with the prompt.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Completes it.
    Complete,
    /// Chats at the terminal, beginning with it.
    Chat {
        /// Whether the terminal shows colours.
        colours: bool,
        /// Where what is typed is kept; None: where the user's data are.
        history: Option<PathBuf>,
    },
}

/// A completion with all questions answered.
pub struct Config {
    /// llama.cpp's parameters.
    pub params: Params,
    /// What a session needs of them.
    pub settings: Settings,
    /// What is done with the prompt.
    pub mode: Mode,
    /// The paging asked for.
    pub paging: Option<crate::device::PagingConfig>,
    /// The model's name for messages.
    pub model_name: String,
    /// Whether a progress bar may be drawn.
    pub progress: bool,
    /// Whether this is the show of `--demo` without a prompt, which closes with three
    /// lines.
    pub show: bool,
    /// The model of `--demo`; its file is there as long as this is.
    pub demo: Option<DemoModel>,
    /// The file that holds the budget.
    pub budget_file: Option<PathBuf>,
    /// The share of memory in use above which the budget shrinks.
    pub mem_pressure: f64,
    /// Where records go.
    pub metrics: &'static Metrics,
}

/// Reads the command line (without the program's name).
///
/// # Errors
/// `Usage` for what cannot be understood.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    options: Vec<OptionInfo>,
) -> Result<Command> {
    let words = words::sort(args, &options)?;
    if let Some(mut print) = words.prints.clone() {
        if let Print::Devices(servers) = &mut print {
            *servers = rpc::servers(&words, &options);
        }
        return Ok(Command::Print(print));
    }
    let own = OwnFlags::parse(&words.own)?;
    Ok(Command::Run(Box::new(Request {
        own,
        words,
        options,
    })))
}

/// Does what the command line (without the program's name) asks for.
///
/// # Errors
/// Whatever ended the run before its time.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Result<()> {
    llama::log::start();
    let mut args: Vec<OsString> = args.into_iter().collect();
    let first = args.first().and_then(|arg| arg.to_str());
    // llama.cpp's command line has no words without a dash: nothing is hidden by these.
    let result = match first {
        Some("bench") => bench::run(args.split_off(1)),
        Some("plan") => plan::run(args.split_off(1)),
        Some("inspect") => inspect::run(args.split_off(1)),
        _ => understand(args).and_then(|(command, file)| match command {
            Command::Print(what) => print(what),
            Command::Run(request) => {
                let config = request.resolve(&metrics::RUN)?;
                file.map_or(Ok(()), |file| file.begin(&metrics::RUN))?;
                session::run(config)
            }
        }),
    };
    // What is still queued comes before whatever the caller says about the end.
    llama::log::stop();
    result
}

/// Reads the command line, with metrics from the first moment: what is wrong with it is to
/// be an object as well. Returns the metrics' file too.
fn understand(args: Vec<OsString>) -> Result<(Command, Option<MetricsFile>)> {
    let options = llama::options()?;
    let wanted = words::metrics_wanted(&args, &options);
    metrics::RUN.set_form(wanted.pretty, 1);
    if wanted.on_stderr {
        catch_standard_error()?;
        signal::end_with(last_words);
    }
    let file = wanted
        .file
        .map(|path| MetricsFile::open(&path, &metrics::RUN))
        .transpose()?;
    if file.is_some() {
        signal::end_with(last_words);
    }
    // Not before: a handler writes an end of line where the terminal echoes "^C".
    signal::install();
    let command = parse(args, options)?;
    if let Command::Run(request) = &command {
        let own = &request.own;
        metrics::RUN.set_form(own.metrics_pretty, own.metrics_interval.unwrap_or(1));
    }
    Ok((command, file))
}

/// What is still to be written when a signal ends the process.
fn last_words(signal: u8) {
    llama::log::stop();
    telemetry::finish(Some(&Error::Interrupted { signal }));
}

#[cfg(unix)]
fn catch_standard_error() -> Result<()> {
    crate::telemetry::capture::start(&metrics::RUN)
        .map_err(|error| Error::Failed(format!("could not catch standard error: {error}")))
}

#[cfg(not(unix))]
fn catch_standard_error() -> Result<()> {
    Err(Error::NotBuilt(
        "'--metrics' is not built for this system yet; use --metrics-file".to_owned(),
    ))
}

fn print(what: Print) -> Result<()> {
    let text = match what {
        Print::Help(about) => help::help(&llama::options()?, &about, help::Page::for_stdout()),
        Print::Man => help::manual(&llama::options()?)?,
        Print::Completion(shell) => help::completion(&llama::options()?, shell),
        Print::Version => help::version()?,
        Print::Devices(servers) => {
            rpc::check(&servers)?;
            llama::device_list(&servers.join(","))?
        }
        Print::Cache => llama::cache_list()?,
    };
    print_text(&text)
}

fn print_text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => Error::OutputClosed,
            _ => Error::Failed(format!("could not write to standard output: {error}")),
        })
}
