//! One answer: from the conversation to what the model says next.

use std::io::Write;
use std::time::{Duration, Instant};

use super::conversation::Conversation;
use super::reader::{Reader, Reading};
use super::screen::Screen;
use super::stream::Stream;
use crate::error::{Error, Result};
use crate::llama::chat::{Answer, Chat, Turn};
use crate::llama::{Session, Token, log};

/// The verbosity with which information is shown.
const INFORMATION: i32 = 3;
/// Tokens of the context that a prompt must leave free, as in a completion.
const RESERVE: usize = 4;
/// What is shown is split into thoughts and content at most so often: a long answer is
/// read again each time.
const SHOW_INTERVAL: Duration = Duration::from_millis(15);

/// What holds for all answers.
pub(super) struct Rules {
    /// Tokens of an answer at most; negative: no bound, -2: up to the context's end.
    pub n_predict: i32,
    /// Whether the oldest turns go when the context is full.
    pub shift: bool,
    /// Whether special tokens are shown.
    pub special: bool,
    pub verbose_prompt: bool,
    /// The command line's texts that end an answer.
    pub stops: Vec<Vec<u8>>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum End {
    /// The model or a text ended it.
    Said,
    /// It is as long as it may be.
    Long,
    /// The context is full.
    Full,
    /// Ctrl-C.
    Interrupted,
}

/// What an answer took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Timings {
    /// Tokens read before it, without those that the context held already.
    pub read_tokens: usize,
    pub read_seconds: f64,
    /// Tokens of the answer.
    pub tokens: usize,
    /// From the first of them to the last.
    pub seconds: f64,
}

/// An answer that is over.
pub(super) struct Outcome {
    pub answer: Answer,
    pub end: End,
    pub timings: Timings,
}

/// Has the model answer `conversation`, and shows what it says.
///
/// # Errors
/// `Failed` when the conversation does not fit the context, or what the template, the
/// model or the device failed with; `Interrupted` when asked to end.
pub(super) fn answer<W: Write>(
    reader: &mut Reader<'_>,
    chat: &Chat,
    conversation: &mut Conversation,
    rules: &Rules,
    attempt: u32,
    screen: &mut Screen<W>,
) -> Result<Outcome> {
    let (turn, prompt) = fitting(reader.session, chat, conversation, rules)?;
    log::debug(|| format!("tokens: {}\n", reader.session.tokens_text(&prompt)));
    if rules.verbose_prompt {
        // Asked for by name, so it is shown whatever else is not.
        log::at_least(INFORMATION, || reader.session.log_tokens("", &prompt))?;
    }
    turn.begin(reader.session, attempt)?;
    for &token in &prompt {
        // The penalties look at the prompt too, the grammar does not.
        reader.session.accept(token, false)?;
    }
    let mut timings = Timings::default();
    match reader.hold(&prompt, screen)? {
        Reading::Done { tokens, seconds } => {
            (timings.read_tokens, timings.read_seconds) = (tokens, seconds);
        }
        Reading::Interrupted => {
            return Ok(Outcome {
                answer: Answer::default(),
                end: End::Interrupted,
                timings,
            });
        }
    }
    let mut stops = turn.stops()?;
    stops.extend(rules.stops.iter().cloned());
    let mut work = Work {
        preserved: preserved(reader.session, &turn)?,
        stream: Stream::new(stops),
        tokens: Vec::new(),
        view: View::new(&turn),
        timings,
        first: None,
    };
    let end = work.generate(reader, chat, conversation, rules, screen)?;
    let answer = work.view.finish(&work.stream.all(), screen);
    screen.check()?;
    Ok(Outcome {
        answer,
        end,
        timings: work.timings,
    })
}

/// The turn and its tokens; with a shift, without the oldest turns where all of them would
/// leave too little room.
fn fitting(
    session: &Session,
    chat: &Chat,
    conversation: &mut Conversation,
    rules: &Rules,
) -> Result<(Turn, Vec<Token>)> {
    let n_ctx = session.n_ctx();
    let most = n_ctx.saturating_sub(RESERVE);
    // After a shift there is room for some time: each shift has the rest read again.
    let mut wanted = most;
    loop {
        let turn = chat.apply(&conversation.visible())?;
        let prompt = session.tokenize(&turn.prompt()?, true)?;
        if prompt.is_empty() {
            return Err(Error::Failed(
                "the chat template makes nothing of this conversation; give another one with \
                 --chat-template"
                    .into(),
            ));
        }
        if prompt.len() <= wanted {
            return Ok((turn, prompt));
        }
        wanted = n_ctx / 4 * 3;
        if rules.shift && conversation.forget_oldest() {
            continue;
        }
        if rules.shift && prompt.len() <= most {
            return Ok((turn, prompt));
        }
        let help = if rules.shift {
            "shorten it or raise -c"
        } else {
            "/clear it, raise -c, or have the oldest turns go with --context-shift"
        };
        return Err(Error::Failed(format!(
            "the conversation has {} tokens, and the context holds {most}; {help}",
            prompt.len()
        )));
    }
}

/// Special tokens that belong to the text of an answer: tags the template reads.
fn preserved(session: &Session, turn: &Turn) -> Result<Vec<Token>> {
    let mut all = Vec::new();
    for text in turn.preserved()? {
        if let [token] = session.tokenize(&text, false)?[..] {
            all.push(token);
        }
    }
    Ok(all)
}

/// An answer in the making.
struct Work<'a> {
    preserved: Vec<Token>,
    stream: Stream,
    tokens: Vec<Token>,
    view: View<'a>,
    timings: Timings,
    /// When the first token was there.
    first: Option<Instant>,
}

impl Work<'_> {
    fn generate<W: Write>(
        &mut self,
        reader: &mut Reader<'_>,
        chat: &Chat,
        conversation: &mut Conversation,
        rules: &Rules,
        screen: &mut Screen<W>,
    ) -> Result<End> {
        let most = usize::try_from(rules.n_predict).unwrap_or(usize::MAX);
        loop {
            if self.tokens.len() >= most {
                return Ok(End::Long);
            }
            let token = reader.next()?;
            self.note_time();
            self.tokens.push(token);
            let is_end = reader.session.is_end(token);
            let special = rules.special || self.preserved.contains(&token);
            if !is_end || rules.special {
                let piece = reader.session.piece(token, special)?;
                if self.stream.push(&piece) {
                    return Ok(End::Said);
                }
            }
            if is_end {
                return Ok(End::Said);
            }
            self.view.show(&self.stream, screen);
            screen.check()?;
            if reader.held() + 1 >= reader.session.n_ctx() {
                if !rules.shift || rules.n_predict == -2 {
                    return Ok(End::Full);
                }
                match self.make_room(reader, chat, conversation, screen)? {
                    Some(true) => continue,
                    Some(false) => return Ok(End::Interrupted),
                    None => return Ok(End::Full),
                }
            }
            if !reader.append(token)? {
                return Ok(End::Interrupted);
            }
        }
    }

    fn note_time(&mut self) {
        let first = *self.first.get_or_insert_with(Instant::now);
        self.timings.tokens += 1;
        self.timings.seconds = first.elapsed().as_secs_f64();
    }

    /// Has the oldest turns go and the rest read again, with the answer so far; None when
    /// there is nothing that could go, false after Ctrl-C.
    fn make_room<W: Write>(
        &self,
        reader: &mut Reader<'_>,
        chat: &Chat,
        conversation: &mut Conversation,
        screen: &mut Screen<W>,
    ) -> Result<Option<bool>> {
        while conversation.forget_oldest() {
            let turn = chat.apply(&conversation.visible())?;
            let mut tokens = reader.session.tokenize(&turn.prompt()?, true)?;
            tokens.extend_from_slice(&self.tokens);
            if tokens.len() <= reader.session.n_ctx() / 4 * 3 {
                let read = reader.hold(&tokens, screen)?;
                return Ok(Some(read != Reading::Interrupted));
            }
        }
        Ok(None)
    }
}

/// What of an answer is on the screen.
struct View<'a> {
    turn: &'a Turn,
    shown: Answer,
    last: Option<Instant>,
}

impl<'a> View<'a> {
    fn new(turn: &'a Turn) -> Self {
        Self {
            turn,
            shown: Answer::default(),
            last: None,
        }
    }

    /// Shows what has come, unless that was done a moment ago.
    fn show<W: Write>(&mut self, stream: &Stream, screen: &mut Screen<W>) {
        if self.last.is_some_and(|last| last.elapsed() < SHOW_INTERVAL) {
            return;
        }
        // What is in no format yet may be in one later.
        if let Ok(answer) = self.turn.parse(&stream.settled(), true) {
            self.add(answer, screen);
        }
        self.last = Some(Instant::now());
    }

    /// Shows the rest; what is in no format is an answer as it is.
    fn finish<W: Write>(&mut self, text: &str, screen: &mut Screen<W>) -> Answer {
        let answer = self.turn.parse(text, false);
        let answer = answer.or_else(|_| self.turn.parse(text, true));
        let answer = answer.unwrap_or_else(|_| Answer {
            content: text.to_owned(),
            reasoning: String::new(),
        });
        if !self.add(answer.clone(), screen) {
            // The end has changed what the beginning meant.
            screen.end_answer();
            screen.think(&answer.reasoning);
            screen.answer(&answer.content);
        }
        screen.end_answer();
        answer
    }

    /// Shows what `answer` has more than what is shown; false when it is another one.
    fn add<W: Write>(&mut self, answer: Answer, screen: &mut Screen<W>) -> bool {
        let reasoning = answer.reasoning.strip_prefix(&*self.shown.reasoning);
        let content = answer.content.strip_prefix(&*self.shown.content);
        let (Some(reasoning), Some(content)) = (reasoning, content) else {
            return false;
        };
        screen.think(reasoning);
        screen.answer(content);
        self.shown = answer;
        true
    }
}
