//! `/v1/responses` ([reference](https://platform.openai.com/docs/api-reference/responses),
//! [Open Responses](https://www.openresponses.org)): the same answers as items, each opened, filled and closed by events.
//!
//! Nothing is kept: a conversation comes whole with every request.

use super::{
    messages_in::content,
    options::{self, MOST_TOKENS, Options},
};
use crate::serve::{
    app::{App, now},
    error::{ApiError, ApiResult},
    fields::Fields,
    form::{self, Form},
    prompt::{Conversation, Encoded, message},
};
use serde_json::{Map, Value, json};

/// A request that was read.
#[derive(Debug)]
pub struct ResponsesRequest {
    pub options: Options,
    pub stream: bool,
    pub prompt: Encoded,
    pub form: Form,
    /// The response before anything of it is generated: what the request asked for comes back in it.
    pub base: Value,
}

/// What the API has and this server has not.
const REFUSED: [(&str, &str); 3] = [
    ("conversation", "this server keeps no conversations: send all of its items as input"),
    ("prompt", "this server keeps no prompts"),
    ("context_management", "this server changes no contexts"),
];

/// Reads a request and makes its prompt.
///
/// # Errors
/// 400 with the field, 404 for another model or an earlier response.
pub fn read(app: &App, body: &Value) -> ApiResult<ResponsesRequest> {
    let f = Fields::of(body)?;
    app.check_model(f.require_string("model")?)?;
    let mut conversation = conversation(&f)?;
    let form = Form::of(app, form::of_responses(&f)?)?;
    conversation.variables.extend(form.shown().map(|tools| ("tools".to_owned(), tools)));
    let mut options = Options { n: 1, sampler: options::sampler(app, &f, 2.0)?, ..Options::default() };
    options.max_tokens = f.count("max_output_tokens", 1..=MOST_TOKENS)?;
    options.presence_penalty = f.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0);
    options.frequency_penalty = f.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0);
    let top = f.count("top_logprobs", 0..=20)?;
    let include = f.strings("include", 16)?;
    if include.iter().any(|i| i == "message.output_text.logprobs") {
        options.logprobs = Some(top.unwrap_or(0));
    }
    let (stream, _) = options::streaming(&f)?;
    let base = base(app, &f, &options)?;
    let prompt = conversation.encode(app)?;
    options.matcher = form.matcher(app, &prompt.prompt)?;
    Ok(ResponsesRequest { options, stream, prompt, form, base })
}

/// `/v1/responses/input_tokens`: how many tokens a request's input has.
///
/// # Errors
/// As [`read`], but for the prompt's length.
pub fn count(app: &App, body: &Value) -> ApiResult<Value> {
    let f = Fields::of(body)?;
    if let Some(model) = f.string("model")? {
        app.check_model(model)?;
    }
    let n = conversation(&f)?.count(app)?;
    Ok(json!({"object": "response.input_tokens", "input_tokens": n}))
}

fn conversation(f: &Fields<'_>) -> ApiResult<Conversation> {
    f.refuse(&REFUSED)?;
    if f.string("previous_response_id")?.is_some() {
        let message = "this server keeps no responses: send all items of the conversation as input";
        let error = ApiError::field("previous_response_id", message);
        return Err(ApiError { status: 404, code: Some("previous_response_not_found"), ..error });
    }
    if f.boolean("background")? == Some(true) {
        return Err(ApiError::unsupported("background", "answers are given at once here, or as a stream"));
    }
    if f.word("truncation", &["auto", "disabled"])? == Some("auto") {
        return Err(ApiError::unsupported("truncation", "nothing is cut from a conversation here"));
    }
    let mut messages = input(f)?;
    if let Some(text) = f.string("instructions")? {
        match messages.first_mut().filter(|m| m["role"] == "system") {
            // Many templates take one system message.
            Some(m) => m["content"] = format!("{text}\n\n{}", m["content"].as_str().unwrap_or_default()).into(),
            None => messages.insert(0, Value::Object(message("system", text))),
        }
    }
    let mut conversation = Conversation { messages, ..Conversation::default() };
    if let Some(reasoning) = f.object("reasoning")?
        && let Some(effort) = reasoning.word("effort", &["none", "minimal", "low", "medium", "high", "xhigh"])?
    {
        conversation.variables.insert("reasoning_effort".into(), effort.into());
    }
    Ok(conversation)
}

/// `input`: a text, or items.
fn input(f: &Fields<'_>) -> ApiResult<Vec<Value>> {
    let items = match f.require("input")? {
        Value::String(s) => return Ok(vec![Value::Object(message("user", s.as_str()))]),
        Value::Array(items) if items.is_empty() => return Err(ApiError::field("input", "is empty")),
        Value::Array(items) => items,
        _ => return Err(ApiError::field("input", "must be a string or an array of items")),
    };
    let mut messages: Vec<Value> = vec![];
    let mut thought: Option<String> = None;
    for (i, item) in items.iter().enumerate() {
        let item = Fields::at(item, format!("input[{i}]"))?;
        match item.string("type")?.unwrap_or("message") {
            "message" => messages.push(spoken(&item, &mut thought)?),
            "function_call" => call(&item, &mut messages, &mut thought)?,
            "function_call_output" => {
                let mut m = message("tool", content(&item, "output")?);
                m.insert("tool_call_id".into(), item.require_string("call_id")?.into());
                messages.push(Value::Object(m));
            }
            "reasoning" => thought = Some(reasoning(&item)?),
            other => {
                return Err(ApiError::unsupported(
                    &item.path("type"),
                    format!("items of type {other:?} are not taken here"),
                ));
            }
        }
    }
    Ok(messages)
}

fn spoken(item: &Fields<'_>, thought: &mut Option<String>) -> ApiResult<Value> {
    item.require_string("role")?;
    let role = item.word("role", &["system", "developer", "user", "assistant"])?.unwrap_or("user");
    let mut m = message(if role == "developer" { "system" } else { role }, content(item, "content")?);
    if role == "assistant" {
        think(&mut m, thought);
    }
    Ok(Value::Object(m))
}

fn think(m: &mut Map<String, Value>, thought: &mut Option<String>) {
    if let Some(thought) = thought.take().filter(|t| !t.is_empty()) {
        m.insert("reasoning_content".into(), thought.as_str().into());
        m.insert("thinking".into(), thought.into());
    }
}

fn call(item: &Fields<'_>, messages: &mut Vec<Value>, thought: &mut Option<String>) -> ApiResult<()> {
    let id = item.require_string("call_id")?;
    let (name, arguments) = (item.require_string("name")?, item.require_string("arguments")?);
    let call = json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    // Calls that follow each other are those of one message.
    if let Some(calls) =
        messages.last_mut().filter(|m| m["role"] == "assistant").and_then(|m| m["tool_calls"].as_array_mut())
    {
        calls.push(call);
        return Ok(());
    }
    let mut m = message("assistant", "");
    think(&mut m, thought);
    m.insert("tool_calls".into(), vec![call].into());
    messages.push(Value::Object(m));
    Ok(())
}

fn reasoning(item: &Fields<'_>) -> ApiResult<String> {
    let mut texts = vec![];
    for name in ["content", "summary"] {
        for (i, part) in item.array(name)?.unwrap_or_default().iter().enumerate() {
            let part = Fields::at(part, format!("{}[{i}]", item.path(name)))?;
            texts.push(part.require_string("text")?);
        }
        if !texts.is_empty() {
            break;
        }
    }
    Ok(texts.join("\n"))
}

/// The response as it is before its first item.
fn base(app: &App, f: &Fields<'_>, o: &Options) -> ApiResult<Value> {
    options::metadata(f)?;
    let reasoning = match f.object("reasoning")? {
        None => Value::Null,
        Some(r) => json!({"effort": r.string("effort")?, "summary": r.string("summary")?}),
    };
    let text = |name: &str| f.string(name);
    Ok(json!({
        "id": app.id("resp_"),
        "object": "response",
        "created_at": now(),
        "completed_at": null,
        "status": "in_progress",
        "incomplete_details": null,
        "model": app.options.name,
        "previous_response_id": null,
        "instructions": text("instructions")?,
        "output": [],
        "error": null,
        "tools": tools(f)?,
        "tool_choice": f.get("tool_choice").cloned().unwrap_or_else(|| "auto".into()),
        "truncation": "disabled",
        "parallel_tool_calls": f.boolean("parallel_tool_calls")?.unwrap_or(true),
        "text": {"format": format(f)?},
        "top_p": round(o.sampler.top_p),
        "presence_penalty": round(o.presence_penalty),
        "frequency_penalty": round(o.frequency_penalty),
        "top_logprobs": f.count("top_logprobs", 0..=20)?.unwrap_or(0),
        "temperature": round(o.sampler.temperature),
        "reasoning": reasoning,
        "usage": null,
        "max_output_tokens": o.max_tokens,
        "max_tool_calls": f.count("max_tool_calls", 1..=MOST_TOKENS)?,
        "store": f.boolean("store")?.unwrap_or(false),
        "background": false,
        "service_tier": text("service_tier")?.filter(|t| *t != "auto").unwrap_or("default"),
        "metadata": f.get("metadata").cloned().unwrap_or_else(|| json!({})),
        "safety_identifier": text("safety_identifier")?,
        "prompt_cache_key": text("prompt_cache_key")?,
    }))
}

/// The tools as they come back: with what has a default.
fn tools(f: &Fields<'_>) -> ApiResult<Vec<Value>> {
    let mut tools = f.array("tools")?.unwrap_or_default().to_vec();
    for tool in tools.iter_mut().filter_map(Value::as_object_mut) {
        for (key, default) in [("description", Value::Null), ("parameters", Value::Null), ("strict", true.into())] {
            tool.entry(key).or_insert(default);
        }
    }
    Ok(tools)
}

/// The form of the text as it comes back.
fn format(f: &Fields<'_>) -> ApiResult<Value> {
    let Some(text) = f.object("text")? else { return Ok(json!({"type": "text"})) };
    let mut format = text.get("format").cloned().unwrap_or_else(|| json!({"type": "text"}));
    if let Some(map) = format.as_object_mut().filter(|m| m["type"] == "json_schema") {
        for (key, default) in [("name", "schema".into()), ("description", Value::Null), ("strict", false.into())] {
            map.entry(key).or_insert(default);
        }
    }
    Ok(format)
}

/// A number of a request as it was written there, not as its binary fraction.
fn round(x: f32) -> f64 {
    (f64::from(x) * 1e6).round() / 1e6
}
