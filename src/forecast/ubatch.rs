//! A larger ubatch where a prompt's weights cross a link: rehearsed with each size, before
//! anything is loaded.

use super::ROWS_PADDING;
use crate::device::rehearsal::Rehearsal;
use crate::device::{Budget, PagingConfig};
use crate::error::Result;
use crate::llama::{self, Params, Settings, log};
use crate::planner::ubatch::{Choice, better};
use crate::telemetry::memory::share_of;

/// Sizes that are tried, by the usual one: 1024, 2048 and 4096 tokens for 512.
const FACTORS: [u32; 3] = [2, 4, 8];

/// What the user has said; that stays as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given {
    /// `-b`.
    pub batch: bool,
    /// `-ub`.
    pub ubatch: bool,
}

/// Raises the ubatch, and the batch around it, to what has the prompt take the fewest bytes
/// over the link to a GPU; says so in the log. Does nothing where the processor computes,
/// nothing streams, the prompt is not known or the user has said `-ub`.
///
/// # Errors
/// `Failed` when llama.cpp cannot copy its parameters.
pub fn raise(
    params: &mut Params,
    settings: &mut Settings,
    paging: &PagingConfig,
    given: Given,
    name: &str,
) -> Result<Option<Choice>> {
    let has_link = paging.weights && paging.device_with_memory().is_some();
    if !has_link || given.ubatch || params.prompt()?.is_empty() {
        return Ok(None);
    }
    // llama.cpp would say all about the model once more for each of them.
    let usual_verbosity = log::verbosity();
    log::set_verbosity(0);
    let found = choose(params, settings, paging, given, name);
    log::set_verbosity(usual_verbosity);
    let Some((usual, best, prompt_tokens)) = found? else {
        return Ok(None);
    };
    let ubatch = i32::try_from(best.ubatch_tokens).unwrap_or(i32::MAX);
    let batch = settings.n_batch.max(ubatch);
    params.set_batches(batch, ubatch);
    (settings.n_batch, settings.n_ubatch) = (batch, ubatch);
    log::info(format!(
        "llama_completion: weights stream, so a prompt of {prompt_tokens} tokens is computed {} \
         at once: it takes {} MiB over the link, with -ub {} it would take {} MiB\n",
        best.ubatch_tokens,
        best.prompt_bytes(prompt_tokens) >> 20,
        usual.ubatch_tokens,
        usual.prompt_bytes(prompt_tokens) >> 20,
    ));
    Ok(Some(best))
}

/// The usual size, a better one, and the tokens of the prompt.
fn choose(
    params: &Params,
    settings: &Settings,
    paging: &PagingConfig,
    given: Given,
    name: &str,
) -> Result<Option<(Choice, Choice, u32)>> {
    let of = |ubatch: i32| rehearsed(params, settings.n_batch.max(ubatch), ubatch, paging, name);
    let Some((usual, prompt_tokens)) = of(settings.n_ubatch)? else {
        return Ok(None);
    };
    if usual.streamed_bytes == 0 || usual.passes(prompt_tokens) < 2 {
        return Ok(None);
    }
    let batch_max = match given.batch {
        true => u32::try_from(settings.n_batch).unwrap_or(0),
        false => u32::MAX,
    };
    let mut others = Vec::new();
    for size in FACTORS.map(|factor| usual.ubatch_tokens.saturating_mul(factor)) {
        // One that holds the prompt is as good as any larger one.
        let enough = others
            .last()
            .is_some_and(|before: &Choice| before.passes(prompt_tokens) < 2);
        if size > batch_max || enough {
            continue;
        }
        let ubatch = i32::try_from(size).unwrap_or(i32::MAX);
        others.extend(of(ubatch)?.map(|(choice, _)| choice));
    }
    Ok(better(prompt_tokens, usual, &others).map(|best| (usual, best, prompt_tokens)))
}

/// What a pass would stream with this ubatch when the context holds the prompt, and the
/// prompt's tokens; None when it does not fit, which is for the run itself to say.
fn rehearsed(
    params: &Params,
    batch: i32,
    ubatch: i32,
    paging: &PagingConfig,
    name: &str,
) -> Result<Option<(Choice, u32)>> {
    let mut params = params.copy()?;
    params.set_batches(batch, ubatch);
    let Ok(rehearsal) = Rehearsal::new(paging.clone()) else {
        return Ok(None);
    };
    let Ok(facts) = llama::rehearse(params, &rehearsal, name) else {
        return Ok(None);
    };
    let notes = rehearsal.notes();
    let outside = facts.device_compute_bytes + notes.inner_bytes + notes.unpaged_bytes;
    let budget = match paging.budget {
        Budget::Bytes(bytes) => bytes,
        Budget::ModelShare(share) => share_of(rehearsal.index().bytes(), share),
        Budget::Auto => u64::MAX,
    };
    let most = usize::try_from(facts.n_ctx).unwrap_or(usize::MAX);
    let rows = usize::try_from(facts.n_prompt).unwrap_or(usize::MAX);
    let rows = rows.max(1).next_multiple_of(ROWS_PADDING).min(most);
    rehearsal.imagine_context(rows, !facts.flash_attention);
    let outlook = rehearsal.outlook(budget, outside).ok();
    Ok(outlook.map(|outlook| {
        let choice = Choice {
            // No more than the context has is computed at once.
            ubatch_tokens: facts.n_ubatch.max(1),
            streamed_bytes: outlook.streamed_bytes(),
        };
        (choice, facts.n_prompt)
    }))
}
