//! `/v1/chat/completions` ([reference](https://platform.openai.com/docs/api-reference/chat)).

use super::{
    messages_in,
    options::{self, MOST_TOKENS, Options},
};
use crate::serve::{
    answer::{self, Answer, Delta, Usage},
    app::{App, now},
    engine::Event,
    error::{ApiError, ApiResult},
    fields::Fields,
    form::{self, Form},
    http::Writer,
    prompt::{Conversation, Encoded},
};
use crate::tools::{CallDelta, ToolCall};
use serde_json::{Value, json};
use std::sync::Arc;

/// A request that was read.
#[derive(Debug)]
pub struct ChatRequest {
    pub options: Options,
    pub stream: bool,
    pub include_usage: bool,
    pub prompt: Encoded,
    pub form: Form,
}

/// What the API has and this server has not.
const REFUSED: [(&str, &str); 5] = [
    ("functions", "is the API's old form: use tools"),
    ("function_call", "is the API's old form: use tool_choice"),
    ("audio", "this model gives text alone"),
    ("web_search_options", "this server searches nothing"),
    ("prediction", "predicted outputs are not supported"),
];

/// Reads a request and makes its prompt.
///
/// # Errors
/// 400 with the field, 404 for another model.
pub fn read(app: &App, body: &Value) -> ApiResult<ChatRequest> {
    let f = Fields::of(body)?;
    app.check_model(f.require_string("model")?)?;
    f.refuse(&REFUSED)?;
    let mut conversation = conversation(&f)?;
    let form = Form::of(app, form::of_chat(&f)?)?;
    conversation.variables.extend(form.shown().map(|tools| ("tools".to_owned(), tools)));
    let mut options = Options::read(app, &f)?;
    let most = f.count("max_tokens", 1..=MOST_TOKENS)?;
    options.max_tokens = f.count("max_completion_tokens", 1..=MOST_TOKENS)?.or(most);
    let logprobs = f.boolean("logprobs")?.unwrap_or(false);
    let top = f.count("top_logprobs", 0..=20)?;
    if top.is_some_and(|n| n > 0) && !logprobs {
        return Err(ApiError::field("top_logprobs", "needs logprobs to be true"));
    }
    options.logprobs = logprobs.then_some(top.unwrap_or(0));
    let (stream, include_usage) = options::streaming(&f)?;
    options::accepted(&f)?;
    only_text(&f)?;
    let prompt = conversation.encode(app)?;
    options.matcher = form.matcher(app, &prompt.prompt)?;
    Ok(ChatRequest { options, stream, include_usage, prompt, form })
}

/// The messages and the template's variables of a body: `/apply-template` takes the same.
///
/// # Errors
/// 400 with the field.
pub fn conversation(f: &Fields<'_>) -> ApiResult<Conversation> {
    let mut conversation = Conversation { messages: messages_in::read(f)?, ..Conversation::default() };
    if let Some(variables) = f.object("chat_template_kwargs")? {
        conversation.variables.extend(variables.entries().map(|(k, v)| (k.clone(), v.clone())));
    }
    if let Some(effort) = f.word("reasoning_effort", &["none", "minimal", "low", "medium", "high", "xhigh"])? {
        conversation.variables.entry("reasoning_effort".into()).or_insert(effort.into());
    }
    Ok(conversation)
}

/// Modalities and formats other than text.
fn only_text(f: &Fields<'_>) -> ApiResult<()> {
    for (i, m) in f.array("modalities")?.unwrap_or_default().iter().enumerate() {
        if m != "text" {
            return Err(ApiError::unsupported(&format!("modalities[{i}]"), "this model gives text alone"));
        }
    }
    f.word("verbosity", &["low", "medium", "high"])?;
    Ok(())
}

/// Writes answers, all at once or as a stream.
#[derive(Debug)]
pub struct ChatWriter {
    app: Arc<App>,
    id: String,
    created: u64,
    stream: bool,
    include_usage: bool,
    prompt_tokens: usize,
    choices: Vec<Choice>,
    error: Option<ApiError>,
}

#[derive(Debug)]
struct Choice {
    answer: Answer,
    begun: bool,
    /// All of them; of a stream those that were not sent.
    logprobs: Vec<Value>,
    wants_logprobs: bool,
}

impl ChatWriter {
    /// A writer of the answers to a request.
    pub fn new(app: &Arc<App>, request: &ChatRequest) -> Self {
        let choice = |_| Choice {
            answer: Answer::of_chat(app, &request.prompt.prompt, &request.form),
            begun: false,
            logprobs: vec![],
            wants_logprobs: request.options.logprobs.is_some(),
        };
        ChatWriter {
            id: app.id("chatcmpl-"),
            created: now(),
            stream: request.stream,
            include_usage: request.include_usage,
            prompt_tokens: request.prompt.ids.len(),
            choices: (0..request.options.n).map(choice).collect(),
            error: None,
            app: app.clone(),
        }
    }

    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.app.options.name,
            "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn delta(&mut self, index: usize, delta: Value, finish: Option<&str>, out: &mut String) {
        if !self.stream {
            return;
        }
        let choice = &mut self.choices[index];
        let mut delta = delta;
        if !std::mem::replace(&mut choice.begun, true) {
            delta["role"] = "assistant".into();
        }
        let logprobs = match choice.logprobs.is_empty() {
            true => Value::Null,
            false => json!({"content": std::mem::take(&mut choice.logprobs), "refusal": null}),
        };
        let choices = json!([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]);
        data(&self.chunk(choices), out);
    }

    fn deltas(&mut self, index: usize, deltas: Vec<Delta>, out: &mut String) {
        let empty = deltas.is_empty();
        for delta in deltas {
            let delta = match delta {
                Delta::Reasoning(text) => json!({"reasoning_content": text}),
                Delta::Text(text) => json!({"content": text}),
                Delta::Call(call) => json!({"tool_calls": [piece(call)]}),
            };
            self.delta(index, delta, None, out);
        }
        if empty && !self.choices[index].logprobs.is_empty() {
            self.delta(index, json!({"content": ""}), None, out);
        }
    }

    fn usage(&self) -> Usage {
        let mut usage = Usage { prompt: self.prompt_tokens, ..Usage::default() };
        for (i, c) in self.choices.iter().enumerate() {
            if let Some(f) = c.answer.finished {
                usage.completion += f.generated;
                usage.cached = if i == 0 { f.cached } else { usage.cached };
            }
            usage.reasoning += c.answer.reasoning_tokens;
        }
        usage
    }

    fn timings(&self) -> Value {
        let first = self.choices.first().and_then(|c| c.answer.finished);
        first.map_or(Value::Null, |f| answer::timings(self.prompt_tokens, &f))
    }

    /// The whole answer.
    ///
    /// # Errors
    /// Where the engine failed.
    pub fn answer(self) -> ApiResult<Value> {
        if let Some(e) = self.error {
            return Err(e);
        }
        if self.choices.iter().any(|c| c.answer.finished.is_none()) {
            return Err(ApiError::new(500, "the engine gave no answer"));
        }
        let (usage, timings) = (self.usage().openai(), self.timings());
        let choices: Vec<Value> = self.choices.into_iter().enumerate().map(|(i, c)| c.whole(i)).collect();
        Ok(json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.app.options.name,
            "choices": choices,
            "usage": usage,
            "timings": timings,
        }))
    }
}

impl Choice {
    fn whole(self, index: usize) -> Value {
        let mut message = json!({"role": "assistant", "content": self.answer.text, "refusal": null});
        let calls: Vec<Value> = self.answer.calls().iter().map(call).collect();
        if !calls.is_empty() {
            if self.answer.text.is_empty() {
                message["content"] = Value::Null;
            }
            message["tool_calls"] = calls.into();
        }
        let reasoning = self.answer.reasoning.trim_matches('\n');
        if !reasoning.is_empty() {
            message["reasoning_content"] = reasoning.into();
        }
        let logprobs =
            if self.wants_logprobs { json!({"content": self.logprobs, "refusal": null}) } else { Value::Null };
        let finish = self.answer.finish_reason();
        json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
    }
}

/// A call of a whole answer.
fn call(call: &ToolCall) -> Value {
    json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
}

/// A piece of a call.
fn piece(call: CallDelta) -> Value {
    match call.head {
        None => json!({"index": call.index, "function": {"arguments": call.arguments}}),
        Some(head) => json!({
            "index": call.index,
            "id": head.id,
            "type": "function",
            "function": {"name": head.name, "arguments": call.arguments},
        }),
    }
}

/// An event without a name.
pub fn data(value: &Value, out: &mut String) {
    out.push_str("data: ");
    out.push_str(&value.to_string());
    out.push_str("\n\n");
}

impl Writer for ChatWriter {
    fn write(&mut self, index: usize, event: Event, out: &mut String) {
        if self.error.is_some() || index >= self.choices.len() {
            return;
        }
        match event {
            Event::Started { .. } => self.delta(index, json!({"content": ""}), None, out),
            Event::Prompt(_) | Event::Embedding(_) => {}
            Event::Piece(piece) => {
                if let Some(logprobs) = &piece.logprobs {
                    let entry = answer::chat_logprobs(&self.app, piece.id, logprobs);
                    self.choices[index].logprobs.push(entry);
                }
                let deltas = self.choices[index].answer.push(&piece);
                self.deltas(index, deltas, out);
            }
            Event::Finished(f) => {
                let deltas = self.choices[index].answer.finish(f);
                self.deltas(index, deltas, out);
                let reason = self.choices[index].answer.finish_reason();
                self.delta(index, json!({}), reason, out);
            }
            Event::Failed(e) => {
                let e = ApiError::from(e);
                if self.stream {
                    data(&e.openai(), out);
                }
                self.error = Some(e);
            }
        }
    }

    fn end(&mut self, out: &mut String) {
        if !self.stream || self.error.is_some() {
            return;
        }
        if self.choices.iter().any(|c| c.answer.finished.is_none()) {
            return data(&ApiError::new(500, "the engine gave no answer").openai(), out);
        }
        if self.include_usage {
            let mut chunk = self.chunk(json!([]));
            chunk["usage"] = self.usage().openai();
            chunk["timings"] = self.timings();
            data(&chunk, out);
        }
        out.push_str("data: [DONE]\n\n");
    }
}
