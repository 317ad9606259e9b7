//! Conversations as chat completions have them, in the form that chat templates expect.

use super::{sink::letters, syntax::ToolSyntax};
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::collections::HashMap;

impl ToolSyntax {
    /// Brings the messages of a chat completion into the form that the models' templates were written for, with the ids of a model
    /// that writes calls in this syntax (none: any ids):
    ///
    /// - the arguments of calls are an object, not JSON within a text, since templates go through them;
    /// - an absent or empty `content` is an empty text, and parts that are all text are one, a line each;
    /// - `tool_calls` that are empty are absent, since templates ask whether they are there;
    /// - what the model thought has the two names that templates know, `reasoning_content` and `thinking`;
    /// - a tool's message has the name of its function;
    /// - ids of calls are of the kind that the model knows: nine letters and digits for Mistral, `functions.NAME:INDEX` for Kimi.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the place of what is wrong: a message that is no object, arguments that are no JSON object, a part
    /// that is no text.
    pub fn messages(syntax: Option<ToolSyntax>, messages: &[Value]) -> Result<Vec<Value>> {
        let mut ids = Ids { syntax, names: HashMap::new(), given: HashMap::new(), calls: 0 };
        messages.iter().enumerate().map(|(i, m)| message(m, &format!("messages[{i}]"), &mut ids)).collect()
    }
}

fn wrong<T>(place: &str, what: &str) -> Result<T> {
    Err(Error::Invalid(format!("{place}: {what}")))
}

/// What is known of calls from earlier messages.
struct Ids {
    syntax: Option<ToolSyntax>,
    /// From a call's id to its function.
    names: HashMap<String, String>,
    /// From a call's id to the one that the template sees.
    given: HashMap<String, String>,
    calls: usize,
}

impl Ids {
    /// The id of a new call as the template sees it.
    fn call(&mut self, id: &str, name: &str) -> String {
        let index = self.calls;
        self.calls += 1;
        let own = match self.syntax {
            Some(ToolSyntax::MistralList | ToolSyntax::MistralNamed) => {
                if id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric()) {
                    id.to_owned()
                } else {
                    // FNV-1a: the same conversation gives the same text, and so the same prefix.
                    let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
                    letters(id.bytes().fold(0xcbf2_9ce4_8422_2325, step), 9)
                }
            }
            Some(ToolSyntax::Kimi) if !id.starts_with("functions.") => format!("functions.{name}:{index}"),
            _ => id.to_owned(),
        };
        self.names.insert(id.to_owned(), name.to_owned());
        self.given.insert(id.to_owned(), own.clone());
        own
    }
}

fn message(value: &Value, place: &str, ids: &mut Ids) -> Result<Value> {
    let Value::Object(given) = value else { return wrong(place, "a message must be an object") };
    let mut out = given.clone();
    if !given.get("role").is_some_and(Value::is_string) {
        return wrong(place, "a message needs a role");
    }
    out.insert("content".into(), content(given.get("content"), place)?);
    let thought = ["reasoning_content", "thinking", "reasoning"].iter().find_map(|k| given.get(*k)?.as_str());
    out.remove("reasoning");
    for key in ["reasoning_content", "thinking"] {
        match thought.filter(|t| !t.is_empty()) {
            Some(t) => out.insert(key.into(), t.into()),
            None => out.remove(key),
        };
    }
    match given.get("tool_calls") {
        None | Some(Value::Null) => {
            out.remove("tool_calls");
        }
        Some(Value::Array(calls)) if calls.is_empty() => {
            out.remove("tool_calls");
        }
        Some(Value::Array(calls)) => {
            let call = |(i, c): (usize, &Value)| self::call(c, &format!("{place}.tool_calls[{i}]"), ids);
            let calls = calls.iter().enumerate().map(call).collect::<Result<_>>()?;
            out.insert("tool_calls".into(), Value::Array(calls));
        }
        Some(_) => return wrong(place, "tool_calls must be a list"),
    }
    if let Some(id) = given.get("tool_call_id").and_then(Value::as_str) {
        if let Some(name) = ids.names.get(id).filter(|_| !given.contains_key("name")) {
            out.insert("name".into(), name.as_str().into());
        }
        if let Some(own) = ids.given.get(id) {
            out.insert("tool_call_id".into(), own.as_str().into());
        }
    }
    Ok(Value::Object(out))
}

fn content(given: Option<&Value>, place: &str) -> Result<Value> {
    let parts = match given {
        None | Some(Value::Null) => return Ok("".into()),
        Some(Value::String(text)) => return Ok(text.as_str().into()),
        Some(Value::Array(parts)) => parts,
        Some(_) => return wrong(place, "content must be a text or a list of parts"),
    };
    let mut lines = vec![];
    for (i, part) in parts.iter().enumerate() {
        match (part["type"].as_str(), part["text"].as_str(), part["refusal"].as_str(), part.as_str()) {
            (Some("text" | "input_text" | "output_text"), Some(text), ..) | (_, _, Some(text), _) => lines.push(text),
            (_, _, _, Some(text)) => lines.push(text),
            (Some(kind), ..) => {
                return wrong(&format!("{place}.content[{i}]"), &format!("this model reads text, not {kind:?}"));
            }
            (None, ..) => return wrong(&format!("{place}.content[{i}]"), "a part needs a type"),
        }
    }
    Ok(lines.join("\n").into())
}

fn call(value: &Value, place: &str, ids: &mut Ids) -> Result<Value> {
    let function = &value["function"];
    let Some(name) = function["name"].as_str() else { return wrong(place, "function.name is missing") };
    let arguments = match &function["arguments"] {
        Value::Object(map) => Value::Object(map.clone()),
        Value::Null => Value::Object(Map::new()),
        Value::String(text) if text.trim().is_empty() => Value::Object(Map::new()),
        Value::String(text) => match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Value::Object(map),
            Ok(_) => return wrong(place, "function.arguments must be a JSON object"),
            Err(e) => return wrong(place, &format!("function.arguments must be a JSON object: {e}")),
        },
        _ => return wrong(place, "function.arguments must be a JSON object"),
    };
    let mut out = value.as_object().cloned().unwrap_or_default();
    let mut inner = function.as_object().cloned().unwrap_or_default();
    inner.insert("arguments".into(), arguments);
    let id = value["id"].as_str().unwrap_or_default();
    out.insert("id".into(), ids.call(id, name).into());
    out.insert("type".into(), "function".into());
    out.insert("function".into(), Value::Object(inner));
    Ok(Value::Object(out))
}
