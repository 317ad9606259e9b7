//! From a request's messages to token ids.

use super::{
    app::App,
    error::{ApiError, ApiResult},
};
use crate::{
    tokenizer::{EncodeOptions, Prompt, RenderOptions},
    tools::ToolSyntax,
};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, sync::Arc};

/// A prompt that fits the context.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Its ids, at least one.
    pub ids: Arc<[u32]>,
    /// The text that it was, for readers of the answer.
    pub prompt: Prompt,
}

/// A conversation as the APIs agree on it.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    /// Messages as chat templates take them: `role`, `content`, and what else OpenAI's API has.
    pub messages: Vec<Value>,
    /// Further variables of the template.
    pub variables: BTreeMap<String, Value>,
    /// The last message is an answer that is to be continued.
    pub continues: bool,
}

impl Conversation {
    /// Renders with the chat template.
    ///
    /// # Errors
    /// 400 with what the template says.
    pub fn render(&self, app: &App) -> ApiResult<Prompt> {
        let options = RenderOptions {
            add_generation_prompt: !self.continues,
            now: (app.options.now)(),
            variables: self.variables.clone(),
        };
        let mut messages = ToolSyntax::messages(ToolSyntax::of(&app.tokenizer), &self.messages)
            .map_err(|e| ApiError::field("messages", e.to_string()))?;
        drop_headers(&mut messages);
        let mut prompt = app.template.prompt_of(&messages, &options)?;
        if self.continues {
            cut_behind(&mut prompt, &messages);
        }
        Ok(prompt)
    }

    /// The ids of the rendered conversation.
    ///
    /// # Errors
    /// 400 where the template refuses, or the prompt does not fit.
    pub fn encode(&self, app: &App) -> ApiResult<Encoded> {
        let prompt = self.render(app)?;
        let ids = app.tokenizer.encode_prompt(&prompt)?;
        fits(app, "messages", ids).map(|ids| Encoded { ids, prompt })
    }

    /// How many tokens the conversation has, whether they fit or not.
    ///
    /// # Errors
    /// 400 where the template refuses.
    pub fn count(&self, app: &App) -> ApiResult<usize> {
        Ok(app.tokenizer.encode_prompt(&self.render(app)?)?.len())
    }
}

/// Cuts what the template writes behind the last message, which the model is to go on with.
fn cut_behind(prompt: &mut Prompt, messages: &[Value]) {
    let last = messages.last().and_then(|m| m["content"].as_str()).unwrap_or_default().trim_end();
    if let Some(at) = prompt.text.rfind(last).filter(|_| !last.is_empty()) {
        prompt.text.truncate(at + last.len());
        prompt.foreign.retain_mut(|r| {
            r.end = r.end.min(at + last.len());
            r.start < r.end
        });
    }
}

/// Some programs put lines in the form of HTTP's extension headers (`x-anthropic-billing-header: …; cch=1a2b3;`) before their
/// system message, notes to servers that change with every request. They are none of the model's business, and would make
/// every prompt differ from its first line on.
fn drop_headers(messages: &mut [Value]) {
    let Some(content) = messages.first_mut().filter(|m| m["role"] == "system").and_then(|m| m.get_mut("content"))
    else {
        return;
    };
    if let Value::String(text) = content {
        let rest = without_headers(text);
        if rest.len() < text.len() {
            *text = rest.to_owned();
        }
    }
}

/// A text without header lines at its beginning.
pub fn without_headers(mut text: &str) -> &str {
    loop {
        let (line, rest) = text.split_once('\n').unwrap_or((text, ""));
        let name = line.split_once(':').map(|(name, _)| name);
        let is_header = name.is_some_and(|name| {
            let bytes = name.as_bytes();
            bytes.len() > 2
                && bytes[..2].eq_ignore_ascii_case(b"x-")
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        });
        if !is_header {
            return text;
        }
        text = rest;
    }
}

/// The ids of a prompt in plain words, which came in the field `param`.
///
/// # Errors
/// 400 where it is empty or does not fit.
pub fn encode_text(app: &App, param: &str, text: &str) -> ApiResult<Encoded> {
    let mut ids = app.tokenizer.encode(text, EncodeOptions { add_bos: true, parse_special: false })?;
    if ids.is_empty() {
        // A text from nothing begins where texts begin.
        ids.extend(app.tokenizer.bos().or(app.tokenizer.eos()));
    }
    let prompt = Prompt { text: text.to_owned(), foreign: vec![] };
    fits(app, param, ids).map(|ids| Encoded { ids, prompt })
}

/// The ids of a text that nothing follows: with EOS behind it, where the vocabulary is made for that.
///
/// # Errors
/// 400 where it does not fit.
pub fn encode_whole_text(app: &App, param: &str, text: &str) -> ApiResult<Encoded> {
    let mut ids = app.tokenizer.encode(text, EncodeOptions { add_bos: true, parse_special: false })?;
    ids.extend(app.tokenizer.eos().filter(|_| app.tokenizer.adds_eos()));
    let prompt = Prompt { text: text.to_owned(), foreign: vec![] };
    fits(app, param, ids).map(|ids| Encoded { ids, prompt })
}

/// Ids that came as such.
///
/// # Errors
/// 400 for ids that there are not, no ids, or too many.
pub fn check_ids(app: &App, param: &str, ids: &[Value]) -> ApiResult<Encoded> {
    let vocab = app.model.vocab as u64;
    let id = |(i, v): (usize, &Value)| match v.as_u64().filter(|id| *id < vocab) {
        Some(id) => Ok(id as u32),
        None => Err(ApiError::field(format!("{param}[{i}]"), format!("{v} is no token id below {vocab}"))),
    };
    let ids = ids.iter().enumerate().map(id).collect::<ApiResult<Vec<u32>>>()?;
    let prompt = Prompt { text: app.tokenizer.decode(&ids), foreign: vec![] };
    fits(app, param, ids).map(|ids| Encoded { ids, prompt })
}

fn fits(app: &App, param: &str, ids: Vec<u32>) -> ApiResult<Arc<[u32]>> {
    if ids.is_empty() {
        return Err(ApiError::field(param, "the prompt is empty: a model needs at least one token to start from"));
    }
    if ids.len() > app.engine.ctx() {
        return Err(ApiError::context(param, app.engine.ctx(), ids.len()));
    }
    Ok(ids.into())
}

/// A message with a role and a text.
pub fn message(role: &str, content: impl Into<String>) -> Map<String, Value> {
    let mut m = Map::new();
    m.insert("role".into(), role.into());
    m.insert("content".into(), Value::String(content.into()));
    m
}

#[cfg(test)]
mod tests {
    use super::without_headers;

    #[test]
    fn notes_to_servers_are_not_for_the_model() {
        let claude = "x-anthropic-billing-header: cc_version=2.1.42; cc_entrypoint=cli; cch=a1b2c;\nYou are kind.";
        assert_eq!(without_headers(claude), "You are kind.");
        assert_eq!(without_headers("X-One: 1\nx-two: 2\n\nText: x"), "\nText: x");
        for plain in ["You are: kind", "x: 1", "x- y: 2", "x-ray images show: bones", "", "x-ray"] {
            assert_eq!(without_headers(plain), plain);
        }
        assert_eq!(without_headers("x-only: 1"), "");
    }
}
