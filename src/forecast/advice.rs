//! Which budget for what: the smallest one, one for a speed, one for a context; and what
//! more of it would bring.

use super::{Speed, Step, Subject, shares, speed};
use crate::calibration::Calibration;
use crate::cli::size::show_bytes;
use crate::error::{Error, Result};
use crate::pager::outlook::Outlook;
use crate::planner::cold::Shares;

/// Budgets are found to this many bytes, those of small models to fewer.
const GRAIN_BYTES: u64 = 1 << 20;

/// Bytes to which budgets up to `whole_bytes` are rounded.
fn grain(whole_bytes: u64) -> u64 {
    GRAIN_BYTES.min((whole_bytes / 64).max(1).next_power_of_two())
}

/// One budget, and what it brings.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The plan.
    pub outlook: Outlook,
    /// One token, when the context is full; None when a rate is not known.
    pub decode: Option<Speed>,
    /// A batch from an empty context on.
    pub prefill: Option<Speed>,
    /// Which share of the cold weights is the processor's; None where no device computes, or
    /// nothing that is cold can be the processor's.
    pub shares: Option<Shares>,
}

/// What a budget brings when the context holds `tokens`.
///
/// # Errors
/// `Memory` when there is no plan for it.
pub fn choice(
    subject: &Subject,
    rates: Option<&Calibration>,
    budget_bytes: u64,
    tokens: usize,
) -> Result<Choice> {
    let outlook = subject.outlook(budget_bytes, tokens)?;
    let decode = rates.and_then(|rates| speed(subject, &outlook, rates, Step::Decode { tokens }));
    let batch = subject.batch_tokens() as usize;
    // A prompt fills the context; its first batch has next to nothing there.
    let early = subject.outlook(budget_bytes, batch.min(tokens))?;
    let step = Step::Prefill { tokens: batch };
    let prefill = rates.and_then(|rates| speed(subject, &early, rates, step));
    let shares = rates.and_then(|rates| shares(subject, &outlook, rates, tokens));
    Ok(Choice {
        outlook,
        decode,
        prefill,
        shares,
    })
}

/// Budgets beside `budget_bytes` that are worth a look, in bytes, the smallest first: the
/// smallest that does, quarters of the way from there to that with which everything
/// stays, and a little more than the one in question.
pub fn neighbours(subject: &Subject, budget_bytes: u64, tokens: usize) -> Vec<u64> {
    let whole = subject.whole_bytes(tokens);
    let grain = grain(whole);
    let whole = whole.next_multiple_of(grain);
    let least = subject.minimum_bytes(tokens).next_multiple_of(grain);
    let way = whole.saturating_sub(least);
    let quarters = (0..=4).map(|quarter| least + way / 4 * quarter);
    let rounded = quarters.map(|bytes| bytes.next_multiple_of(grain).min(whole));
    let mut all: Vec<u64> = rounded.collect();
    // Quarters leave a rest that is less than a grain.
    if let Some(last) = all.last_mut() {
        *last = whole;
    }
    if (least..whole).contains(&budget_bytes) {
        all.push(budget_bytes);
        let more = (budget_bytes + way / 8).next_multiple_of(grain);
        all.push(more.min(whole));
    }
    all.sort_unstable();
    all.dedup();
    // What is next to the one in question says nothing new.
    let is_news = |bytes: u64| bytes.abs_diff(budget_bytes) > way / 32;
    all.retain(|bytes| [budget_bytes, least, whole].contains(bytes) || is_news(*bytes));
    all
}

/// The smallest budget that decodes at least so many tokens per second.
///
/// # Errors
/// `Usage` when no budget does, `Failed` when speed is not known.
pub fn for_speed(
    subject: &Subject,
    rates: &Calibration,
    wanted: f64,
    tokens: usize,
) -> Result<u64> {
    let at = |bytes: u64| {
        let outlook = subject.outlook(bytes, tokens)?;
        let found = speed(subject, &outlook, rates, Step::Decode { tokens });
        found.map(|found| found.tokens_per_second).ok_or_else(|| {
            Error::Failed(
                "the rate of the storage is not known: the model's file has no bytes to read"
                    .to_owned(),
            )
        })
    };
    let whole = subject.whole_bytes(tokens);
    let grain = grain(whole);
    let whole = whole.next_multiple_of(grain);
    let most = at(whole)?;
    if most < wanted {
        return Err(Error::Usage(format!(
            "no budget gives {wanted} tokens per second at {tokens} tokens of context: with \
             everything in memory ({}) it is {}; lower --for-speed or -c",
            show_bytes(whole),
            show_speed(most)
        )));
    }
    let mut least = subject.minimum_bytes(tokens).next_multiple_of(grain);
    if at(least)? >= wanted {
        return Ok(least);
    }
    let mut enough = whole;
    while enough.saturating_sub(least) > grain {
        let middle = (least + (enough - least) / 2).next_multiple_of(grain);
        if middle >= enough {
            break;
        }
        match at(middle)? >= wanted {
            true => enough = middle,
            false => least = middle,
        }
    }
    Ok(enough)
}

/// A speed in three digits.
pub fn show_speed(tokens_per_second: f64) -> String {
    let digits = match tokens_per_second {
        speed if speed >= 100.0 => 0,
        speed if speed >= 10.0 => 1,
        speed if speed >= 1.0 => 2,
        _ => 3,
    };
    format!("{tokens_per_second:.digits$} tokens/s")
}
