//! Tools: what a model is told of them, and the calls in its answers.
//!
//! Each family of models writes calls in a syntax of its own ([`ToolSyntax`], told from template and vocabulary). A
//! [`ToolReader`] takes an answer's tokens as they come and gives text and calls apart, the arguments of a call as JSON in
//! pieces. It reads character by character, so it cannot matter where the text was cut. Text that only looks like a call is
//! given back as text; arguments that break off stay unfinished and are never mended, since somebody would run them.
//! [`ToolSyntax::messages`] brings a conversation with calls into the form that chat templates expect.
//!
//! Reading order: `json` and `python` (values character by character), `grammar` (what readers of calls have in common),
//! `object`, `tagged`, `xml` with `value`, `section`, `pythonic` (the syntaxes), `syntax` (which is whose), `sink` (what comes
//! out), `scan` (calls within text), `reader`, `messages`.
//!
//! Sources: the models' chat templates; OpenAI's [Harmony format](https://cookbook.openai.com/articles/openai-harmony);
//! Meta's prompt formats of [Llama 3](https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/) and
//! [Llama 4](https://www.llama.com/docs/model-cards-and-prompt-formats/llama4/); Kimi K2's tool calling guide in its
//! repository; OpenAI's reference of chat completions for the pieces of a stream.
//!
//! Deliberately absent: running tools, HTTP, random numbers.

mod grammar;
mod json;
mod messages;
mod object;
mod python;
mod pythonic;
mod reader;
mod scan;
mod section;
mod sink;
mod syntax;
mod tagged;
mod value;
mod xml;

pub use reader::ToolReader;
pub use syntax::ToolSyntax;

use crate::{
    error::{Error, Result},
    tokenizer::Segment,
};

/// A function that a model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it does, for the model.
    pub description: Option<String>,
    /// A JSON schema of its arguments, an object.
    pub parameters: serde_json::Value,
}

impl Tool {
    /// A tool as chat completions have it: `{"type": "function", "function": {"name", "description", "parameters"}}`; the inner
    /// object alone will do.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the name is absent or empty, or the parameters are no schema of an object.
    pub fn from_json(value: &serde_json::Value) -> Result<Tool> {
        let function = value.get("function").unwrap_or(value);
        let name = function["name"].as_str().filter(|n| !n.is_empty());
        let name = name.ok_or_else(|| Error::Invalid("a tool has no function.name".into()))?;
        let empty = || serde_json::json!({"type": "object", "properties": {}});
        let parameters = match function.get("parameters") {
            None | Some(serde_json::Value::Null) => empty(),
            Some(p) if p.as_object().is_some_and(serde_json::Map::is_empty) => empty(),
            Some(p) if p.is_object() && matches!(p["type"].as_str(), None | Some("object")) => p.clone(),
            Some(_) => {
                let what = format!("the parameters of the tool {name:?} must be a schema with \"type\": \"object\"");
                return Err(Error::Invalid(what));
            }
        };
        let description = function["description"].as_str().map(str::to_owned);
        Ok(Tool { name: name.to_owned(), description, parameters })
    }

    /// The tool as chat templates expect it.
    pub fn to_json(&self) -> serde_json::Value {
        let mut function = serde_json::json!({ "name": self.name });
        if let Some(d) = &self.description {
            function["description"] = d.as_str().into();
        }
        function["parameters"] = self.parameters.clone();
        serde_json::json!({ "type": "function", "function": function })
    }
}

/// A call in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// What the tool's result refers to: the model's, where it writes one.
    pub id: String,
    /// The function.
    pub name: String,
    /// A JSON object; where the call is not complete, its beginning.
    pub arguments: String,
    /// Whether the arguments are whole. Where they are not, the answer was cut off, or the model wrote no JSON.
    pub complete: bool,
}

/// A piece of a call, as streams of chat completions have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallDelta {
    /// Which call of the answer, from 0.
    pub index: usize,
    /// In the first piece of a call, and only there: the call with its id and name, still without arguments.
    pub head: Option<ToolCall>,
    /// Some more of the arguments; the pieces of a call, joined, are [`ToolCall::arguments`].
    pub arguments: String,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerDelta {
    /// Some text.
    Text(Segment),
    /// Some of a call.
    Call(CallDelta),
}
