//! Chat templates: the Jinja programs that turn a conversation into a prompt, rendered as Hugging Face transformers renders
//! them ([`super::jinja`]).
//!
//! A template comes with a model's file, so it is not trusted: it sees nothing but the conversation, and its steps, the size of
//! its values and its output are limited. A conversation is not trusted either: a prompt knows which of its text the template
//! wrote, and only that can become control tokens.

use super::jinja::{self, Fault, Limits, Template, Text, Value};
use crate::error::{Error, Result};
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

pub use super::jinja::DateTime;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
    /// What the model thought before an answer, where it was kept apart from it. Templates find it as `thinking` and as
    /// `reasoning_content`, as transformers gives it to them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into(), thinking: None }
    }

    fn value(&self) -> serde_json::Value {
        let mut value = serde_json::json!({ "role": self.role, "content": self.content });
        if let Some(t) = &self.thinking {
            value["thinking"] = t.as_str().into();
            value["reasoning_content"] = t.as_str().into();
        }
        value
    }
}

/// What a template is rendered with, besides the messages.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// Whether the rendered text ends with the beginning of the assistant's answer.
    pub add_generation_prompt: bool,
    /// The local time, since the library reads no clock; `None` leaves `strftime_now` undefined, and templates take their own
    /// default date.
    pub now: Option<DateTime>,
    /// Further variables, such as `enable_thinking`, `tools` or `documents`.
    pub variables: BTreeMap<String, serde_json::Value>,
}

/// A rendered conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// The text.
    pub text: String,
    /// Byte ranges of it, ascending, that came in with the conversation: marks of the chat format in them are ordinary text.
    pub foreign: Vec<Range<usize>>,
}

impl Prompt {
    /// A prompt in which every mark counts, whoever wrote it.
    pub fn trusted(text: impl Into<String>) -> Prompt {
        Prompt { text: text.into(), foreign: vec![] }
    }

    /// Whether a byte range shares a byte with what came in with the conversation.
    pub(crate) fn is_foreign(&self, range: Range<usize>) -> bool {
        super::special::touches(&self.foreign, range)
    }
}

/// A model's chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    compiled: Template,
    bos: String,
    eos: String,
}

/// The steps that rendering a template may take: a conversation of a thousand messages takes some ten thousand.
const STEPS: u64 = 20_000_000;
/// Further steps for every byte of the conversation, which templates copy many times.
const STEPS_PER_BYTE: u64 = 100;
/// Bytes that a template may write beyond four times the conversation.
const MOST_OUTPUT: usize = 16 << 20;
/// The largest template, in bytes; real ones have up to some 20 kB.
const MOST_SOURCE: usize = 1 << 20;

impl ChatTemplate {
    /// Parses a template. `bos` and `eos` are the texts of the model's special tokens (empty where it has none), which
    /// templates write through `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] with the line and the reason where the template does not parse.
    pub fn new(source: impl Into<String>, bos: impl Into<String>, eos: impl Into<String>) -> Result<Self> {
        let source = source.into();
        if source.len() > MOST_SOURCE {
            return Err(Error::Tokenizer(format!("a chat template of {} bytes is too long", source.len())));
        }
        let compiled = Template::parse(&source).map_err(error)?;
        Ok(ChatTemplate { source, compiled, bos: bos.into(), eos: eos.into() })
    }

    /// The source text of the template, as the file has it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation, without a date and further variables.
    ///
    /// # Errors
    /// As [`ChatTemplate::render_with`].
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_with(messages, &RenderOptions { add_generation_prompt, ..RenderOptions::default() })
    }

    /// Renders a conversation to a text.
    ///
    /// # Errors
    /// As [`ChatTemplate::prompt`].
    pub fn render_with(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        self.prompt(messages, options).map(|p| p.text)
    }

    /// Renders a conversation to a prompt, for [`super::Tokenizer::encode_prompt`].
    ///
    /// # Errors
    /// [`Error::Tokenizer`] with the line and the reason: what the template itself refuses (`raise_exception`, roles
    /// that do not alternate), what it asks for and does not exist, too many steps, too much output.
    pub fn prompt(&self, messages: &[Message], options: &RenderOptions) -> Result<Prompt> {
        self.prompt_of(&messages.iter().map(Message::value).collect::<Vec<_>>(), options)
    }

    /// The same of messages with further fields (`tool_calls`, contents in parts), as JSON has them.
    ///
    /// # Errors
    /// As [`ChatTemplate::prompt`].
    pub fn prompt_of(&self, messages: &[serde_json::Value], options: &RenderOptions) -> Result<Prompt> {
        let mut variables: HashMap<String, Value> =
            options.variables.iter().map(|(k, v)| (k.clone(), Value::foreign(v))).collect();
        variables.insert("messages".into(), Value::list(messages.iter().map(Value::foreign).collect()));
        variables.insert("add_generation_prompt".into(), Value::Bool(options.add_generation_prompt));
        variables.insert("bos_token".into(), Value::own(self.bos.as_str()));
        variables.insert("eos_token".into(), Value::own(self.eos.as_str()));
        for absent in ["tools", "documents"] {
            variables.entry(absent.into()).or_insert(Value::None);
        }
        let given: usize = variables.values().map(|v| v.extent().bytes).sum();
        let limits = Limits {
            steps: STEPS.saturating_add(STEPS_PER_BYTE.saturating_mul(given as u64)),
            output: given.saturating_mul(4).saturating_add(MOST_OUTPUT),
        };
        let text = jinja::render(&self.compiled, variables, options.now, limits).map_err(error)?;
        Ok(prompt(&text))
    }
}

fn prompt(text: &Text) -> Prompt {
    Prompt { text: text.as_str().to_owned(), foreign: text.foreign_ranges().to_vec() }
}

fn error(e: Fault) -> Error {
    let line = if e.line > 0 { format!(", line {}", e.line) } else { String::new() };
    Error::Tokenizer(format!("chat template{line}: {}", e.what))
}
