//! The checked-in description of the API, held to what the server does: every path is there, wrong values are refused where it
//! says so, and answers have the fields that it says and no others.

use super::client::{Server, merged, options};
use serde_json::{Value, json};

fn document() -> Value {
    serde_json::from_str(moeray::serve::OPENAPI).unwrap()
}

fn resolved<'a>(doc: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(path) => doc.pointer(path.strip_prefix('#').unwrap()).unwrap_or_else(|| panic!("no {path}")),
        None => schema,
    }
}

/// What of a value breaks a schema, of the keywords that the document uses.
fn violations(doc: &Value, schema: &Value, value: &Value, at: &str, out: &mut Vec<String>) {
    let schema = resolved(doc, schema);
    if let Some(options) = schema["oneOf"].as_array() {
        let fits = |s: &&Value| {
            let mut wrong = vec![];
            violations(doc, s, value, at, &mut wrong);
            wrong.is_empty()
        };
        if options.iter().filter(fits).count() != 1 {
            out.push(format!("{at}: {value} fits not exactly one of {options:?}"));
        }
        return;
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        other => panic!("{at}: a schema of type {other}"),
    };
    let is = |kind: &&str| match *kind {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{at}: a schema of type {other}"),
    };
    if !kinds.iter().any(is) {
        return out.push(format!("{at}: {value} is no {kinds:?}"));
    }
    if let Some(words) = schema["enum"].as_array().filter(|_| !value.is_null())
        && !words.contains(value)
    {
        out.push(format!("{at}: {value} is none of {words:?}"));
    }
    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
        violations(doc, &schema["items"], item, &format!("{at}[{i}]"), out);
    }
    let Some(object) = value.as_object() else { return };
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !object.contains_key(name) {
            out.push(format!("{at}: {name} is missing"));
        }
    }
    for (name, value) in object {
        match schema["properties"].get(name) {
            Some(s) => violations(doc, s, value, &format!("{at}.{name}"), out),
            None if schema["additionalProperties"] == false => out.push(format!("{at}: {name} is not described")),
            None => {}
        }
    }
}

fn check(doc: &Value, path: &str, method: &str, value: &Value) {
    check_as(doc, path, method, "application/json", value);
}

fn check_as(doc: &Value, path: &str, method: &str, media: &str, value: &Value) {
    let schema = &doc["paths"][path][method]["responses"]["200"]["content"][media]["schema"];
    let mut wrong = vec![];
    violations(doc, schema, value, path, &mut wrong);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// An answer to a POST is as described.
pub fn check_answer(path: &str, value: &Value) {
    check(&document(), path, "post", value);
}

/// A request to each path that takes one; saved slots have a test of their own.
fn requests() -> Vec<(&'static str, Value)> {
    let messages = json!([{"role": "user", "content": "Hail!"}]);
    vec![
        (
            "/v1/chat/completions",
            json!({"model": "demo", "messages": messages, "max_tokens": 2, "logprobs": true, "top_logprobs": 2}),
        ),
        ("/v1/completions", json!({"model": "demo", "prompt": "ROMEO:", "max_tokens": 2, "logprobs": 1})),
        ("/v1/embeddings", json!({"model": "demo", "input": "Hail!"})),
        ("/v1/responses", json!({"model": "demo", "input": "Hail!", "max_output_tokens": 2})),
        ("/v1/responses/input_tokens", json!({"model": "demo", "input": "Hail!"})),
        ("/v1/messages", json!({"model": "demo", "messages": messages, "max_tokens": 2})),
        ("/v1/messages/count_tokens", json!({"model": "demo", "messages": messages})),
        ("/tokenize", json!({"content": "Hail!"})),
        ("/detokenize", json!({"tokens": [70]})),
        ("/apply-template", json!({"messages": messages})),
    ]
}

#[test]
fn answers_are_as_described() {
    let (doc, s) = (document(), Server::start(options(1, 128, 4)));
    let posts: Vec<&str> = requests().iter().map(|r| r.0).collect();
    for (path, methods) in doc["paths"].as_object().unwrap() {
        let concrete = path.replace("{id}", "demo");
        assert_ne!(s.get(&concrete).status, 404, "{path}");
        let posted = posts.contains(&path.as_str()) || path == "/slots/{id}";
        assert_eq!(methods.get("post").is_some(), posted, "{path}");
        if path != "/metrics" && methods.get("get").is_some() {
            check(&doc, path, "get", &s.get(&concrete).json());
        }
    }
    for (path, body) in requests() {
        check(&doc, path, "post", &s.good(path, &body));
    }
}

/// Streams are there where it says so, and their events have the fields that it says.
#[test]
fn events_are_as_described() {
    let (doc, s) = (document(), Server::start(options(1, 128, 4)));
    let streams =
        |path: &str| !doc["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"].is_null();
    let mut paths = 0;
    for (path, body) in requests().into_iter().filter(|(path, _)| streams(path)) {
        let answer = s.post(path, &merged(&body, &json!({"stream": true})));
        let named = path == "/v1/responses" || path == "/v1/messages";
        let events: Vec<&str> = answer.text.split_terminator("\n\n").filter(|e| !e.starts_with(':')).collect();
        for event in &events {
            // Each line of an event is a field.
            let fields = event.lines().map(|l| l.split_once(": ").unwrap_or_else(|| panic!("{path}: {l:?}")));
            let fields: serde_json::Map<String, Value> = fields.map(|(k, v)| (k.into(), v.into())).collect();
            assert_eq!(fields.contains_key("event"), named, "{path}: {event}");
            check_as(&doc, path, "post", "text/event-stream", &Value::Object(fields));
        }
        assert!(events.len() > 2, "{path}: {events:?}");
        assert_eq!(events.last() == Some(&"data: [DONE]"), !named, "{path}");
        paths += 1;
    }
    assert_eq!(paths, 4);
}

/// Values just outside of what is described are refused by name, and those at the borders are not.
#[test]
fn borders_are_as_described() {
    let (doc, s) = (document(), Server::start(options(1, 128, 4)));
    let mut cases = 0;
    for (path, body) in requests() {
        let schema = &doc["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"];
        let schema = resolved(&doc, schema);
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let mut without = body.clone();
            without.as_object_mut().unwrap().remove(name);
            assert_eq!(s.post(path, &without).status, 400, "{path} without {name}");
        }
        for (name, property) in schema["properties"].as_object().unwrap() {
            let mut wrong = vec![];
            match property["type"].as_str() {
                Some("string") => wrong.push(json!(5)),
                Some("boolean") => wrong.push(json!("yes")),
                Some("integer") => wrong.extend([json!("5"), json!(1.5)]),
                Some("number") => wrong.push(json!("5")),
                Some("array") => wrong.push(json!(5)),
                Some("object") => wrong.push(json!([5])),
                _ => wrong.push(json!(true)),
            }
            wrong.extend(property["enum"].as_array().map(|_| json!("nonsense")));
            wrong.extend(property["minimum"].as_f64().map(|x| json!(x as i64 - 1)));
            wrong.extend(property["maximum"].as_f64().map(|x| json!(x as i64 + 1)));
            for value in wrong {
                let a = s.post(path, &merged(&body, &json!({name: value})));
                assert_eq!(a.status, 400, "{path} {name}: {value}: {}", a.text);
                assert!(
                    a.json()["error"]["message"].as_str().unwrap().contains(name.as_str()),
                    "{path} {name}: {}",
                    a.text
                );
                cases += 1;
            }
        }
    }
    assert!(cases > 120, "{cases} cases");
}
