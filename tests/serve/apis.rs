//! What the APIs answer: texts that the library gives too, usage, streams that join to the plain answer, and refusals.

use super::client::{JSON, Server, demo, merged, options};
use moeray::{
    generate::SamplerOptions,
    generate::{CancelToken, GenerateOptions, generate},
    session::{Session, SessionOptions},
    tokenizer::EncodeOptions,
};
use serde_json::{Value, json};

const PROMPT: &str = "ROMEO:\nWhat light through yonder window breaks?";

/// What the library generates from a prompt.
fn library(prompt: &str, tokens: usize) -> String {
    let tokenizer = demo().require_tokenizer().unwrap();
    let ids = tokenizer.encode(prompt, EncodeOptions { add_bos: true, parse_special: false }).unwrap();
    let mut session = Session::new(demo(), SessionOptions { ctx: 512, ubatch: 64, ..Default::default() }).unwrap();
    let options =
        GenerateOptions { max_tokens: tokens, sampler: SamplerOptions::greedy(), ..GenerateOptions::default() };
    let pieces = generate(&mut session, Some(tokenizer), &ids, options, CancelToken::default()).unwrap();
    pieces.map(|p| p.unwrap().text).collect()
}

fn text(j: &Value) -> &str {
    j["choices"][0]["text"].as_str().unwrap()
}

#[test]
fn completions() {
    let s = Server::start(options(3, 512, 16));
    let full = s.text(PROMPT, 24, &json!({}));
    assert_eq!(text(&full), library(PROMPT, 24));
    assert_eq!(
        (&full["choices"][0]["finish_reason"], &full["usage"]["completion_tokens"]),
        (&json!("length"), &json!(24))
    );
    let body = json!({"model": "demo", "prompt": PROMPT, "temperature": 0, "max_tokens": 24});
    let events = s.events("/v1/completions", &merged(&body, &json!({"stream_options": {"include_usage": true}})));
    assert_eq!(events.last().unwrap(), "[DONE]");
    let chunks: Vec<Value> = events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    let pieces: Vec<&str> = chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
    assert_eq!(pieces.concat(), text(&full));
    assert!(pieces.len() > 12, "a stream comes token by token: {pieces:?}");
    assert_eq!(chunks.last().unwrap()["usage"]["total_tokens"], full["usage"]["total_tokens"]);
    // Echo, log-probabilities, stop, bias.
    let echo = s.text(PROMPT, 5, &json!({"echo": true, "logprobs": 2}));
    assert!(text(&echo).starts_with(PROMPT));
    let l = &echo["choices"][0]["logprobs"];
    let tokens: Vec<&str> = l["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(tokens.concat(), text(&echo));
    assert!(l["token_logprobs"][0].is_null() && l["token_logprobs"][1].as_f64().unwrap() < 0.0);
    assert_eq!(l["token_logprobs"].as_array().unwrap().len(), tokens.len());
    let stop = &text(&full)[20..24];
    let stopped = s.text(PROMPT, 24, &json!({"stop": ["\u{2603}", stop]}));
    assert_eq!(text(&stopped), &text(&full)[..text(&full).find(stop).unwrap()]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let forced = s.text(PROMPT, 3, &json!({"logit_bias": {"65": 100}, "logprobs": 1}));
    let tokens = forced["choices"][0]["logprobs"]["tokens"].as_array().unwrap();
    assert!(tokens.len() == 3 && tokens.iter().all(|t| *t == tokens[0]), "{forced}");
    // Two prompts, two texts each.
    let many =
        s.good("/v1/completions", &merged(&body, &json!({"prompt": [PROMPT, "JULIET:"], "n": 2, "max_tokens": 4})));
    let indices: Vec<u64> = many["choices"].as_array().unwrap().iter().map(|c| c["index"].as_u64().unwrap()).collect();
    assert_eq!((indices, &many["usage"]["completion_tokens"]), (vec![0, 1, 2, 3], &json!(16)));
    assert_eq!(many["choices"][0]["text"], many["choices"][1]["text"]);
}

#[test]
fn penalties_and_seeds() {
    let s = Server::start(options(2, 256, 16));
    let repeated = "the the the the the the the the the";
    let (plain, penalised) = (s.text(repeated, 24, &json!({})), s.text(repeated, 24, &json!({"frequency_penalty": 2})));
    let kinds = |j: &Value| text(j).split_whitespace().collect::<std::collections::BTreeSet<_>>().len();
    assert!(text(&plain) != text(&penalised) && kinds(&penalised) >= kinds(&plain), "{plain} {penalised}");
    let seeded = |seed: i64| text(&s.text("JULIET:", 16, &json!({"temperature": 1, "seed": seed}))).to_owned();
    assert_eq!(seeded(5), seeded(5));
    assert!((6..9).any(|n| seeded(n) != seeded(5)));
}

#[test]
fn chat_responses_and_messages_say_the_same() {
    let s = Server::start(options(2, 512, 16));
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who goes there?"}]);
    let chat = json!({"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 20});
    let answer = s.good("/v1/chat/completions", &chat);
    let said = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!said.is_empty() && answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let events = s.events("/v1/chat/completions", &chat);
    let chunks: Vec<Value> = events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    let joined: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(joined, said);
    assert_eq!(chunks.iter().filter(|c| c["choices"][0]["delta"]["role"] == "assistant").count(), 1);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");

    let input = json!([{"type": "message", "role": "user", "content": "Who goes there?"}]);
    let response = json!({"model": "demo", "instructions": "Be brief.", "input": input, "temperature": 0, "max_output_tokens": 20});
    let whole = s.good("/v1/responses", &response);
    assert_eq!(whole["output"][0]["content"][0]["text"], said);
    assert_eq!(
        (&whole["status"], &whole["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    assert_eq!(whole["usage"]["input_tokens"], answer["usage"]["prompt_tokens"]);
    let events: Vec<Value> =
        s.events("/v1/responses", &response).iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    let numbers: Vec<u64> = events.iter().map(|e| e["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    assert_eq!(
        (&events[0]["type"], &events.last().unwrap()["type"]),
        (&json!("response.created"), &json!("response.incomplete"))
    );
    let deltas: String = events
        .iter()
        .filter(|e| e["type"] == "response.output_text.delta")
        .filter_map(|e| e["delta"].as_str())
        .collect();
    assert_eq!(deltas, said);
    let counted =
        s.good("/v1/responses/input_tokens", &json!({"model": "demo", "instructions": "Be brief.", "input": input}));
    assert_eq!(counted["input_tokens"], whole["usage"]["input_tokens"]);

    let body = json!({"model": "demo", "system": "Be brief.", "messages": [{"role": "user", "content": "Who goes there?"}],
                      "temperature": 0, "max_tokens": 20});
    let message = s.good("/v1/messages", &body);
    assert_eq!((&message["content"][0]["text"], &message["stop_reason"]), (&json!(said), &json!("max_tokens")));
    let events: Vec<Value> = s.events("/v1/messages", &body).iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    let kinds: Vec<&str> =
        events.iter().map(|e| e["type"].as_str().unwrap()).filter(|k| *k != "content_block_delta").collect();
    assert_eq!(kinds, ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]);
    let read = |u: &Value| u["input_tokens"].as_u64().unwrap() + u["cache_read_input_tokens"].as_u64().unwrap();
    let counted = s.good(
        "/v1/messages/count_tokens",
        &json!({"model": "demo", "system": "Be brief.", "messages": body["messages"]}),
    );
    assert_eq!(counted["input_tokens"], read(&message["usage"]));
    assert_eq!(read(&events[0]["message"]["usage"]), read(&message["usage"]));
}

/// Each of these is wrong in one field, and the refusal names it.
#[test]
fn wrong_requests_are_refused_by_name() {
    let s = Server::start(options(1, 128, 4));
    let chat = json!({"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2});
    let cases: [(&str, Value); 24] = [
        ("messages", json!([])),
        ("messages", json!({"role": "user"})),
        ("messages", json!([{"role": "wizard", "content": "x"}])),
        ("messages", json!([{"role": "user", "content": 5}])),
        ("messages", json!([{"content": "x"}])),
        ("messages", json!([{"role": "tool", "content": "x"}])),
        ("messages", json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}])),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(1.5)),
        ("max_tokens", json!("5")),
        ("temperature", json!(-0.1)),
        ("temperature", json!(2.1)),
        ("top_p", json!(1.5)),
        ("n", json!(0)),
        ("stream", json!("yes")),
        ("stream_options", json!({"include_usage": true})),
        ("top_logprobs", json!(21)),
        ("top_logprobs", json!(2)),
        ("logprobs", json!("yes")),
        ("logit_bias", json!([1, 2])),
        ("logit_bias", json!({"99999999": 1})),
        ("seed", json!("abc")),
        ("stop", json!(["a", 5])),
        ("presence_penalty", json!(3)),
    ];
    for (field, value) in cases {
        let a = s.post("/v1/chat/completions", &merged(&chat, &json!({field: value})));
        let e = a.json()["error"].clone();
        assert_eq!(a.status, 400, "{field} {value}: {}", a.text);
        assert!(e["message"].as_str().unwrap().contains(field), "{field} {value}: {e}");
        assert!(e["type"] == "invalid_request_error" && (e["code"].is_null() || e["code"].is_string()), "{e}");
        assert!(e["param"].as_str().unwrap().starts_with(field), "{e}");
    }
    let unknown = s.post("/v1/chat/completions", &merged(&chat, &json!({"model": "other"})));
    assert_eq!((unknown.status, &unknown.json()["error"]["code"]), (404, &json!("model_not_found")));
    let unknown = s.post(
        "/v1/messages",
        &json!({"model": "other", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}),
    );
    assert_eq!((unknown.status, &unknown.json()["error"]["type"]), (404, &json!("not_found_error")));
    let raw: [(&[u8], &str, u16); 5] = [
        (b"{\"model\": ", JSON, 400),
        (b"", JSON, 400),
        (b"[1]", JSON, 400),
        (b"{\"model\": \"\xff\"}", JSON, 400),
        (b"{}", "content-type: text/plain\r\n", 415),
    ];
    for (body, kind, status) in raw {
        let a = s.ask("POST", "/v1/chat/completions", kind, body);
        assert_eq!(a.status, status, "{}", a.text);
        assert!(a.json()["error"]["message"].is_string());
    }
    let a = s.post("/v1/nothing", &json!({}));
    assert_eq!((a.status, a.json()["error"]["type"].clone()), (404, json!("invalid_request_error")));
    let a = s.get("/v1/completions");
    assert_eq!((a.status, a.header("allow")), (405, "post"));
    assert_eq!(s.post("/v1/chat/completions", &chat).status, 200, "it still serves");
}

/// What does not fit is refused before anything runs; what reaches the end of the context ends there.
#[test]
fn the_context_is_never_cut() {
    let s = Server::start(options(1, 64, 4));
    let long = "to be or not to be ".repeat(40);
    for (path, body) in [
        ("/v1/completions", json!({"model": "demo", "prompt": long})),
        (
            "/v1/chat/completions",
            json!({"model": "demo", "stream": true, "messages": [{"role": "user", "content": long}]}),
        ),
        ("/v1/responses", json!({"model": "demo", "input": long})),
    ] {
        let a = s.post(path, &body);
        let e = a.json()["error"].clone();
        assert_eq!((a.status, &e["code"]), (400, &json!("context_length_exceeded")), "{path}: {}", a.text);
        let numbers: Vec<usize> = e["message"]
            .as_str()
            .unwrap()
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|n| n.parse().ok())
            .collect();
        assert!(numbers.contains(&64) && numbers.iter().any(|n| *n > 64), "{e}");
    }
    assert_eq!(s.metric("moeray_prompt_tokens_total"), 0.0);
    let j = s.text("ROMEO:", 400, &json!({}));
    if j["choices"][0]["finish_reason"] == "length" {
        assert_eq!(j["usage"]["total_tokens"], 65, "the last token is chosen, but not fed");
    }
}

#[test]
fn the_tokenizer_and_the_template_by_themselves() {
    let s = Server::start(options(1, 128, 4));
    let tokens = s.good("/tokenize", &json!({"content": PROMPT}))["tokens"].clone();
    assert!(tokens.as_array().unwrap().len() > 4);
    assert_eq!(s.good("/detokenize", &json!({"tokens": tokens}))["content"], PROMPT);
    let prompt = s.good("/apply-template", &json!({"messages": [{"role": "user", "content": "Hail!"}]}));
    assert!(prompt["prompt"].as_str().unwrap().contains("Hail!"));
    assert_eq!(s.get("/v1/models").json()["data"][0]["id"], "demo");
    assert_eq!(s.get("/v1/models/demo").json()["object"], "model");
    assert_eq!(s.get("/v1/models/other").status, 404);
    assert_eq!(s.get("/slots").json().as_array().unwrap().len(), 1);
    assert_eq!(s.get("/props").json()["n_ctx"], 128);
}
