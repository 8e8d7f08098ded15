//! Conversations as the model's chat template writes them, and answers as it means them.
#![allow(unsafe_code, reason = "calls the C doors")]

use std::mem::MaybeUninit;
use std::ptr::NonNull;

use super::{Params, Session, bytes};
use crate::error::{Error, Result};

/// What the command line says about conversations.
pub type ChatSettings = ggml_sys::rpaged_chat_settings;

/// One message of a conversation.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
    /// What the assistant thought before; empty when nothing.
    pub reasoning: String,
}

impl Message {
    /// A message without thoughts.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self {
            role: role.to_owned(),
            content: content.into(),
            reasoning: String::new(),
        }
    }

    /// Valid as long as `self` is neither changed nor moved.
    fn lend(&self) -> ggml_sys::rpaged_message {
        ggml_sys::rpaged_message {
            role: view(&self.role),
            content: view(&self.content),
            reasoning: view(&self.reasoning),
        }
    }
}

fn view(text: &str) -> ggml_sys::rpaged_view {
    ggml_sys::rpaged_view {
        data: text.as_ptr().cast(),
        size: text.len(),
    }
}

/// Valid as long as `messages` are neither changed nor moved.
fn lend(messages: &[Message]) -> Vec<ggml_sys::rpaged_message> {
    messages.iter().map(Message::lend).collect()
}

/// What the command line says about conversations.
///
/// # Errors
/// `Failed` when llama.cpp cannot tell.
pub fn chat_settings(params: &Params) -> Result<ChatSettings> {
    let mut out = MaybeUninit::<ChatSettings>::zeroed();
    // SAFETY:
    // - the parameters are alive through the call;
    // - `out` is a place for one structure.
    let status = unsafe { ggml_sys::rpaged_chat_settings_of(params.raw(), out.as_mut_ptr()) };
    if status != ggml_sys::RPAGED_OK as i32 {
        return Err(bytes::failure("llama.cpp does not tell its chat settings"));
    }
    // SAFETY:
    // - all zeroes are valid for booleans, and the call has filled it in.
    Ok(unsafe { out.assume_init() })
}

fn chat_text(params: &Params, kind: ggml_sys::rpaged_chat_text_kind) -> Result<Vec<u8>> {
    // SAFETY:
    // - the parameters are alive through the call; the text is a copy.
    bytes::take(unsafe { ggml_sys::rpaged_chat_text(params.raw(), kind) })
}

/// The system message (`-sys`), with its escapes resolved; empty when there is none.
///
/// # Errors
/// `Failed` when memory runs out; so for the two below.
pub fn system_prompt(params: &Params) -> Result<Vec<u8>> {
    chat_text(params, ggml_sys::RPAGED_CHAT_SYSTEM_PROMPT)
}

/// What comes before the user's input (`--in-prefix`).
#[allow(clippy::missing_errors_doc, reason = "see `system_prompt`")]
pub fn input_prefix(params: &Params) -> Result<Vec<u8>> {
    chat_text(params, ggml_sys::RPAGED_CHAT_INPUT_PREFIX)
}

/// What comes after the user's input (`--in-suffix`).
#[allow(clippy::missing_errors_doc, reason = "see `system_prompt`")]
pub fn input_suffix(params: &Params) -> Result<Vec<u8>> {
    chat_text(params, ggml_sys::RPAGED_CHAT_INPUT_SUFFIX)
}

/// The chat templates that the command line or the model names, ChatML where neither does.
pub struct Chat {
    raw: NonNull<ggml_sys::rpaged_chat>,
}

impl Chat {
    /// Reads the templates and what the command line says about their use.
    ///
    /// # Errors
    /// `Failed` when a template cannot be read.
    pub fn new(session: &Session) -> Result<Self> {
        // SAFETY:
        // - parameters and model are alive as long as `session`; what is needed of them
        //   is copied.
        let raw = unsafe { ggml_sys::rpaged_chat_new(session.params().raw(), session.model()) };
        NonNull::new(raw)
            .map(|raw| Self { raw })
            .ok_or_else(|| template_failure("llama.cpp could not read the chat template"))
    }

    fn raw(&self) -> *mut ggml_sys::rpaged_chat {
        self.raw.as_ptr()
    }

    /// Whether the command line or the model names a template.
    pub fn is_explicit(&self) -> bool {
        // SAFETY:
        // - the handle is alive as long as `self`.
        unsafe { ggml_sys::rpaged_chat_is_explicit(self.raw()) }
    }

    /// A short conversation as the template writes it.
    ///
    /// # Errors
    /// `Failed` when the template fails; so for all below.
    pub fn example(&self) -> Result<Vec<u8>> {
        // SAFETY:
        // - the handle is alive as long as `self`; the text is a copy.
        let text = unsafe { ggml_sys::rpaged_chat_example(self.raw()) };
        rendered(text)
    }

    /// What `message` adds to the text of the messages in `past`, as llama-completion has
    /// it formatted; `add_assistant`: with the beginning of an answer.
    #[allow(clippy::missing_errors_doc, reason = "see `example`")]
    pub fn format_single(
        &self,
        past: &[Message],
        message: &Message,
        add_assistant: bool,
    ) -> Result<Vec<u8>> {
        let (lent, one) = (lend(past), message.lend());
        // SAFETY:
        // - the handle is alive as long as `self`;
        // - `lent` holds as many messages as it says, and they and `one` refer to texts
        //   that live through the call.
        let text = unsafe {
            ggml_sys::rpaged_chat_format_single(
                self.raw(),
                lent.as_ptr(),
                lent.len(),
                &raw const one,
                add_assistant,
            )
        };
        rendered(text)
    }

    /// The text of all messages, as llama-completion has it formatted.
    #[allow(clippy::missing_errors_doc, reason = "see `example`")]
    pub fn format_all(&self, messages: &[Message], add_assistant: bool) -> Result<Vec<u8>> {
        let lent = lend(messages);
        // SAFETY:
        // - the handle is alive as long as `self`;
        // - `lent` holds as many messages as it says, which refer to texts that live
        //   through the call.
        let text = unsafe {
            ggml_sys::rpaged_chat_format_all(self.raw(), lent.as_ptr(), lent.len(), add_assistant)
        };
        rendered(text)
    }

    /// The conversation so far with the beginning of an answer, as llama-cli has it
    /// formatted: with the template's arguments and the settings on reasoning.
    #[allow(clippy::missing_errors_doc, reason = "see `example`")]
    pub fn apply(&self, messages: &[Message]) -> Result<Turn> {
        let lent = lend(messages);
        // SAFETY:
        // - the handle is alive as long as `self`;
        // - `lent` holds as many messages as it says, which refer to texts that live
        //   through the call.
        let raw = unsafe { ggml_sys::rpaged_turn_new(self.raw(), lent.as_ptr(), lent.len()) };
        NonNull::new(raw)
            .map(|raw| Turn { raw })
            .ok_or_else(|| template_failure("the chat template failed"))
    }
}

fn template_failure(otherwise: &str) -> Error {
    let said = bytes::failure(otherwise);
    Error::Failed(format!("{said}; give another one with --chat-template"))
}

fn rendered(text: ggml_sys::rpaged_bytes) -> Result<Vec<u8>> {
    if text.data.is_null() {
        return Err(template_failure("the chat template failed"));
    }
    bytes::take(text)
}

impl Drop for Chat {
    fn drop(&mut self) {
        // SAFETY:
        // - the handle came from `rpaged_chat_new` and is dropped once; turns refer to
        //   nothing of it.
        unsafe { ggml_sys::rpaged_chat_free(self.raw()) }
    }
}

/// One turn: what the model is to read, and how its answer is to be read.
pub struct Turn {
    raw: NonNull<ggml_sys::rpaged_turn>,
}

/// What the model has said.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Answer {
    /// Its answer.
    pub content: String,
    /// What it thought before.
    pub reasoning: String,
}

impl Turn {
    fn raw(&self) -> *mut ggml_sys::rpaged_turn {
        self.raw.as_ptr()
    }

    fn text(&self, kind: ggml_sys::rpaged_turn_text_kind, index: usize) -> Result<Vec<u8>> {
        // SAFETY:
        // - the handle is alive as long as `self`; an index out of range comes back as a
        //   failure.
        bytes::take(unsafe { ggml_sys::rpaged_turn_text(self.raw(), kind, index) })
    }

    fn texts(&self, kind: ggml_sys::rpaged_turn_text_kind) -> Result<Vec<Vec<u8>>> {
        // SAFETY:
        // - the handle is alive as long as `self`.
        let count = unsafe { ggml_sys::rpaged_turn_count(self.raw(), kind) };
        (0..count).map(|index| self.text(kind, index)).collect()
    }

    /// What the model is to read.
    ///
    /// # Errors
    /// `Failed` when memory runs out; so for all texts below.
    pub fn prompt(&self) -> Result<Vec<u8>> {
        self.text(ggml_sys::RPAGED_TURN_PROMPT, 0)
    }

    /// The prompt's end, with which the answer begins.
    #[allow(clippy::missing_errors_doc, reason = "see `prompt`")]
    pub fn generation_prompt(&self) -> Result<Vec<u8>> {
        self.text(ggml_sys::RPAGED_TURN_GENERATION_PROMPT, 0)
    }

    /// The tag that begins a thought; empty when the template has none.
    #[allow(clippy::missing_errors_doc, reason = "see `prompt`")]
    pub fn thinking_start(&self) -> Result<Vec<u8>> {
        self.text(ggml_sys::RPAGED_TURN_THINKING_START, 0)
    }

    /// The tags that end one.
    #[allow(clippy::missing_errors_doc, reason = "see `prompt`")]
    pub fn thinking_ends(&self) -> Result<Vec<Vec<u8>>> {
        self.texts(ggml_sys::RPAGED_TURN_THINKING_END)
    }

    /// The template's own texts that end an answer.
    #[allow(clippy::missing_errors_doc, reason = "see `prompt`")]
    pub fn stops(&self) -> Result<Vec<Vec<u8>>> {
        self.texts(ggml_sys::RPAGED_TURN_STOP)
    }

    /// Splits what the model has said into thoughts and answer; `partial`: more may come,
    /// and the beginning of a tag is left out until it is known to be none.
    ///
    /// # Errors
    /// `Failed` when the text is not in the template's format.
    pub fn parse(&self, text: &str, partial: bool) -> Result<Answer> {
        let mut out = MaybeUninit::<ggml_sys::rpaged_answer>::zeroed();
        // SAFETY:
        // - the handle is alive as long as `self`;
        // - `text` gives the address of as many bytes as it says;
        // - `out` is a place for one structure.
        let status = unsafe {
            ggml_sys::rpaged_turn_parse(
                self.raw(),
                text.as_ptr().cast(),
                text.len(),
                partial,
                out.as_mut_ptr(),
            )
        };
        if status != ggml_sys::RPAGED_OK as i32 {
            return Err(bytes::failure("the answer is not in the template's format"));
        }
        // SAFETY:
        // - all zeroes are a valid structure, and the call has filled it in.
        let out = unsafe { out.assume_init() };
        // Both are taken before either is judged, so that none is lost.
        let (content, reasoning) = (
            bytes::take_text(out.content),
            bytes::take_text(out.reasoning),
        );
        Ok(Answer {
            content: content?,
            reasoning: reasoning?,
        })
    }

    /// Has `session` sample this turn's answer: the grammar from its beginning, the budget
    /// for reasoning anew. A seed that the command line gives grows by `attempt`.
    ///
    /// # Errors
    /// `Failed` when the sampler cannot be made.
    pub fn begin(&self, session: &mut Session, attempt: u32) -> Result<()> {
        // SAFETY:
        // - both handles are alive, and the session is borrowed alone.
        let status = unsafe { ggml_sys::rpaged_turn_begin(self.raw(), session.raw(), attempt) };
        if status == ggml_sys::RPAGED_OK as i32 {
            return Ok(());
        }
        Err(bytes::failure("the sampler could not be made"))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // SAFETY:
        // - the handle came from `rpaged_turn_new` and is dropped once.
        unsafe { ggml_sys::rpaged_turn_free(self.raw()) }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::sync::{Mutex, PoisonError};

    use super::*;
    use crate::llama;
    use crate::session::demo::DemoModel;

    /// A template that has the model think, and one that refuses to be used.
    const THINKING: &str = "{% for m in messages %}<|{{ m.role }}|>{% if m.reasoning_content %}\
        <think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|end|>{% endfor %}\
        {% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined and not \
        enable_thinking %}<think></think>{% endif %}{% endif %}";
    const THROWING: &str = "{% for m in messages %}{% if m.content == 'xyzzy' %}\
        {{ raise_exception('no greetings') }}{% endif %}{{ m.role }}: {{ m.content }}\n\
        {% endfor %}";

    /// The demo model, with the words of `line`.
    fn session(words: &[&str]) -> (Session, DemoModel) {
        // llama.cpp swaps its log and the environment while it reads and loads.
        static LOADING: Mutex<()> = Mutex::new(());
        let _alone = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        llama::log::start();
        let demo = DemoModel::new().unwrap();
        let mut args = vec![c"test".to_owned(), c"-m".to_owned(), demo.path().to_owned()];
        let fixed = [
            "-c",
            "256",
            "-t",
            "1",
            "--no-warmup",
            "--fit",
            "off",
            "--log-disable",
        ];
        let words = fixed.iter().chain(words);
        args.extend(words.map(|word| CString::new(*word).unwrap()));
        let params = Params::parse(args, &[]).unwrap();
        (Session::new(params, None, "the demo model").unwrap(), demo)
    }

    fn ask() -> Vec<Message> {
        vec![
            Message::new("system", "Be kind."),
            Message::new("user", "Hello"),
        ]
    }

    #[test]
    fn without_a_template_chatml_is_used() {
        let (session, _demo) = session(&[]);
        let chat = Chat::new(&session).unwrap();
        assert!(!chat.is_explicit());
        let text = chat.format_all(&ask(), true).unwrap();
        let expected = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n\
                        <|im_start|>assistant\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        let example = chat.example().unwrap();
        assert!(String::from_utf8(example).unwrap().contains("How are you?"));
    }

    #[test]
    fn a_single_message_is_what_it_adds() {
        let (session, _demo) = session(&["--chat-template", "chatml"]);
        let chat = Chat::new(&session).unwrap();
        assert!(chat.is_explicit());
        let messages = ask();
        let all = chat.format_all(&messages, true).unwrap();
        let first = chat.format_all(&messages[..1], false).unwrap();
        let second = chat
            .format_single(&messages[..1], &messages[1], true)
            .unwrap();
        // What ends in a newline is followed by another one: upstream's way.
        assert_eq!([&first[..], &second[1..]].concat(), all);
        assert_eq!(second[0], b'\n');
    }

    #[test]
    fn thoughts_are_told_from_the_answer() {
        let (session, _demo) = session(&["--jinja", "--chat-template", THINKING]);
        let chat = Chat::new(&session).unwrap();
        let turn = chat.apply(&ask()).unwrap();
        assert_eq!(turn.thinking_start().unwrap(), b"<think>");
        assert_eq!(turn.thinking_ends().unwrap(), [b"</think>"]);
        let text = "<think>Who is it?</think>Hello, friend.";
        for end in 0..=text.len() {
            let answer = turn.parse(&text[..end], true).unwrap();
            assert!("Who is it?".starts_with(&answer.reasoning), "{answer:?}");
            assert!("Hello, friend.".starts_with(&answer.content), "{answer:?}");
        }
        let answer = turn.parse(text, false).unwrap();
        assert_eq!(answer.reasoning, "Who is it?");
        assert_eq!(answer.content, "Hello, friend.");
    }

    #[test]
    fn reasoning_flags_reach_the_template() {
        let (off, _demo) = session(&["--jinja", "--chat-template", THINKING, "--reasoning", "off"]);
        let turn = Chat::new(&off).unwrap().apply(&ask()).unwrap();
        assert!(
            turn.prompt()
                .unwrap()
                .ends_with(b"<|assistant|><think></think>")
        );
        let words = [
            "--jinja",
            "--chat-template",
            THINKING,
            "--reasoning-format",
            "none",
        ];
        let (none, _demo) = session(&words);
        let turn = Chat::new(&none).unwrap().apply(&ask()).unwrap();
        let answer = turn.parse("<think>a</think>b", false).unwrap();
        assert_eq!(answer.content, "<think>a</think>b");
        assert_eq!(answer.reasoning, "");
    }

    #[test]
    fn the_budget_for_reasoning_ends_a_thought() {
        let words = [
            "--jinja",
            "--chat-template",
            THINKING,
            "--reasoning-budget",
            "0",
            "--temp",
            "0",
        ];
        let (mut session, _demo) = session(&words);
        let turn = Chat::new(&session).unwrap().apply(&ask()).unwrap();
        turn.begin(&mut session, 0).unwrap();
        let prompt = turn.prompt().unwrap();
        let tokens = session.tokenize(&prompt, true).unwrap();
        session.decode(&tokens).unwrap();
        // The model is made to think by telling the sampler that it began to.
        for token in session.tokenize(b"<think>", false).unwrap() {
            session.accept(token, true).unwrap();
        }
        let mut text = Vec::new();
        for _ in 0..session.tokenize(b"</think>", false).unwrap().len() {
            let token = session.sample().unwrap();
            session.accept(token, true).unwrap();
            text.extend(session.piece(token, true).unwrap());
        }
        assert_eq!(String::from_utf8_lossy(&text).trim_start(), "</think>");
    }

    #[test]
    fn a_template_that_throws_is_a_sentence() {
        let (session, _demo) = session(&["--jinja", "--chat-template", THROWING]);
        let chat = Chat::new(&session).unwrap();
        let mut spell = ask();
        spell[1].content = "xyzzy".to_owned();
        let error = chat.apply(&spell).map(drop).unwrap_err().to_string();
        assert_eq!(
            error,
            "the chat template failed: no greetings; give another one with --chat-template"
        );
        assert!(chat.format_all(&spell, true).is_err());
        let error = chat.format_single(&spell[..1], &spell[1], true);
        assert!(error.unwrap_err().to_string().contains("no greetings"));
        assert!(chat.apply(&ask()).is_ok());
    }
}
