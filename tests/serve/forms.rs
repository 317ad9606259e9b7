//! Tools and forms of answers, in all three APIs: what a model writes under them fits, whole and as a stream.

use super::client::{Server, merged, options};
use moeray::serve::ServeOptions;
use serde_json::{Value, json};

/// ChatML with calls in `<tool_call>`.
const TEMPLATE: &str = "{% if tools %}{{ 'Tools:' }}{% for t in tools %}{{ '\\n' + (t | tojson) }}{% endfor %}{{ '\\n' }}{% endif %}\
    {% for m in messages %}{{ m.role + ': ' + m.content }}{% for c in m.tool_calls or [] %}{{ '<tool_call>\\n{\"name\": \"' + c.function.name \
    + '\", \"arguments\": ' + (c.function.arguments | tojson) + '}\\n</tool_call>' }}{% endfor %}{{ '\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";

fn server() -> Server {
    Server::start(ServeOptions { chat_template: Some(TEMPLATE.into()), ..options(2, 512, 16) })
}

fn parameters() -> Value {
    json!({"type": "object", "required": ["place", "days"], "additionalProperties": false, "properties": {
        "place": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}}})
}

fn fits(arguments: &Value) {
    let days = arguments["days"].as_i64().unwrap();
    assert!(
        ["Paris", "Rome"].contains(&arguments["place"].as_str().unwrap()) && (1..=9).contains(&days),
        "{arguments}"
    );
}

fn parsed(text: &Value) -> Value {
    serde_json::from_str(text.as_str().unwrap()).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn chat(more: &Value) -> Value {
    let tool = json!({"type": "function", "function": {"name": "get_weather", "parameters": parameters()}});
    let noop = json!({"type": "function", "function": {"name": "noop"}});
    let body = json!({"model": "demo", "messages": [{"role": "user", "content": "Weather?"}], "temperature": 0, "max_tokens": 400,
        "tools": [tool, noop]});
    merged(&body, more)
}

#[test]
fn required_calls_of_chat() {
    let s = server();
    let named = json!({"tool_choice": {"type": "function", "function": {"name": "get_weather"}}});
    let j = s.good("/v1/chat/completions", &chat(&named));
    let choice = &j["choices"][0];
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(
        (calls.len(), &choice["finish_reason"], &choice["message"]["content"]),
        (1, &json!("tool_calls"), &Value::Null)
    );
    assert_eq!(calls[0]["function"]["name"], "get_weather");
    fits(&parsed(&calls[0]["function"]["arguments"]));
    // As a stream: a head, then pieces of the same arguments.
    let events = s.events("/v1/chat/completions", &chat(&named));
    let chunks: Vec<Value> = events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    let pieces: Vec<&Value> =
        chunks.iter().flat_map(|c| c["choices"][0]["delta"]["tool_calls"].as_array()).flatten().collect();
    assert!(
        pieces[0]["id"].is_string()
            && pieces[0]["function"]["name"] == "get_weather"
            && pieces[1..].iter().all(|p| p["id"].is_null())
    );
    let joined: String = pieces.iter().map(|p| p["function"]["arguments"].as_str().unwrap()).collect();
    assert_eq!(joined, calls[0]["function"]["arguments"].as_str().unwrap());
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    // One of two, and one alone.
    let one = s.good("/v1/chat/completions", &chat(&json!({"tool_choice": "required", "parallel_tool_calls": false})));
    assert_eq!(one["choices"][0]["message"]["tool_calls"].as_array().unwrap().len(), 1);
    let none = s.good("/v1/chat/completions", &chat(&json!({"tool_choice": "none", "max_tokens": 8})));
    assert!(none["choices"][0]["message"].get("tool_calls").is_none());
    // A history with calls and results.
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"place\": \"Rome\", \"days\": 1}"}});
    let messages = json!([{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain."}]);
    let after = s.good("/v1/chat/completions", &chat(&json!({"messages": messages, "max_tokens": 8})));
    assert!(after["usage"]["prompt_tokens"].as_u64().unwrap() > none["usage"]["prompt_tokens"].as_u64().unwrap());
    // Calls that are cut short are no finished calls.
    for n in [2, 9, 17] {
        let cut = s.good("/v1/chat/completions", &chat(&merged(&named, &json!({"max_tokens": n}))));
        assert_eq!(cut["choices"][0]["finish_reason"], "length", "{cut}");
    }
}

#[test]
fn required_calls_of_responses_and_messages() {
    let s = server();
    let tool = json!({"type": "function", "name": "get_weather", "parameters": parameters(), "strict": true});
    let body = json!({"model": "demo", "input": "Weather?", "temperature": 0, "max_output_tokens": 400, "tools": [tool], "tool_choice": "required", "parallel_tool_calls": false});
    let j = s.good("/v1/responses", &body);
    let item = j["output"].as_array().unwrap().iter().find(|i| i["type"] == "function_call").unwrap();
    fits(&parsed(&item["arguments"]));
    let events: Vec<Value> =
        s.events("/v1/responses", &body).iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    let deltas = events.iter().filter(|e| e["type"] == "response.function_call_arguments.delta");
    let joined: String = deltas.map(|e| e["delta"].as_str().unwrap()).collect();
    let done = events.iter().find(|e| e["type"] == "response.function_call_arguments.done").unwrap();
    assert_eq!((done["arguments"].as_str().unwrap(), &item["arguments"]), (joined.as_str(), &json!(joined)));
    let tool = json!({"name": "get_weather", "description": "x", "input_schema": parameters()});
    let body = json!({"model": "demo", "max_tokens": 400, "temperature": 0, "messages": [{"role": "user", "content": "Weather?"}],
        "tools": [tool], "tool_choice": {"type": "any", "disable_parallel_tool_use": true}});
    let j = s.good("/v1/messages", &body);
    let block = j["content"].as_array().unwrap().iter().find(|b| b["type"] == "tool_use").unwrap();
    fits(&block["input"]);
    assert_eq!(j["stop_reason"], "tool_use");
    let events: Vec<Value> = s.events("/v1/messages", &body).iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    let start = events.iter().find(|e| e["type"] == "content_block_start").unwrap();
    assert_eq!(
        (&start["content_block"]["name"], &start["content_block"]["input"]),
        (&json!("get_weather"), &json!({}))
    );
    let joined: String = events.iter().filter_map(|e| e["delta"]["partial_json"].as_str()).collect();
    fits(&serde_json::from_str(&joined).unwrap());
}

#[test]
fn texts_of_a_form() {
    let s = Server::start(options(2, 512, 16));
    let plain = json!({"model": "demo", "messages": [{"role": "user", "content": "JSON"}], "temperature": 0, "max_tokens": 120});
    let format = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
    let j = s.good("/v1/chat/completions", &merged(&plain, &format(parameters())));
    fits(&parsed(&j["choices"][0]["message"]["content"]));
    assert_eq!(j["choices"][0]["finish_reason"], "stop");
    let two = s.good(
        "/v1/chat/completions",
        &merged(&merged(&plain, &format(parameters())), &json!({"n": 2, "temperature": 1.5, "seed": 4})),
    );
    two["choices"].as_array().unwrap().iter().for_each(|c| fits(&parsed(&c["message"]["content"])));
    let text = json!({"text": {"format": {"type": "json_schema", "name": "x", "schema": parameters()}}});
    let j = s.good("/v1/responses", &merged(&json!({"model": "demo", "input": "JSON", "temperature": 0}), &text));
    fits(&parsed(&j["output"][0]["content"][0]["text"]));
    // What is not enforced is refused by name, before anything runs.
    let a = s.post("/v1/chat/completions", &merged(&plain, &format(json!({"type": "array", "uniqueItems": true}))));
    assert_eq!(
        (a.status, &a.json()["error"]["param"]),
        (400, &json!("response_format.json_schema.schema")),
        "{}",
        a.text
    );
    assert!(a.text.contains("#/uniqueItems"), "{}", a.text);
    // Tools of a model that knows none, and choices of tools that there are not.
    for more in [json!({"tool_choice": "auto"}), json!({"tool_choice": "required"})] {
        let a = s.post("/v1/chat/completions", &chat(&more));
        assert_eq!((a.status, &a.json()["error"]["param"]), (400, &json!("tools")), "{}", a.text);
    }
    let s = server();
    for (more, param) in [
        (json!({"tool_choice": {"type": "function", "function": {"name": "other"}}}), "tool_choice"),
        (json!({"tool_choice": "required", "tools": []}), "tool_choice"),
        (
            json!({"tools": [{"type": "function", "function": {"name": "a"}}, {"type": "function", "function": {"name": "a"}}]}),
            "tools[1].function",
        ),
        (json!({"tools": [{"type": "function", "function": {}}]}), "tools[0].function"),
    ] {
        let a = s.post("/v1/chat/completions", &chat(&more));
        assert_eq!((a.status, &a.json()["error"]["param"]), (400, &json!(param)), "{}", a.text);
    }
}

#[test]
fn the_page_is_there_and_asks_nobody_else() {
    let s = Server::start(ServeOptions { keys: vec!["secret".into()], ..options(1, 256, 4) });
    let page = s.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    assert!(page.header("content-security-policy").starts_with("default-src 'none'"));
    assert!(page.text.starts_with("<!doctype html>") && page.text.len() > 20_000);
    for elsewhere in ["src=\"http", "href=\"http", "@import", "url(http"] {
        assert!(!page.text.contains(elsewhere), "{elsewhere}");
    }
}

/// `/apply-template` writes what chat completions read, tools included.
#[test]
fn the_template_shows_tools() {
    let s = server();
    let shown = |more: Value| {
        let body = chat(&more);
        let text = s.good("/apply-template", &body)["prompt"].as_str().unwrap().to_owned();
        let read =
            s.good("/v1/chat/completions", &merged(&body, &json!({"max_tokens": 1})))["usage"]["prompt_tokens"].clone();
        let tokens = s.good("/tokenize", &json!({"content": text, "add_special": true}))["tokens"].clone();
        assert_eq!(read, tokens.as_array().unwrap().len(), "{text}");
        text
    };
    let all = shown(json!({}));
    assert!(all.starts_with("Tools:") && all.contains("\"get_weather\"") && all.contains("\"noop\""), "{all}");
    let named = shown(json!({"tool_choice": {"type": "function", "function": {"name": "noop"}}}));
    assert_eq!(named, all, "a required call does not change what is shown");
    assert!(!shown(json!({"tool_choice": "none"})).contains("get_weather"));
    let a = s.post("/apply-template", &chat(&json!({"tools": [{"type": "function", "function": {}}]})));
    assert_eq!((a.status, &a.json()["error"]["param"]), (400, &json!("tools[0].function")));
}
