//! An answer as it comes: the model's tokens as parts of a message.

use super::{app::App, engine::Finished, form::Form};
use crate::{
    generate::{FinishReason, Logprobs, Piece},
    tokenizer::{AnswerPart, AnswerReader, Prompt, Segment},
    tools::{AnswerDelta, CallDelta, ToolCall, ToolReader},
};
use serde_json::{Value, json};

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// What the model says to itself.
    Reasoning(String),
    /// What it says.
    Text(String),
    /// A call of a tool, or some more of one.
    Call(CallDelta),
}

#[derive(Debug)]
enum Reader {
    /// Text is not looked into: completions.
    Plain,
    /// Thoughts are told from text.
    Text(Box<AnswerReader>),
    /// And calls.
    Calls(Box<ToolReader>),
}

/// One answer, so far.
#[derive(Debug)]
pub struct Answer {
    reader: Reader,
    /// Whether one call is all that is wanted.
    single: bool,
    /// What was said.
    pub text: String,
    /// What was thought.
    pub reasoning: String,
    /// Tokens that went to thoughts.
    pub reasoning_tokens: usize,
    /// How it ended.
    pub finished: Option<Finished>,
}

impl Answer {
    /// An answer whose thoughts and calls are told from its text.
    pub fn of_chat(app: &App, prompt: &Prompt, form: &Form) -> Self {
        let tokenizer = &app.tokenizer;
        let reader = match form.syntax {
            None => Reader::Text(Box::new(AnswerReader::new(tokenizer, prompt))),
            Some(syntax) => {
                let seed = app.random_word();
                Reader::Calls(Box::new(ToolReader::new(tokenizer, prompt, syntax, &form.tools, seed)))
            }
        };
        Answer { reader, single: form.single, ..Answer::plain() }
    }

    /// An answer that is text as it is.
    pub fn plain() -> Self {
        let reader = Reader::Plain;
        Answer {
            reader,
            single: false,
            text: String::new(),
            reasoning: String::new(),
            reasoning_tokens: 0,
            finished: None,
        }
    }

    /// Takes a token in; gives what became clear.
    pub fn push(&mut self, piece: &Piece) -> Vec<Delta> {
        let deltas = match &mut self.reader {
            Reader::Plain => self.keep(vec![Segment { part: AnswerPart::Content, text: piece.text.clone() }]),
            Reader::Text(reader) => {
                let found = reader.push(piece.id, &piece.text);
                self.keep(found)
            }
            Reader::Calls(reader) => {
                let found = reader.push(piece.id, &piece.text);
                self.keep_calls(found)
            }
        };
        self.reasoning_tokens += usize::from(matches!(deltas.first(), Some(Delta::Reasoning(_))));
        deltas
    }

    /// The end; gives what was held back.
    pub fn finish(&mut self, finished: Finished) -> Vec<Delta> {
        self.finished = Some(finished);
        match &mut self.reader {
            Reader::Plain => vec![],
            Reader::Text(reader) => {
                let rest = reader.finish();
                self.keep(rest)
            }
            Reader::Calls(reader) => {
                let rest = reader.finish();
                self.keep_calls(rest)
            }
        }
    }

    /// The calls so far; one, where one is all that is wanted.
    pub fn calls(&self) -> &[ToolCall] {
        let calls = match &self.reader {
            Reader::Calls(reader) => reader.calls(),
            Reader::Plain | Reader::Text(_) => &[],
        };
        if self.single { &calls[..calls.len().min(1)] } else { calls }
    }

    fn keep_calls(&mut self, found: Vec<AnswerDelta>) -> Vec<Delta> {
        let mut deltas = vec![];
        for delta in found {
            match delta {
                AnswerDelta::Text(segment) => deltas.extend(self.keep(vec![segment])),
                AnswerDelta::Call(call) if self.single && call.index > 0 => {}
                AnswerDelta::Call(call) => deltas.push(Delta::Call(call)),
            }
        }
        deltas
    }

    fn keep(&mut self, segments: Vec<Segment>) -> Vec<Delta> {
        let mut deltas = vec![];
        for Segment { part, text } in segments {
            match part {
                _ if text.is_empty() => {}
                AnswerPart::Thinking => {
                    self.reasoning.push_str(&text);
                    deltas.push(Delta::Reasoning(text));
                }
                AnswerPart::Content | AnswerPart::Other => {
                    self.text.push_str(&text);
                    deltas.push(Delta::Text(text));
                }
            }
        }
        deltas
    }

    /// Why it ended, in OpenAI's word; `None` while it goes on.
    pub fn finish_reason(&self) -> Option<&'static str> {
        let called = !self.calls().is_empty() && self.calls().iter().all(|c| c.complete);
        Some(match self.finished?.reason {
            FinishReason::EndOfText(_) | FinishReason::StopString(_) | FinishReason::StopToken(_) if called => {
                "tool_calls"
            }
            FinishReason::EndOfText(_) | FinishReason::StopString(_) | FinishReason::StopToken(_) => "stop",
            FinishReason::MaxTokens | FinishReason::ContextFull => "length",
            FinishReason::Cancelled | FinishReason::Failed => "stop",
        })
    }
}

/// A logarithm as JSON can have it.
pub fn logarithm(x: f32) -> f32 {
    // OpenAI's value for what cannot be.
    if x.is_finite() { x } else { -9999.0 }
}

/// A token in chat's form: its text, its bytes, how probable it is.
fn entry(app: &App, id: u32, logprob: f32) -> Value {
    let bytes = app.token_bytes(id);
    json!({"token": String::from_utf8_lossy(&bytes), "logprob": logarithm(logprob), "bytes": bytes})
}

/// The log-probabilities of a token in chat's form.
pub fn chat_logprobs(app: &App, id: u32, logprobs: &Logprobs) -> Value {
    let mut value = entry(app, id, logprobs.logprob);
    let top: Vec<Value> = logprobs.top.iter().map(|(id, p)| entry(app, *id, *p)).collect();
    value["top_logprobs"] = top.into();
    value
}

/// The numbers of answers to one prompt: what clients pay for elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of prompts.
    pub prompt: usize,
    /// Of those, not read.
    pub cached: usize,
    /// Tokens generated.
    pub completion: usize,
    /// Of those, thoughts.
    pub reasoning: usize,
}

impl Usage {
    /// As chat completions have it.
    pub fn openai(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        })
    }

    /// As responses have it.
    pub fn responses(&self) -> Value {
        json!({
            "input_tokens": self.prompt,
            "output_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "input_tokens_details": {"cached_tokens": self.cached, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": self.reasoning},
        })
    }
}

/// Counts and times of one answer, as llama-server has them.
pub fn timings(prompt: usize, f: &Finished) -> Value {
    let rate = |n: usize, seconds: f64| if seconds > 0.0 { n as f64 / seconds } else { 0.0 };
    let read = prompt - f.cached.min(prompt);
    // The first token comes with the prompt.
    let later = f.generated.saturating_sub(1);
    json!({
        "cache_n": f.cached,
        "prompt_n": read,
        "prompt_ms": 1e3 * f.timings.prompt,
        "prompt_per_second": rate(read, f.timings.prompt),
        "predicted_n": f.generated,
        "predicted_ms": 1e3 * f.timings.generation,
        "predicted_per_second": rate(later, f.timings.generation),
        "queued_ms": 1e3 * f.timings.queued,
    })
}
