//! Anthropic's `/v1/messages` and `/v1/messages/count_tokens` ([reference](https://docs.anthropic.com/en/api/messages)).

use super::{
    messages_in::content,
    options::{MOST_TOKENS, Options, sampler},
    responses_out::named,
};
use crate::{
    generate::FinishReason,
    serve::{
        answer::{Answer, Delta},
        app::App,
        engine::Event,
        error::{ApiError, ApiResult},
        fields::Fields,
        form::{self, Form},
        http::Writer,
        prompt::{Conversation, Encoded, message},
    },
    tools::CallDelta,
};
use serde_json::{Value, json};
use std::sync::Arc;

/// A request that was read.
#[derive(Debug)]
pub struct MessagesRequest {
    pub options: Options,
    pub stream: bool,
    pub prompt: Encoded,
    pub form: Form,
}

/// Most stop sequences.
const MOST_STOPS: usize = 64;

/// Reads a request and makes its prompt.
///
/// # Errors
/// 400 with the field, 404 for another model.
pub fn read(app: &App, body: &Value) -> ApiResult<MessagesRequest> {
    let f = Fields::of(body)?;
    app.check_model(f.require_string("model")?)?;
    f.require("max_tokens")?;
    let max_tokens = f.count("max_tokens", 1..=MOST_TOKENS)?;
    let mut conversation = conversation(&f)?;
    let form = Form::of(app, form::of_messages(&f)?)?;
    conversation.variables.extend(form.shown().map(|tools| ("tools".to_owned(), tools)));
    let stop = f.strings("stop_sequences", MOST_STOPS)?;
    let mut options = Options { n: 1, max_tokens, stop, sampler: sampler(app, &f, 1.0)?, ..Options::default() };
    let stream = f.boolean("stream")?.unwrap_or(false);
    f.string("service_tier")?;
    if let Some(metadata) = f.object("metadata")? {
        metadata.string("user_id")?;
    }
    let prompt = conversation.encode(app)?;
    options.matcher = form.matcher(app, &prompt.prompt)?;
    Ok(MessagesRequest { options, stream, prompt, form })
}

/// `/v1/messages/count_tokens`.
///
/// # Errors
/// As [`read`], but for the prompt's length.
pub fn count(app: &App, body: &Value) -> ApiResult<Value> {
    let f = Fields::of(body)?;
    app.check_model(f.require_string("model")?)?;
    let mut conversation = conversation(&f)?;
    let shown = Form::of(app, form::of_messages(&f)?)?.shown();
    conversation.variables.extend(shown.map(|tools| ("tools".to_owned(), tools)));
    Ok(json!({"input_tokens": conversation.count(app)?}))
}

fn conversation(f: &Fields<'_>) -> ApiResult<Conversation> {
    f.require("messages")?;
    let list = f.array("messages")?.unwrap_or_default();
    if list.is_empty() {
        return Err(ApiError::field("messages", "is empty: a conversation has at least one message"));
    }
    let mut messages = vec![];
    if f.get("system").is_some() {
        messages.push(Value::Object(message("system", content(f, "system")?)));
    }
    for (i, m) in list.iter().enumerate() {
        turn(&Fields::at(m, format!("messages[{i}]"))?, &mut messages)?;
    }
    let mut conversation = Conversation { messages, ..Conversation::default() };
    if let Some(thinking) = f.object("thinking")? {
        thinking.require_string("type")?;
        let on = thinking.word("type", &["enabled", "disabled", "adaptive"])? != Some("disabled");
        conversation.variables.insert("enable_thinking".into(), on.into());
    }
    // An answer that has begun is to be gone on with.
    conversation.continues = list.last().is_some_and(|m| m["role"] == "assistant");
    Ok(conversation)
}

/// A message of one side: results of tools are messages of their own for templates.
fn turn(m: &Fields<'_>, messages: &mut Vec<Value>) -> ApiResult<()> {
    m.require_string("role")?;
    let role = m.word("role", &["user", "assistant"])?.unwrap_or("user");
    let blocks = match m.require("content")? {
        Value::String(text) => {
            messages.push(Value::Object(message(role, text.as_str())));
            return Ok(());
        }
        Value::Array(blocks) => blocks,
        _ => return Err(ApiError::field(m.path("content"), "must be a string or an array of blocks")),
    };
    let (mut texts, mut calls, mut thoughts) = (vec![], vec![], vec![]);
    for (i, block) in blocks.iter().enumerate() {
        let b = Fields::at(block, format!("{}[{i}]", m.path("content")))?;
        match b.require_string("type")? {
            "text" => texts.push(b.require_string("text")?),
            "thinking" => thoughts.push(b.require_string("thinking")?),
            "redacted_thinking" => {}
            "tool_use" => {
                let (id, name, input) = (b.require_string("id")?, b.require_string("name")?, b.require("input")?);
                Fields::at(input, b.path("input"))?;
                let arguments = input.to_string();
                calls.push(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}));
            }
            "tool_result" => {
                let text = if b.get("content").is_some() { content(&b, "content")? } else { String::new() };
                let mut result = message("tool", text);
                result.insert("tool_call_id".into(), b.require_string("tool_use_id")?.into());
                messages.push(Value::Object(result));
            }
            "image" | "document" | "search_result" => {
                return Err(ApiError::unsupported(&b.path("type"), "this model takes text alone"));
            }
            other => return Err(ApiError::field(b.path("type"), format!("{other:?} is no kind of block"))),
        }
    }
    if texts.is_empty() && calls.is_empty() && !blocks.is_empty() && role == "user" {
        return Ok(());
    }
    let mut out = message(role, texts.join("\n"));
    if !thoughts.is_empty() {
        out.insert("reasoning_content".into(), thoughts.join("\n").into());
        out.insert("thinking".into(), thoughts.join("\n").into());
    }
    if !calls.is_empty() {
        out.insert("tool_calls".into(), calls.into());
    }
    messages.push(Value::Object(out));
    Ok(())
}

/// Writes the events of a message, or the message alone.
#[derive(Debug)]
pub struct MessagesWriter {
    app: Arc<App>,
    id: String,
    stream: bool,
    prompt_tokens: usize,
    cached: usize,
    stop: Vec<String>,
    answer: Answer,
    content: Vec<Value>,
    open: Option<(Kind, String)>,
    error: Option<ApiError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Thinking,
    Text,
    /// The call with this index.
    Call(usize),
}

impl MessagesWriter {
    /// A writer of the answer to a request.
    pub fn new(app: &Arc<App>, request: &MessagesRequest) -> Self {
        MessagesWriter {
            id: app.id("msg_"),
            stream: request.stream,
            prompt_tokens: request.prompt.ids.len(),
            cached: 0,
            stop: request.options.stop.clone(),
            answer: Answer::of_chat(app, &request.prompt.prompt, &request.form),
            content: vec![],
            open: None,
            error: None,
            app: app.clone(),
        }
    }

    fn event(&self, kind: &str, mut fields: Value, out: &mut String) {
        if self.stream {
            fields["type"] = kind.into();
            named(kind, &fields, out);
        }
    }

    fn usage(&self, output: usize) -> Value {
        json!({
            "input_tokens": self.prompt_tokens - self.cached.min(self.prompt_tokens),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self.cached,
            "output_tokens": output,
        })
    }

    fn message(&self, output: usize) -> Value {
        let (reason, sequence) = self.stop_reason();
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.app.options.name,
            "content": self.content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": self.usage(output),
        })
    }

    fn stop_reason(&self) -> (Option<&'static str>, Option<&str>) {
        match self.answer.finished.map(|f| f.reason) {
            None => (None, None),
            Some(_) if self.answer.finish_reason() == Some("tool_calls") => (Some("tool_use"), None),
            Some(FinishReason::StopString(i)) => (Some("stop_sequence"), self.stop.get(i).map(String::as_str)),
            Some(FinishReason::MaxTokens | FinishReason::ContextFull) => (Some("max_tokens"), None),
            Some(
                FinishReason::EndOfText(_)
                | FinishReason::StopToken(_)
                | FinishReason::Cancelled
                | FinishReason::Failed,
            ) => (Some("end_turn"), None),
        }
    }

    fn delta(&mut self, kind: Kind, text: &str, out: &mut String) {
        if self.open.as_ref().is_none_or(|o| o.0 != kind) {
            self.close(out);
            let fields = json!({"index": self.content.len(), "content_block": self.block(kind, "")});
            self.event("content_block_start", fields, out);
            self.open = Some((kind, String::new()));
        }
        if let Some((_, all)) = &mut self.open {
            all.push_str(text);
        }
        let delta = match kind {
            Kind::Thinking => json!({"type": "thinking_delta", "thinking": text}),
            Kind::Text => json!({"type": "text_delta", "text": text}),
            Kind::Call(_) => json!({"type": "input_json_delta", "partial_json": text}),
        };
        let index = self.content.len();
        self.event("content_block_delta", json!({"index": index, "delta": delta}), out);
    }

    fn close(&mut self, out: &mut String) {
        if let Some((kind, text)) = self.open.take() {
            let index = self.content.len();
            self.event("content_block_stop", json!({"index": index}), out);
            let block = self.block(kind, &text);
            self.content.push(block);
        }
    }

    fn block(&self, kind: Kind, text: &str) -> Value {
        match kind {
            Kind::Thinking => json!({"type": "thinking", "thinking": text, "signature": ""}),
            Kind::Text => json!({"type": "text", "text": text}),
            Kind::Call(index) => {
                let call = self.answer.calls().get(index);
                let (id, name) = call.map_or(("", ""), |c| (&c.id, &c.name));
                // Of a call that was cut off there is no input.
                let input = serde_json::from_str(text).unwrap_or_else(|_| json!({}));
                json!({"type": "tool_use", "id": id, "name": name, "input": input})
            }
        }
    }

    fn deltas(&mut self, deltas: Vec<Delta>, out: &mut String) {
        for delta in deltas {
            match delta {
                Delta::Reasoning(text) => self.delta(Kind::Thinking, &text, out),
                Delta::Text(text) => self.delta(Kind::Text, &text, out),
                Delta::Call(CallDelta { index, arguments, .. }) => self.delta(Kind::Call(index), &arguments, out),
            }
        }
    }

    fn fail(&mut self, e: ApiError, out: &mut String) {
        if self.stream {
            named("error", &e.anthropic(), out);
        }
        self.error = Some(e);
    }

    /// The whole message.
    ///
    /// # Errors
    /// Where the engine failed.
    pub fn answer(self) -> ApiResult<Value> {
        match (&self.error, self.answer.finished) {
            (Some(e), _) => Err(e.clone()),
            (None, None) => Err(ApiError::new(500, "the engine gave no answer")),
            (None, Some(f)) => Ok(self.message(f.generated)),
        }
    }
}

impl Writer for MessagesWriter {
    fn write(&mut self, _: usize, event: Event, out: &mut String) {
        if self.error.is_some() {
            return;
        }
        match event {
            Event::Started { cached } => {
                self.cached = cached;
                let message = self.message(0);
                self.event("message_start", json!({"message": message}), out);
            }
            Event::Prompt(_) | Event::Embedding(_) => {}
            Event::Piece(piece) => {
                let deltas = self.answer.push(&piece);
                self.deltas(deltas, out);
            }
            Event::Finished(f) => {
                let deltas = self.answer.finish(f);
                self.deltas(deltas, out);
                self.close(out);
                let (reason, sequence) = self.stop_reason();
                let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
                self.event("message_delta", json!({"delta": delta, "usage": self.usage(f.generated)}), out);
                self.event("message_stop", json!({}), out);
            }
            Event::Failed(e) => self.fail(ApiError::from(e), out),
        }
    }

    fn ping(&self, out: &mut String) {
        named("ping", &json!({"type": "ping"}), out);
    }

    fn end(&mut self, out: &mut String) {
        if self.error.is_none() && self.answer.finished.is_none() {
            self.fail(ApiError::new(500, "the engine gave no answer"), out);
        }
    }
}
