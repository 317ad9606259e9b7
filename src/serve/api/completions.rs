//! `/v1/completions` ([reference](https://platform.openai.com/docs/api-reference/completions)): prompts that are continued as
//! they are.

use super::{
    chat::data,
    options::{self, MOST_TEXTS, MOST_TOKENS, Options},
};
use crate::{
    generate::{Logprobs, Piece},
    serve::{
        answer::{self, Answer, Usage, logarithm},
        app::{App, now},
        engine::Event,
        error::{ApiError, ApiResult},
        fields::Fields,
        http::Writer,
        prompt::{self, Encoded},
    },
};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// A request that was read.
#[derive(Debug)]
pub struct TextRequest {
    pub options: Options,
    pub stream: bool,
    pub include_usage: bool,
    pub echo: bool,
    pub prompts: Vec<Encoded>,
}

/// Reads a request and makes its prompts.
///
/// # Errors
/// 400 with the field, 404 for another model.
pub fn read(app: &App, body: &Value) -> ApiResult<TextRequest> {
    let f = Fields::of(body)?;
    app.check_model(f.require_string("model")?)?;
    f.require("prompt")?;
    let mut options = Options::read(app, &f)?;
    let echo = f.boolean("echo")?.unwrap_or(false);
    let least = i64::from(!echo);
    options.max_tokens = Some(f.count("max_tokens", least..=MOST_TOKENS)?.unwrap_or(16));
    options.logprobs = f.count("logprobs", 0..=5)?;
    options.prompt_logprobs = echo && options.logprobs.is_some();
    let best = f.count("best_of", 1..=20)?.unwrap_or(options.n);
    if best != options.n {
        return Err(ApiError::unsupported("best_of", "only as many texts are generated as are given: use n"));
    }
    f.refuse(&[("suffix", "this model writes forwards alone")])?;
    let (stream, include_usage) = options::streaming(&f)?;
    options::accepted(&f)?;
    let prompts = prompts(app, &f)?;
    if prompts.len() * options.n > MOST_TEXTS as usize {
        return Err(ApiError::field("prompt", format!("prompts times n must be at most {MOST_TEXTS}")));
    }
    Ok(TextRequest { options, stream, include_usage, echo, prompts })
}

/// A text, some texts, ids, or some lists of ids.
fn prompts(app: &App, f: &Fields<'_>) -> ApiResult<Vec<Encoded>> {
    let wrong =
        || ApiError::field("prompt", "must be a string, an array of strings, of token ids, or of arrays of token ids");
    match f.require("prompt")? {
        Value::String(s) => Ok(vec![prompt::encode_text(app, "prompt", s)?]),
        Value::Array(a) if a.is_empty() => Err(ApiError::field("prompt", "is empty")),
        Value::Array(a) if a.iter().all(Value::is_number) => Ok(vec![prompt::check_ids(app, "prompt", a)?]),
        Value::Array(a) => {
            let one = |(i, v): (usize, &Value)| match v {
                Value::String(s) => prompt::encode_text(app, &format!("prompt[{i}]"), s),
                Value::Array(ids) => prompt::check_ids(app, &format!("prompt[{i}]"), ids),
                _ => Err(wrong()),
            };
            if a.len() > MOST_TEXTS as usize {
                return Err(ApiError::field("prompt", format!("at most {MOST_TEXTS} prompts, not {}", a.len())));
            }
            a.iter().enumerate().map(one).collect()
        }
        _ => Err(wrong()),
    }
}

/// Writes answers, all at once or as a stream.
#[derive(Debug)]
pub struct TextWriter {
    app: Arc<App>,
    id: String,
    created: u64,
    request: TextRequest,
    choices: Vec<Choice>,
    error: Option<ApiError>,
}

#[derive(Debug)]
struct Choice {
    answer: Answer,
    /// Text that a stream has not given.
    unsent: String,
    logprobs: TokenTable,
    /// Characters so far, the prompt's included where it is echoed.
    offset: usize,
    /// Whether the prompt has been echoed.
    echoed: bool,
}

/// Log-probabilities in the form of this API: four columns.
#[derive(Debug, Default)]
struct TokenTable {
    tokens: Vec<String>,
    logprobs: Vec<Value>,
    top: Vec<Value>,
    offsets: Vec<usize>,
}

impl TokenTable {
    fn push(&mut self, app: &App, text: String, offset: &mut usize, logprobs: Option<&Logprobs>) {
        let length = text.chars().count();
        self.offsets.push(*offset);
        *offset += length;
        match logprobs {
            None => {
                self.logprobs.push(Value::Null);
                self.top.push(Value::Null);
            }
            Some(l) => {
                let mut top = Map::new();
                for (id, p) in &l.top {
                    let bytes = app.token_bytes(*id);
                    top.entry(String::from_utf8_lossy(&bytes)).or_insert(logarithm(*p).into());
                }
                top.insert(text.clone(), logarithm(l.logprob).into());
                self.logprobs.push(logarithm(l.logprob).into());
                self.top.push(top.into());
            }
        }
        self.tokens.push(text);
    }

    fn take(&mut self) -> Value {
        let t = std::mem::take(self);
        json!({"tokens": t.tokens, "token_logprobs": t.logprobs, "top_logprobs": t.top, "text_offset": t.offsets})
    }
}

impl TextWriter {
    /// A writer of the answers to a request.
    pub fn new(app: &Arc<App>, request: TextRequest) -> Self {
        let choice = |_| Choice {
            answer: Answer::plain(),
            unsent: String::new(),
            logprobs: TokenTable::default(),
            offset: 0,
            echoed: !request.echo,
        };
        let n = request.prompts.len() * request.options.n;
        let choices = (0..n).map(choice).collect();
        TextWriter { id: app.id("cmpl-"), created: now(), app: app.clone(), request, choices, error: None }
    }

    fn prompt(&self, index: usize) -> &Encoded {
        &self.request.prompts[index / self.request.options.n]
    }

    /// Puts the prompt before the answer.
    fn echo(&mut self, index: usize, logprobs: &[Option<Logprobs>]) {
        if std::mem::replace(&mut self.choices[index].echoed, true) {
            return;
        }
        let prompt = self.prompt(index).clone();
        let text = &prompt.prompt.text;
        let c = &mut self.choices[index];
        c.unsent.push_str(text);
        c.answer.text.insert_str(0, text);
        if self.request.options.logprobs.is_none() {
            c.offset = text.chars().count();
            return;
        }
        let mut stream = self.app.tokenizer.stream_special();
        for (i, id) in prompt.ids.iter().enumerate() {
            let own = logprobs.get(i).and_then(Option::as_ref);
            c.logprobs.push(&self.app, stream.push(*id), &mut c.offset, own);
        }
    }

    fn piece(&mut self, index: usize, piece: &Piece) {
        self.echo(index, &[]);
        let c = &mut self.choices[index];
        c.answer.push(piece);
        c.unsent.push_str(&piece.text);
        if let Some(l) = &piece.logprobs {
            c.logprobs.push(&self.app, piece.text.clone(), &mut c.offset, Some(l));
        }
    }

    fn send(&mut self, index: usize, finish: Option<&str>, out: &mut String) {
        let c = &mut self.choices[index];
        if !self.request.stream || c.unsent.is_empty() && c.logprobs.tokens.is_empty() && finish.is_none() {
            return;
        }
        let text = std::mem::take(&mut c.unsent);
        let logprobs = if c.logprobs.tokens.is_empty() { Value::Null } else { c.logprobs.take() };
        let choices = json!([{"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}]);
        data(&self.object(choices), out);
    }

    fn object(&self, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.app.options.name,
            "choices": choices,
        })
    }

    fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for (i, c) in self.choices.iter().enumerate() {
            let first = i % self.request.options.n == 0;
            usage.prompt += if first { self.prompt(i).ids.len() } else { 0 };
            if let Some(f) = c.answer.finished {
                usage.completion += f.generated;
                usage.cached += if first { f.cached } else { 0 };
            }
        }
        usage
    }

    fn timings(&self) -> Value {
        let first = self.choices.first().and_then(|c| c.answer.finished);
        first.map_or(Value::Null, |f| answer::timings(self.prompt(0).ids.len(), &f))
    }

    /// The whole answer.
    ///
    /// # Errors
    /// Where the engine failed.
    pub fn answer(mut self) -> ApiResult<Value> {
        if let Some(e) = self.error {
            return Err(e);
        }
        if self.choices.iter().any(|c| c.answer.finished.is_none()) {
            return Err(ApiError::new(500, "the engine gave no answer"));
        }
        let wanted = self.request.options.logprobs.is_some();
        let choice = |(i, c): (usize, &mut Choice)| {
            let logprobs = if wanted { c.logprobs.take() } else { Value::Null };
            let finish = c.answer.finish_reason();
            json!({"index": i, "text": c.answer.text, "logprobs": logprobs, "finish_reason": finish})
        };
        let choices: Vec<Value> = self.choices.iter_mut().enumerate().map(choice).collect();
        let mut whole = self.object(choices.into());
        whole["usage"] = self.usage().openai();
        whole["timings"] = self.timings();
        Ok(whole)
    }
}

impl Writer for TextWriter {
    fn write(&mut self, index: usize, event: Event, out: &mut String) {
        if self.error.is_some() || index >= self.choices.len() {
            return;
        }
        match event {
            Event::Started { .. } | Event::Embedding(_) => {}
            Event::Prompt(logprobs) => {
                self.echo(index, &logprobs);
                self.send(index, None, out);
            }
            Event::Piece(piece) => {
                self.piece(index, &piece);
                self.send(index, None, out);
            }
            Event::Finished(f) => {
                self.echo(index, &[]);
                self.choices[index].answer.finish(f);
                let reason = self.choices[index].answer.finish_reason();
                self.send(index, reason, out);
            }
            Event::Failed(e) => {
                let e = ApiError::from(e);
                if self.request.stream {
                    data(&e.openai(), out);
                }
                self.error = Some(e);
            }
        }
    }

    fn end(&mut self, out: &mut String) {
        if !self.request.stream || self.error.is_some() {
            return;
        }
        if self.choices.iter().any(|c| c.answer.finished.is_none()) {
            return data(&ApiError::new(500, "the engine gave no answer").openai(), out);
        }
        if self.request.include_usage {
            let mut last = self.object(json!([]));
            last["usage"] = self.usage().openai();
            last["timings"] = self.timings();
            data(&last, out);
        }
        out.push_str("data: [DONE]\n\n");
    }
}
