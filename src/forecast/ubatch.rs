//! A larger ubatch where a prompt's weights cross a link: rehearsed with each size, before
//! anything is loaded.

use super::ROWS_PADDING;
use crate::device::PagingConfig;
use crate::device::rehearsal::Rehearsal;
use crate::error::Result;
use crate::llama::{self, Facts, Params, Settings, log};
use crate::planner::ubatch::{Choice, better, is_one_pass};

/// Sizes that are tried, by the usual one: 1024, 2048 and 4096 tokens for 512.
const FACTORS: [u32; 3] = [2, 4, 8];

/// llama.cpp's `-b` where nobody says it.
const BATCH_DEFAULT: i32 = 2048;
/// llama.cpp's `-ub` where nobody says it.
const UBATCH_DEFAULT: i32 = 512;

/// What the user has said; that stays as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given {
    /// `-b`.
    pub batch: bool,
    /// `-ub`.
    pub ubatch: bool,
}

impl Given {
    /// With what the settings show: one that differs from llama.cpp's default and is no word
    /// of the user's comes from a configuration file.
    #[must_use]
    pub fn or_by(self, settings: &Settings) -> Self {
        Self {
            batch: self.batch || settings.n_batch != BATCH_DEFAULT,
            ubatch: self.ubatch || settings.n_ubatch != UBATCH_DEFAULT,
        }
    }
}

/// A choice between two sizes, and for what.
struct Found {
    usual: Choice,
    best: Choice,
    prompt_tokens: u32,
    /// Tokens that may be generated after the prompt.
    generated_tokens: u32,
}

/// Raises the ubatch, and the batch around it, to what has the prompt, and the tokens that
/// are generated after it, take the fewest bytes over the link to a GPU; says so in the log.
/// Does nothing where the processor computes, nothing streams, the prompt is short, there is
/// a `--prompt-cache` or the user has said `-ub`.
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
    if !has_link || given.ubatch {
        return Ok(None);
    }
    // A rehearsal reads the vocabulary; most prompts are too short to need one.
    if is_one_pass(
        params.prompt()?.len(),
        settings.n_ubatch.min(settings.n_batch),
    ) {
        return Ok(None);
    }
    // A KV cache of a sliding window is as large as its ubatch asks for, so a state may not
    // load with another one; and what the state holds is not computed again.
    if !params.prompt_cache()?.is_empty() {
        return Ok(None);
    }
    // llama.cpp would say all about the model once more for each of them.
    let usual_verbosity = log::verbosity();
    log::set_verbosity(0);
    let found = choose(params, settings, paging, given, name);
    log::set_verbosity(usual_verbosity);
    let Some(found) = found? else {
        return Ok(None);
    };
    let (usual, best, prompt_tokens) = (found.usual, found.best, found.prompt_tokens);
    let ubatch = i32::try_from(best.ubatch_tokens).unwrap_or(i32::MAX);
    let batch = settings.n_batch.max(ubatch);
    params.set_batches(batch, ubatch);
    (settings.n_batch, settings.n_ubatch) = (batch, ubatch);
    let bytes = |choice: Choice| choice.run_bytes(prompt_tokens, found.generated_tokens);
    log::info(format!(
        "llama_completion: weights stream, so a prompt of {prompt_tokens} tokens is computed {} \
         at once: with up to {} tokens after it, {} MiB go over the link, and {} MiB with -ub {}\n",
        best.ubatch_tokens,
        found.generated_tokens,
        bytes(best) >> 20,
        bytes(usual) >> 20,
        usual.ubatch_tokens,
    ));
    Ok(Some(best))
}

/// The usual size, and a better one.
fn choose(
    params: &Params,
    settings: &Settings,
    paging: &PagingConfig,
    given: Given,
    name: &str,
) -> Result<Option<Found>> {
    let of = |ubatch: i32| rehearsed(params, settings.n_batch.max(ubatch), ubatch, paging, name);
    let Some((usual, facts)) = of(settings.n_ubatch)? else {
        return Ok(None);
    };
    let prompt_tokens = facts.n_prompt;
    // Without a bound, as many as the context has room for.
    let generated_tokens = u32::try_from(settings.n_predict)
        .unwrap_or_else(|_| facts.n_ctx.saturating_sub(prompt_tokens));
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
    let best = better(prompt_tokens, generated_tokens, usual, &others);
    Ok(best.map(|best| Found {
        usual,
        best,
        prompt_tokens,
        generated_tokens,
    }))
}

/// What a pass would stream with this ubatch when the context holds the prompt, and what
/// llama.cpp says; None when a full context does not fit, which is for the run itself to say.
fn rehearsed(
    params: &Params,
    batch: i32,
    ubatch: i32,
    paging: &PagingConfig,
    name: &str,
) -> Result<Option<(Choice, Facts)>> {
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
    let budget = paging.budget.bytes(rehearsal.index().bytes(), || u64::MAX);
    let most = usize::try_from(facts.n_ctx).unwrap_or(usize::MAX);
    let rows = usize::try_from(facts.n_prompt).unwrap_or(usize::MAX);
    let rows = rows.max(1).next_multiple_of(ROWS_PADDING).min(most);
    let whole_values = !facts.flash_attention;
    // What is generated fills the context, and the scratch stays.
    rehearsal.imagine_context(most, whole_values);
    if rehearsal.outlook(budget, outside).is_err() {
        return Ok(None);
    }
    rehearsal.imagine_context(rows, whole_values);
    let outlook = rehearsal.outlook(budget, outside).ok();
    Ok(outlook.map(|outlook| {
        let choice = Choice {
            // No more than the context has is computed at once.
            ubatch_tokens: facts.n_ubatch.max(1),
            streamed_bytes: outlook.streamed_bytes(),
        };
        (choice, facts)
    }))
}
