//! `rpaged-cli plan`: what a run would be, before it is.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Parser;

use super::size::show_bytes;
use super::subcommand::{print, print_json, quieten, resolve, say, split};
use crate::calibration::Calibration;
use crate::calibration::store::{self, Origin};
use crate::error::{Error, Result};
use crate::forecast::advice::{choice, for_speed, show_speed};
use crate::forecast::record::Forecast;
use crate::forecast::{Subject, table};
use crate::llama;
use crate::session::progress::Measuring;

/// Budgets up to this are printed in KiB.
const SMALL_BYTES: u64 = 64 << 20;

/// Says what stays in memory, what travels, how much memory that takes and how fast it
/// will be. Reads only the model's header; takes the same flags as a run.
#[derive(Clone, Debug, Parser)]
#[command(name = "rpaged-cli plan", disable_help_flag = true)]
#[command(args_override_self = true)]
#[command(
    after_help = "All other flags are those of a run: -m, -c, -ub, -ctk, -t, --vram-budget …"
)]
pub struct PlanFlags {
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,

    /// Print the smallest budget that runs, and nothing else.
    #[arg(long, conflicts_with_all = ["for_speed", "for_context"])]
    pub smallest: bool,

    /// Print the smallest budget that decodes so many tokens per second.
    #[arg(long, value_name = "TPS", value_parser = speed, allow_hyphen_values = true)]
    #[arg(conflicts_with = "for_context")]
    pub for_speed: Option<f64>,

    /// Print the smallest budget in which a context of so many tokens runs.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    pub for_context: Option<u32>,

    /// Tokens that the context holds in the plan (default: all that -c allows).
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    pub depth: Option<u32>,

    /// Measure this machine again; a few seconds.
    #[arg(long)]
    pub recalibrate: bool,

    /// The file with this machine's rates, in place of that in the cache folder.
    #[arg(long, value_name = "PATH", allow_hyphen_values = true)]
    pub calibration: Option<PathBuf>,

    /// Predict no speed, and measure nothing.
    #[arg(long, conflicts_with_all = ["for_speed", "recalibrate"])]
    pub no_speed: bool,
}

fn speed(text: &str) -> std::result::Result<f64, String> {
    let speed = text.trim().parse::<f64>().ok();
    speed
        .filter(|speed| speed.is_finite() && *speed > 0.0)
        .ok_or_else(|| "give tokens per second, as in 2.5".to_owned())
}

/// Does what `args` (behind the word `plan`) ask for.
///
/// # Errors
/// Whatever stands in its way.
pub fn run(args: Vec<OsString>) -> Result<()> {
    let options = llama::options()?;
    let Some(found) = split::<PlanFlags>(args, &options)? else {
        return Ok(());
    };
    let (flags, mut rest) = (found.flags, found.rest);
    quieten(&mut rest);
    if let Some(tokens) = flags.for_context {
        rest.extend(["-c".into(), tokens.to_string().into()]);
    }
    let (config, _headers) = resolve(rest, options, "plan")?;
    let subject = Subject::new(config)?;
    let most = usize::try_from(subject.facts.n_ctx).unwrap_or(usize::MAX);
    let tokens = flags.depth.map_or(most, |depth| depth as usize);
    if tokens > most {
        return Err(Error::Usage(format!(
            "'--depth' is {tokens}, and the context holds {most} tokens; raise -c"
        )));
    }
    if flags.smallest || flags.for_context.is_some() {
        return answer(
            &flags,
            &subject,
            subject.minimum_bytes(tokens),
            None,
            tokens,
        );
    }
    let rates = match flags.no_speed {
        true => None,
        false => calibrate_if_possible(&flags, &subject)?,
    };
    if let (Some(speed), Some(rates)) = (flags.for_speed, &rates) {
        let bytes = for_speed(&subject, rates, speed, tokens)?;
        return answer(&flags, &subject, bytes, Some(rates), tokens);
    }
    let budget = subject.budget_bytes();
    let forecast = Forecast::new(&subject, rates.as_ref(), budget, tokens)?;
    match flags.json {
        true => print_json(&forecast),
        false => print(&table::text(&forecast)),
    }
}

/// The machine's rates. A device may have no memory left to measure with, or fail: then there
/// are none, and a plan without speeds.
fn calibrate_if_possible(flags: &PlanFlags, subject: &Subject) -> Result<Option<Calibration>> {
    match calibrate(flags, subject) {
        Ok(rates) => Ok(Some(rates)),
        Err(error) if subject.paging.inner.is_some() && flags.for_speed.is_none() => {
            say(&format!("{error}; the plan foretells no speed"));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The answer to a question for one budget.
#[derive(serde::Serialize)]
struct Answer {
    budget_bytes: u64,
    context_tokens: u32,
    depth_tokens: usize,
    decode_tokens_per_second: Option<f64>,
}

fn answer(
    flags: &PlanFlags,
    subject: &Subject,
    bytes: u64,
    rates: Option<&Calibration>,
    tokens: usize,
) -> Result<()> {
    let choice = choice(subject, rates, bytes, tokens)?;
    let decode = choice.decode.map(|speed| speed.tokens_per_second);
    if flags.json {
        return print_json(&Answer {
            budget_bytes: bytes,
            context_tokens: subject.facts.n_ctx,
            depth_tokens: tokens,
            decode_tokens_per_second: decode,
        });
    }
    // As --vram-budget takes it, rounded up.
    let budget = match bytes {
        0..=SMALL_BYTES => format!("{}K", bytes.div_ceil(1 << 10)),
        _ => format!("{}M", bytes.div_ceil(1 << 20)),
    };
    let speed = decode.map_or_else(String::new, |speed| format!(", {}", show_speed(speed)));
    print(&format!(
        "--vram-budget {budget}   ({}, with {tokens} tokens of context{speed})\n",
        show_bytes(bytes)
    ))
}

/// The machine's rates; a line on a terminal says what is measured.
fn calibrate(flags: &PlanFlags, subject: &Subject) -> Result<Calibration> {
    let origin = Origin {
        file: flags.calibration.clone(),
        anew: flags.recalibrate,
    };
    let bar = Measuring::new(std::io::stderr().is_terminal());
    let found = store::rates(&subject.wanted(), &origin, |what| bar.say(what));
    bar.end();
    let (rates, notices) = found?;
    for notice in notices {
        say(&notice);
    }
    if rates.storage_bytes_per_second.is_none() && rates.link.is_none() {
        say(
            "the model's file has no bytes to read, so the storage was not measured: speeds are \
             known only where nothing travels",
        );
    }
    Ok(rates)
}
