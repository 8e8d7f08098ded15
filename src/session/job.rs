//! What is to be generated: the prompt as tokens, and the rules for what follows it.

use std::path::PathBuf;

use super::conversation::Kind;
use super::dialogue::Dialogue;
use super::prompt_cache::PromptCache;
use super::room::{Groups, Room};
use super::stops::Stops;
use crate::error::{Error, Result};
use crate::llama::{Params, Session, Settings, Token, log};

/// Tokens of the context that a prompt must leave free.
pub(super) const RESERVE: usize = 4;
/// `-n -2`: until the context is full.
const UNTIL_FULL: i32 = -2;

/// What to generate.
pub(super) struct Job {
    pub settings: Settings,
    pub prompt: Vec<Token>,
    pub stops: Stops,
    pub room: Room,
    pub dialogue: Dialogue,
    pub cache: PromptCache,
    /// The token of a loaded state that has to be decoded again, and its position.
    pub replay: Option<(Token, i32)>,
    /// Whether there is a prompt that the model answers before the user's first turn.
    pub has_opening: bool,
}

impl Job {
    /// Tokenises the prompt and logs what will be done.
    ///
    /// # Errors
    /// `Failed` when the prompt does not fit the context, `Usage` when there is none.
    pub fn new(session: &mut Session, settings: Settings) -> Result<Self> {
        if !session.has_encoder() && session.adds_eos() {
            return Err(Error::Failed(
                "this model ends every text it reads, so there is nothing to complete".into(),
            ));
        }
        let wanted = session.params().dialogue()?;
        warn_of_size(session);
        let (is_conversation, mut conversation) = match Kind::new(session, &settings)? {
            Kind::Plain => (false, None),
            Kind::Untemplated => (true, None),
            Kind::Templated(conversation) => (true, Some(conversation)),
        };
        log::info("\n");
        log::info(format!("{}\n", session.params().system_info()?));
        log::info("\n");
        let path = cache_path(session.params())?;
        let mut cache = PromptCache::open(session, path, &wanted)?;

        let given = session.params().prompt()?;
        let opening = match &mut conversation {
            Some(conversation) => conversation.opening(&given)?,
            None => given.clone(),
        };
        let has_opening = !opening.is_empty();
        let awaits_first = conversation.is_some() && given.is_empty();
        let mut prompt = if wanted.interactive_first || has_opening || cache.tokens().is_empty() {
            session.tokenize(&opening, true)?
        } else {
            cache.tokens().to_vec()
        };
        log::debug(|| format!("tokens: {}\n", session.tokens_text(&prompt)));
        let adds_bos = session.adds_bos() && !settings.use_jinja;
        if prompt.is_empty() && !awaits_first {
            if !adds_bos {
                return Err(Error::Usage(
                    "the prompt is empty; give one with -p or -f".into(),
                ));
            }
            prompt.push(session.bos());
        }
        check_length(session, prompt.len())?;
        let replay = cache.match_prompt(session, &prompt, !given.is_empty());
        let keep = keep(settings.n_keep, prompt.len(), adds_bos);
        if settings.verbose_prompt {
            log_prompt(session, &given, &prompt, keep, i32::from(adds_bos))?;
        }
        let dialogue = Dialogue::new(session, &settings, &wanted, conversation, is_conversation)?;
        let stops = Stops::new(session, session.params().antiprompts()?)?;
        dialogue.announce(&stops);
        log_plan(session, &settings, keep)?;
        let room = room(session, &settings, keep)?;
        dialogue.explain();
        Ok(Self {
            settings,
            prompt,
            stops,
            room,
            dialogue,
            cache,
            replay,
            has_opening,
        })
    }

    /// Length of the prompt, in tokens.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt.len()
    }
}

/// Tokens of the prompt that survive a shift of the context.
fn keep(asked: i32, length: usize, adds_bos: bool) -> i32 {
    let length = i32::try_from(length).unwrap_or(i32::MAX);
    match asked {
        all if all < 0 || all > length => length,
        some => some + i32::from(adds_bos),
    }
}

fn room(session: &Session, settings: &Settings, keep: i32) -> Result<Room> {
    let wanted = session.params().dialogue()?;
    Ok(if settings.grp_attn_n != 1 {
        Room::Extend(Groups::new(
            session,
            settings.grp_attn_n,
            wanted.grp_attn_w,
        )?)
    } else if !wanted.ctx_shift {
        Room::Stop("context shift is disabled => stopping")
    } else if settings.n_predict == UNTIL_FULL {
        Room::Stop("n_predict == -2 => stopping")
    } else {
        Room::Shift { keep }
    })
}

fn warn_of_size(session: &Session) {
    let n_ctx = session.n_ctx();
    if n_ctx > session.n_ctx_train() {
        log::warn(format!(
            "llama_completion: model was trained on only {} context tokens ({n_ctx} given)\n",
            session.n_ctx_train()
        ));
    }
}

fn check_length(session: &Session, length: usize) -> Result<()> {
    let most = session.n_ctx().saturating_sub(RESERVE);
    if length <= most {
        return Ok(());
    }
    Err(Error::Failed(format!(
        "prompt is too long ({length} tokens, max {most}); raise -c"
    )))
}

#[cfg(unix)]
fn cache_path(params: &Params) -> Result<Option<PathBuf>> {
    use std::os::unix::ffi::OsStringExt;
    let path = std::ffi::OsString::from_vec(params.prompt_cache()?);
    Ok(Some(PathBuf::from(path)).filter(|path| !path.as_os_str().is_empty()))
}

#[cfg(not(unix))]
fn cache_path(params: &Params) -> Result<Option<PathBuf>> {
    let path = PathBuf::from(&*String::from_utf8_lossy(&params.prompt_cache()?));
    Ok(Some(path).filter(|path| !path.as_os_str().is_empty()))
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
    session.log_tokens("llama_completion: ", prompt)?;
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
    if settings.grp_attn_n != 1 {
        log::info(format!(
            "self-extend: n_ctx_train = {}, grp_attn_n = {}, grp_attn_w = {}\n",
            session.n_ctx_train(),
            settings.grp_attn_n,
            session.params().dialogue()?.grp_attn_w,
        ));
    }
    log::info("\n");
    Ok(())
}
