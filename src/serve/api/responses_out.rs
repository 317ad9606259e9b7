//! The answers of `/v1/responses`: items that are opened, filled and closed by events.

use super::{chat::data, responses::ResponsesRequest};
use crate::serve::{
    answer::{self, Answer, Delta, Usage},
    app::{App, now},
    engine::Event,
    error::{ApiError, ApiResult},
    http::Writer,
};
use crate::tools::{CallDelta, ToolCall};
use serde_json::{Value, json};
use std::sync::Arc;

/// Writes the events of a response, or the response alone.
#[derive(Debug)]
pub struct ResponsesWriter {
    app: Arc<App>,
    response: Value,
    stream: bool,
    prompt_tokens: usize,
    answer: Answer,
    sequence: u64,
    output: Vec<Value>,
    open: Option<Item>,
    logprobs: Vec<Value>,
    wants_logprobs: bool,
    error: Option<ApiError>,
}

/// An item that is not complete.
#[derive(Debug)]
struct Item {
    kind: Kind,
    id: String,
    text: String,
    /// What is called, and by which id.
    head: Option<ToolCall>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Message,
    Call,
}

impl ResponsesWriter {
    /// A writer of the answer to a request.
    pub fn new(app: &Arc<App>, request: &ResponsesRequest) -> Self {
        ResponsesWriter {
            app: app.clone(),
            response: request.base.clone(),
            stream: request.stream,
            prompt_tokens: request.prompt.ids.len(),
            answer: Answer::of_chat(app, &request.prompt.prompt, &request.form),
            sequence: 0,
            output: vec![],
            open: None,
            logprobs: vec![],
            wants_logprobs: request.options.logprobs.is_some(),
            error: None,
        }
    }

    fn event(&mut self, kind: &str, mut fields: Value, out: &mut String) {
        if !self.stream {
            return;
        }
        fields["type"] = kind.into();
        fields["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        named(kind, &fields, out);
    }

    /// Opens an item of a kind, unless it is open.
    fn open(&mut self, kind: Kind, out: &mut String) {
        if self.open.as_ref().is_some_and(|i| i.kind == kind) {
            return;
        }
        self.close("completed", out);
        let id = self.app.id(if kind == Kind::Message { "msg_" } else { "rs_" });
        let item = item(kind, &id, "in_progress", &[]);
        let index = self.output.len();
        self.event("response.output_item.added", json!({"output_index": index, "item": item}), out);
        let part = part(kind, "", &[]);
        let fields = json!({"output_index": index, "item_id": id, "content_index": 0, "part": part});
        self.event("response.content_part.added", fields, out);
        self.open = Some(Item { kind, id, text: String::new(), head: None });
    }

    /// Opens a call, or goes on with it.
    fn call(&mut self, call: CallDelta, out: &mut String) {
        if let Some(head) = call.head {
            self.close("completed", out);
            let id = self.app.id("fc_");
            let item = function_call(&id, &head, "", "in_progress");
            self.event("response.output_item.added", json!({"output_index": self.output.len(), "item": item}), out);
            self.open = Some(Item { kind: Kind::Call, id, text: String::new(), head: Some(head) });
        }
        let index = self.output.len();
        let Some(item) = self.open.as_mut().filter(|i| i.kind == Kind::Call && !call.arguments.is_empty()) else {
            return;
        };
        item.text.push_str(&call.arguments);
        let fields = json!({"output_index": index, "item_id": item.id, "delta": call.arguments});
        self.event("response.function_call_arguments.delta", fields, out);
    }

    /// Closes a call.
    fn close_call(&mut self, item: &Item, head: &ToolCall, status: &str, out: &mut String) {
        let index = self.output.len();
        // What was cut off is no call.
        let whole = self.answer.calls().iter().any(|c| c.id == head.id && c.complete);
        let status = if whole { "completed" } else { status };
        let done = json!({"output_index": index, "item_id": item.id, "name": head.name, "arguments": item.text});
        self.event("response.function_call_arguments.done", done, out);
        let item = function_call(&item.id, head, &item.text, status);
        self.event("response.output_item.done", json!({"output_index": index, "item": item}), out);
        self.output.push(item);
    }

    fn delta(&mut self, kind: Kind, text: &str, out: &mut String) {
        self.open(kind, out);
        let index = self.output.len();
        let Some(item) = &mut self.open else { return };
        item.text.push_str(text);
        let mut fields = json!({"output_index": index, "item_id": item.id, "content_index": 0, "delta": text});
        match kind {
            Kind::Message => {
                fields["logprobs"] = json!([]);
                self.event("response.output_text.delta", fields, out);
            }
            Kind::Reasoning => self.event("response.reasoning_text.delta", fields, out),
            Kind::Call => {}
        }
    }

    /// Closes the open item, if there is one.
    fn close(&mut self, status: &str, out: &mut String) {
        let Some(open) = self.open.take() else { return };
        if let Some(head) = &open.head {
            return self.close_call(&open, head, status, out);
        }
        let Item { kind, id, text, .. } = open;
        let index = self.output.len();
        let logprobs = if kind == Kind::Message { std::mem::take(&mut self.logprobs) } else { vec![] };
        let part = part(kind, &text, &logprobs);
        let mut fields = json!({"output_index": index, "item_id": id, "content_index": 0, "text": text});
        match kind {
            Kind::Message => {
                fields["logprobs"] = json!([]);
                self.event("response.output_text.done", fields, out);
            }
            Kind::Reasoning => self.event("response.reasoning_text.done", fields, out),
            Kind::Call => {}
        }
        let fields = json!({"output_index": index, "item_id": id, "content_index": 0, "part": part});
        self.event("response.content_part.done", fields, out);
        let item = item(kind, &id, status, &[part]);
        self.event("response.output_item.done", json!({"output_index": index, "item": item}), out);
        self.output.push(item);
    }

    fn deltas(&mut self, deltas: Vec<Delta>, out: &mut String) {
        for delta in deltas {
            match delta {
                Delta::Reasoning(text) => self.delta(Kind::Reasoning, &text, out),
                Delta::Text(text) => self.delta(Kind::Message, &text, out),
                Delta::Call(call) => self.call(call, out),
            }
        }
    }

    fn finish(&mut self, out: &mut String) {
        let Some(f) = self.answer.finished else { return };
        let whole = self.answer.finish_reason() != Some("length");
        let status = if whole { "completed" } else { "incomplete" };
        if self.open.is_none() && self.output.is_empty() {
            self.open(Kind::Message, out);
        }
        self.close(status, out);
        let usage = Usage {
            prompt: self.prompt_tokens,
            cached: f.cached,
            completion: f.generated,
            reasoning: self.answer.reasoning_tokens,
        };
        let r = &mut self.response;
        r["status"] = status.into();
        r["output"] = self.output.clone().into();
        r["usage"] = usage.responses();
        if whole {
            r["completed_at"] = now().into();
        } else {
            r["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        let fields = json!({"response": self.response});
        self.event(&format!("response.{status}"), fields, out);
    }

    fn fail(&mut self, e: ApiError, out: &mut String) {
        self.response["status"] = "failed".into();
        self.response["error"] = json!({"code": "server_error", "message": e.message});
        let fields = json!({"response": self.response});
        self.event("response.failed", fields, out);
        self.error = Some(e);
    }

    /// The whole response.
    ///
    /// # Errors
    /// Where the engine failed.
    pub fn answer(self) -> ApiResult<Value> {
        match self.error {
            Some(e) => Err(e),
            None if self.answer.finished.is_none() => Err(ApiError::new(500, "the engine gave no answer")),
            None => Ok(self.response),
        }
    }
}

/// A message or thoughts.
fn item(kind: Kind, id: &str, status: &str, content: &[Value]) -> Value {
    match kind {
        Kind::Message | Kind::Call => {
            json!({"type": "message", "id": id, "status": status, "role": "assistant", "content": content})
        }
        Kind::Reasoning => {
            json!({"type": "reasoning", "id": id, "status": status, "summary": [], "content": content})
        }
    }
}

fn function_call(id: &str, head: &ToolCall, arguments: &str, status: &str) -> Value {
    let (call, name) = (&head.id, &head.name);
    json!({"type": "function_call", "id": id, "call_id": call, "name": name, "arguments": arguments, "status": status})
}

fn part(kind: Kind, text: &str, logprobs: &[Value]) -> Value {
    match kind {
        Kind::Message | Kind::Call => {
            json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs})
        }
        Kind::Reasoning => json!({"type": "reasoning_text", "text": text}),
    }
}

/// An event with a name.
pub fn named(name: &str, value: &Value, out: &mut String) {
    out.push_str("event: ");
    out.push_str(name);
    out.push('\n');
    data(value, out);
}

impl Writer for ResponsesWriter {
    fn write(&mut self, _: usize, event: Event, out: &mut String) {
        if self.error.is_some() {
            return;
        }
        match event {
            Event::Started { .. } => {
                let fields = json!({"response": self.response});
                self.event("response.created", fields.clone(), out);
                self.event("response.in_progress", fields, out);
            }
            Event::Prompt(_) | Event::Embedding(_) => {}
            Event::Piece(piece) => {
                let deltas = self.answer.push(&piece);
                let thinks = matches!(deltas.first(), Some(Delta::Reasoning(_)));
                if let Some(l) = piece.logprobs.as_ref().filter(|_| self.wants_logprobs && !thinks) {
                    self.logprobs.push(answer::chat_logprobs(&self.app, piece.id, l));
                }
                self.deltas(deltas, out);
            }
            Event::Finished(f) => {
                let deltas = self.answer.finish(f);
                self.deltas(deltas, out);
                self.finish(out);
            }
            Event::Failed(e) => self.fail(ApiError::from(e), out),
        }
    }

    fn end(&mut self, out: &mut String) {
        if self.error.is_none() && self.answer.finished.is_none() {
            self.fail(ApiError::new(500, "the engine gave no answer"), out);
        }
    }
}
