//! The messages of chat completions, checked, as chat templates take them.

use crate::serve::{
    error::{ApiError, ApiResult},
    fields::Fields,
};
use serde_json::{Map, Value, json};

/// Roles that a message may have.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// Reads `messages`.
///
/// # Errors
/// 400 with the field.
pub fn read(f: &Fields<'_>) -> ApiResult<Vec<Value>> {
    f.require("messages")?;
    let list = f.array("messages")?.unwrap_or_default();
    if list.is_empty() {
        return Err(ApiError::field("messages", "is empty: a conversation has at least one message"));
    }
    list.iter().enumerate().map(|(i, m)| one(&Fields::at(m, format!("messages[{i}]"))?)).collect()
}

fn one(m: &Fields<'_>) -> ApiResult<Value> {
    m.require_string("role")?;
    let role = m.word("role", &ROLES)?.unwrap_or("user");
    let mut out = Map::new();
    // The developer's word is the system message under its newer name.
    out.insert("role".into(), if role == "developer" { "system" } else { role }.into());
    let calls = if role == "assistant" { calls(m)? } else { vec![] };
    let text = match m.get("content") {
        None if role == "assistant" => text_of(m, "refusal")?.unwrap_or_default(),
        None => return Err(ApiError::missing(&m.path("content"))),
        Some(_) => content(m, "content")?,
    };
    out.insert("content".into(), text.into());
    for name in ["name", "reasoning_content"] {
        if let Some(text) = m.string(name)? {
            out.insert(name.into(), text.into());
        }
    }
    if let Some(text) = m.string("reasoning_content")? {
        out.insert("thinking".into(), text.into());
    }
    if role == "tool" {
        out.insert("tool_call_id".into(), m.require_string("tool_call_id")?.into());
    }
    if !calls.is_empty() {
        out.insert("tool_calls".into(), calls.into());
    }
    Ok(Value::Object(out))
}

fn text_of(m: &Fields<'_>, name: &str) -> ApiResult<Option<String>> {
    Ok(m.string(name)?.map(str::to_owned))
}

/// A text, or parts of one.
///
/// # Errors
/// 400 for anything else: pictures and sound need a model that takes them.
pub fn content(m: &Fields<'_>, name: &str) -> ApiResult<String> {
    let parts = match m.get(name) {
        None => return Err(ApiError::missing(&m.path(name))),
        Some(Value::String(s)) => return Ok(s.clone()),
        Some(Value::Array(parts)) => parts,
        Some(_) => {
            return Err(ApiError::field(m.path(name), "must be a string or an array of parts"));
        }
    };
    let mut texts = vec![];
    for (i, part) in parts.iter().enumerate() {
        let p = Fields::at(part, format!("{}[{i}]", m.path(name)))?;
        match p.require_string("type")? {
            "text" | "input_text" | "output_text" => texts.push(p.require_string("text")?),
            "refusal" => texts.push(p.require_string("refusal")?),
            "image_url" | "input_image" | "image" | "input_audio" | "file" | "input_file" | "document" => {
                return Err(ApiError::unsupported(&p.path("type"), "this model takes text alone"));
            }
            other => return Err(ApiError::field(p.path("type"), format!("{other:?} is no kind of part"))),
        }
    }
    Ok(texts.join("\n"))
}

/// The calls of an assistant's message.
fn calls(m: &Fields<'_>) -> ApiResult<Vec<Value>> {
    let mut all = vec![];
    for (i, call) in m.array("tool_calls")?.unwrap_or_default().iter().enumerate() {
        let call = Fields::at(call, format!("{}[{i}]", m.path("tool_calls")))?;
        let id = call.require_string("id")?;
        call.word("type", &["function"])?;
        call.require("function")?;
        let Some(function) = call.object("function")? else { continue };
        let (name, arguments) = (function.require_string("name")?, function.require_string("arguments")?);
        all.push(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}));
    }
    Ok(all)
}
