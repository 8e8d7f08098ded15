//! The loop that completes a prompt, with llama-completion's rules.
//!
//! A round decodes the tokens of the round before, then takes the next tokens: from the
//! prompt, a batch at a time, and when it is used up, one from the sampler. What was taken
//! is shown at once, decoded in the next round:
//!
//! ```text
//!   prompt batch ─► show ─► decode ─► prompt batch ─► show ─► decode ─► sample ─► show ─► ...
//! ```

use super::boundary::Boundary;
use super::generator::Generator;
use super::{output, signal};
use crate::error::{Error, Result};
use crate::llama::{Decoded, Session, Settings, Token, log};

/// Tokens that are looked at for a string that ends the generation.
const TAIL_TOKENS: i32 = 32;
/// Bytes by which such a string may end before the text's end: the token that completes
/// it may bring a few letters more.
const TAIL_SLACK: usize = 2;
/// Tokens of the context that a prompt must leave free.
const RESERVE: usize = 4;

/// What to generate.
pub(super) struct Job {
    settings: Settings,
    prompt: Vec<Token>,
    /// Tokens of the prompt that survive a shift of the context.
    keep: i32,
    antiprompts: Vec<Vec<u8>>,
    /// Those that are one token.
    antiprompt_tokens: Vec<Token>,
}

impl Job {
    /// Tokenises the prompt and logs what will be done.
    ///
    /// # Errors
    /// `Failed` when the prompt does not fit the context, `Usage` when there is none.
    pub fn new(session: &Session, settings: Settings) -> Result<Self> {
        if !session.has_encoder() && session.adds_eos() {
            return Err(Error::Failed(
                "this model ends every text it reads, so there is nothing to complete".into(),
            ));
        }
        let n_ctx = session.n_ctx();
        if n_ctx > session.n_ctx_train() {
            log::warn(format!(
                "llama_completion: model was trained on only {} context tokens ({n_ctx} given)\n",
                session.n_ctx_train()
            ));
        }
        let params = session.params();
        log::info("\n");
        log::info(format!("{}\n", params.system_info()?));
        log::info("\n");

        let adds_bos = session.adds_bos() && !settings.use_jinja;
        let text = params.prompt()?;
        let mut prompt = session.tokenize(&text, true)?;
        log::debug(|| format!("tokens: {}\n", session.tokens_text(&prompt)));
        if prompt.is_empty() {
            if !adds_bos {
                return Err(Error::Usage(
                    "the prompt is empty; give one with -p or -f".into(),
                ));
            }
            prompt.push(session.bos());
        }
        if prompt.len() > n_ctx.saturating_sub(RESERVE) {
            return Err(Error::Failed(format!(
                "prompt is too long ({} tokens, max {}); raise -c",
                prompt.len(),
                n_ctx.saturating_sub(RESERVE)
            )));
        }
        let length = i32::try_from(prompt.len()).unwrap_or(i32::MAX);
        let keep = match settings.n_keep {
            all if all < 0 || all > length => length,
            some => some + i32::from(adds_bos),
        };
        if settings.verbose_prompt {
            log_prompt(session, &text, &prompt, keep, i32::from(adds_bos))?;
        }
        let antiprompts = params.antiprompts()?;
        let mut antiprompt_tokens = Vec::new();
        for antiprompt in &antiprompts {
            if let [token] = session.tokenize(antiprompt, false)?[..] {
                antiprompt_tokens.push(token);
            }
        }
        log_plan(session, &settings, keep)?;
        Ok(Self {
            settings,
            prompt,
            keep,
            antiprompts,
            antiprompt_tokens,
        })
    }

    /// Length of the prompt, in tokens.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt.len()
    }

    /// Whether the text so far ends in a string that ends the generation.
    fn is_stopped(&self, session: &mut Session) -> Result<bool> {
        if self.antiprompts.is_empty() {
            return Ok(false);
        }
        let tail = session.last_text(TAIL_TOKENS)?;
        if self
            .antiprompts
            .iter()
            .any(|antiprompt| ends_in(&tail, antiprompt))
        {
            return Ok(true);
        }
        let last = session.last_token().filter(|_| !tail.is_empty());
        Ok(last.is_some_and(|last| self.antiprompt_tokens.contains(&last)))
    }
}

/// Whether `wanted` occurs at the end of `tail`, give or take [`TAIL_SLACK`] bytes.
fn ends_in(tail: &[u8], wanted: &[u8]) -> bool {
    let start = tail.len().saturating_sub(wanted.len() + TAIL_SLACK);
    wanted.is_empty()
        || tail[start..]
            .windows(wanted.len())
            .any(|window| window == wanted)
}

fn log_prompt(
    session: &Session,
    text: &[u8],
    prompt: &[Token],
    keep: i32,
    adds_bos: i32,
) -> Result<()> {
    let piece = |token: Token| -> Result<String> {
        Ok(String::from_utf8_lossy(&session.piece(token, true)?).into_owned())
    };
    log::info(format!(
        "llama_completion: prompt: '{}'\n",
        String::from_utf8_lossy(text)
    ));
    log::info(format!(
        "llama_completion: number of tokens in prompt = {}\n",
        prompt.len()
    ));
    for &token in prompt {
        log::info(format!("{token:6} -> '{}'\n", piece(token)?));
    }
    if keep > adds_bos {
        log::info("llama_completion: static prompt based on n_keep: '");
        for &token in prompt.iter().take(usize::try_from(keep).unwrap_or(0)) {
            log::cont(piece(token)?);
        }
        log::cont("'\n");
    }
    log::info("\n");
    Ok(())
}

fn log_plan(session: &Session, settings: &Settings, keep: i32) -> Result<()> {
    log::info(format!("sampler seed: {}\n", session.seed()));
    log::info(format!(
        "sampler params: \n{}\n",
        session.params().sampling_text()?
    ));
    log::info(format!("sampler chain: {}\n", session.sampler_text()));
    log::info(format!(
        "generate: n_ctx = {}, n_batch = {}, n_predict = {}, n_keep = {keep}\n",
        session.n_ctx(),
        settings.n_batch,
        settings.n_predict,
    ));
    log::info("\n");
    Ok(())
}

/// Where the loop stands.
struct Progress {
    /// What the context holds.
    context: Generator,
    /// Tokens of the prompt that were taken.
    consumed: usize,
    /// Tokens that may still be generated; negative: no bound.
    remaining: i64,
    /// Tokens generated.
    generated: usize,
    /// What the next round decodes.
    batch: Vec<Token>,
}

/// Completes the prompt; returns how many tokens were generated.
///
/// # Errors
/// `Interrupted` and `OutputClosed` when asked to stop, else what the model or the device
/// failed with.
pub(super) fn complete(session: &mut Session, job: &Job, boundary: &mut Boundary) -> Result<usize> {
    let mut colour = output::Colour::prompt(job.settings.use_color);
    let mut prompt = job.prompt.clone();
    if session.has_encoder() {
        prompt = encode(session, &prompt)?;
    }
    let mut at = Progress {
        context: Generator::default(),
        consumed: 0,
        remaining: i64::from(job.settings.n_predict),
        generated: 0,
        batch: Vec::with_capacity(prompt.len().min(batch_max(session, &job.settings))),
    };
    let mut display = job.settings.display_prompt;
    while at.remaining != 0 {
        if !at.batch.is_empty() {
            boundary.before_decode(session.device());
            if !advance(session, job, &mut at)? {
                break;
            }
        }
        at.batch.clear();
        take(session, job, &prompt, &mut at)?;
        if let ([token], true) = (&at.batch[..], at.generated > 0) {
            boundary.token(session.device(), *token);
        }
        if display {
            for &token in &at.batch {
                output::bytes(&session.piece(token, job.settings.special)?);
            }
        }
        output::check()?;
        if at.consumed < prompt.len() {
            continue;
        }
        colour.reset();
        display = true;
        let stopped = job.is_stopped(session)?;
        if at.batch.last().is_some_and(|&token| session.is_end(token)) {
            output::text(" [end of text]\n");
            break;
        }
        if stopped {
            break;
        }
    }
    Ok(at.generated)
}

/// Tokens that one decode takes at most. The context may hold more than its batches do:
/// its size is rounded up, that of the batch is not.
fn batch_max(session: &Session, settings: &Settings) -> usize {
    let asked = usize::try_from(settings.n_batch).unwrap_or(1);
    asked.min(session.n_batch()).max(1)
}

/// Runs the encoder over the prompt; returns what the decoder starts with.
fn encode(session: &mut Session, prompt: &[Token]) -> Result<Vec<Token>> {
    if !session.has_decoder() {
        return Err(Error::Failed(
            "this model has an encoder but no decoder, so it cannot write".into(),
        ));
    }
    match session.encode(prompt)? {
        Decoded::Done => Ok(vec![session.decoder_start()]),
        Decoded::Aborted => Err(interrupted()),
    }
}

fn interrupted() -> Error {
    match signal::asked() {
        Some(signal) => Error::Interrupted { signal },
        None => Error::Bug("the computation stopped, and nobody had asked for it".into()),
    }
}

/// Decodes the batch, after making room for it; false when the context is full.
fn advance(session: &mut Session, job: &Job, at: &mut Progress) -> Result<bool> {
    let n_ctx = session.n_ctx();
    let most = n_ctx.saturating_sub(RESERVE).max(1);
    if at.batch.len() > most {
        log::warn(format!(
            "<<input too long: skipped {} tokens>>",
            at.batch.len() - most
        ));
        at.batch.truncate(most);
    }
    let count = i32::try_from(at.batch.len()).unwrap_or(i32::MAX);
    let size = i32::try_from(n_ctx).unwrap_or(i32::MAX);
    if at.context.past().saturating_add(count) >= size {
        if !job.settings.ctx_shift {
            log::warn("\n\nllama_completion: context full, --context-shift is off: stopping\n");
            return Ok(false);
        }
        if job.settings.n_predict == -2 {
            log::warn("\n\nllama_completion: context full and -n is -2: stopping\n");
            return Ok(false);
        }
        let discard = (at.context.past() - job.keep) / 2;
        at.context.shift(session, job.keep, discard)?;
    }
    if signal::asked().is_some() || at.context.feed(session, &at.batch)? == Decoded::Aborted {
        return Err(interrupted());
    }
    let past = at.context.past();
    if job.settings.n_print > 0 && past % job.settings.n_print == 0 {
        log::debug(|| format!("\nTokens consumed so far = {past} / {n_ctx}\n"));
    }
    Ok(true)
}

/// Fills the batch: from the prompt, or with one token from the sampler.
fn take(session: &mut Session, job: &Job, prompt: &[Token], at: &mut Progress) -> Result<()> {
    if at.consumed >= prompt.len() {
        let token = at.context.next(session)?;
        at.batch.push(token);
        at.remaining -= 1;
        at.generated += 1;
        return Ok(());
    }
    let end = prompt
        .len()
        .min(at.consumed + batch_max(session, &job.settings));
    for &token in &prompt[at.consumed..end] {
        // The penalties look at the prompt too, the grammar does not.
        session.accept(token, false)?;
        at.batch.push(token);
    }
    at.consumed = end;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_text_is_found_with_slack() {
        assert!(ends_in(b"and so on.", b"on."));
        assert!(ends_in(b"and so on.\n\n", b"on."));
        assert!(!ends_in(b"and so on.\n\nx", b"on."));
        assert!(ends_in(b"abc", b""));
        assert!(!ends_in(b"a", b"abc"));
        assert!(ends_in(b"", b""));
    }
}
