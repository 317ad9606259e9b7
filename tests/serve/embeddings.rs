//! `/v1/embeddings`: the library's vectors, in OpenAI's forms, beside other people's streams.

use super::client::{Answer, JSON, Server, demo, merged, options};
use moeray::{
    serve::ServeOptions,
    session::{Pooling, Session, SessionOptions},
    tokenizer::EncodeOptions,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const TEXTS: [&str; 3] = [
    "The quality of mercy is not strained.",
    "Now is the winter of our discontent",
    "To be, or not to be: that is the question",
];

fn ids(text: &str) -> Vec<u32> {
    demo().require_tokenizer().unwrap().encode(text, EncodeOptions { add_bos: true, parse_special: false }).unwrap()
}

fn library(text: &str, pooling: Pooling) -> Vec<f32> {
    let mut session = Session::new(demo(), SessionOptions { ctx: 512, ubatch: 64, ..Default::default() }).unwrap();
    session.embedding(&ids(text), pooling).unwrap()
}

fn vector(data: &Value) -> Vec<f32> {
    data["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Base 64 by its definition, slowly.
fn from_base64(text: &str) -> Vec<f32> {
    let digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: String = text.trim_end_matches('=').chars().map(|c| format!("{:06b}", digits.find(c).unwrap())).collect();
    let bytes: Vec<u8> = bits
        .as_bytes()
        .chunks_exact(8)
        .map(|b| u8::from_str_radix(std::str::from_utf8(b).unwrap(), 2).unwrap())
        .collect();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[test]
fn vectors_are_the_librarys() {
    for (chosen, pooling) in
        [(None, Pooling::Last), (Some(Pooling::Mean), Pooling::Mean), (Some(Pooling::First), Pooling::First)]
    {
        let s = Server::start(ServeOptions { pooling: chosen, ..options(3, 256, 16) });
        let ask = |input: Value, more: Value| {
            s.good("/v1/embeddings", &merged(&json!({"model": "demo", "input": input}), &more))
        };
        let many = ask(json!(TEXTS), json!({}));
        let data = many["data"].as_array().unwrap();
        let tokens: usize = TEXTS.iter().map(|t| ids(t).len()).sum();
        assert_eq!(many["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
        for (i, text) in TEXTS.iter().enumerate() {
            assert_eq!((&data[i]["index"], &data[i]["object"]), (&json!(i), &json!("embedding")));
            let (v, own) = (vector(&data[i]), library(text, pooling));
            assert!(
                dot(&v, &own) > 0.9999 && (dot(&v, &v) - 1.0).abs() < 1e-4,
                "{pooling:?} {text}: {}",
                dot(&v, &own)
            );
        }
        // The same text again, as ids, with others, and as bytes: whatever is in a cache by now.
        let again = ask(json!([ids(TEXTS[0]), ids(TEXTS[0]), ids(TEXTS[2])]), json!({}));
        for (at, text) in [(0, 0), (1, 0), (2, 2)] {
            assert!(dot(&vector(&again["data"][at]), &vector(&data[text])) > 0.9999, "{pooling:?}");
        }
        let one = ask(json!(ids(TEXTS[1])), json!({"encoding_format": "base64", "dimensions": vector(&data[0]).len()}));
        assert!(dot(&from_base64(one["data"][0]["embedding"].as_str().unwrap()), &vector(&data[1])) > 0.9999);
        if pooling != Pooling::First {
            assert!(dot(&vector(&data[0]), &vector(&data[1])) < 0.999, "texts differ");
        }
        assert_eq!(s.metric("moeray_requests_total{outcome=\"embedding\"}"), 7.0);
        assert_eq!(s.metric("moeray_generated_tokens_total"), 0.0);
    }
}

#[test]
fn what_is_no_text_is_refused_by_name() {
    let s = Server::start(options(1, 64, 4));
    let body = json!({"model": "demo", "input": "x"});
    let long = "to be or not to be ".repeat(40);
    for (more, param) in [
        (json!({"input": ""}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": ["x", ""]}), "input[1]"),
        (json!({"input": ["x", []]}), "input[1]"),
        (json!({"input": ["x", 5]}), "input[1]"),
        (json!({"input": [5, 99999999]}), "input[1]"),
        (json!({"input": [[5], [-1]]}), "input[1][0]"),
        (json!({"input": {"text": "x"}}), "input"),
        (json!({"input": vec!["x"; 2049]}), "input"),
        (json!({"input": ["x", long]}), "input[1]"),
        (json!({"encoding_format": "int8"}), "encoding_format"),
        (json!({"dimensions": 0}), "dimensions"),
        (json!({"dimensions": 5}), "dimensions"),
        (json!({"user": 5}), "user"),
    ] {
        let a = s.post("/v1/embeddings", &merged(&body, &more));
        let e = a.json()["error"].clone();
        assert_eq!((a.status, e["param"].as_str().unwrap()), (400, param), "{}", a.text);
        let named = e["message"].as_str().unwrap().contains(param) || e["code"] == "context_length_exceeded";
        assert!(named && e["code"].is_string(), "{e}");
    }
    let a = s.post("/v1/embeddings", &json!({"model": "demo", "input": long}));
    assert_eq!(a.json()["error"]["code"], "context_length_exceeded");
    assert_eq!(s.post("/v1/embeddings", &json!({"model": "other", "input": "x"})).status, 404);
    let none = Server::start(ServeOptions { pooling: Some(Pooling::None), ..options(1, 64, 4) });
    let a = none.post("/v1/embeddings", &body);
    assert_eq!((a.status, &a.json()["error"]["code"]), (400, &json!("unsupported_model")), "{}", a.text);
    assert!(a.text.contains("pooling none"), "{}", a.text);
    assert_eq!(s.metric("moeray_prompt_tokens_total"), 0.0);
}

/// Somebody asks for many vectors: who generates does not stand behind them, and both get what they get alone.
#[test]
fn many_vectors_leave_room_for_answers() {
    let s = Server::start(options(2, 256, 2048));
    let alone = s.text("ROMEO:", 12, &json!({}));
    // How many vectors are made while an answer's words travel is chance: more of them outlast it on any machine.
    let room = [80, 320, 1280].into_iter().any(|n| {
        let texts: Vec<String> = (0..n).map(|i| format!("{} {i} {}", TEXTS[i % 3], TEXTS[(i + 1) % 3])).collect();
        let body = json!({"model": "demo", "input": texts}).to_string();
        let made = || s.metric("moeray_requests_total{outcome=\"embedding\"}");
        let (begin, before) = (Instant::now(), made());
        let stream = s.send("POST", "/v1/embeddings", JSON, body.as_bytes());
        while made() <= before {
            assert!(begin.elapsed() < Duration::from_secs(30), "the vectors have not begun");
        }
        let beside = s.text("ROMEO:", 12, &json!({}));
        let waiting = s.metric("moeray_requests_waiting");
        assert_eq!(beside["choices"][0]["text"], alone["choices"][0]["text"]);
        let answer = Answer::read(stream);
        assert_eq!(answer.status, 200);
        let data = answer.json()["data"].clone();
        assert_eq!(data.as_array().unwrap().len(), n);
        for i in [0, n / 2, n - 1] {
            assert!(dot(&vector(&data[i]), &library(&texts[i], Pooling::Last)) > 0.9999, "{i}");
        }
        waiting > 0.0
    });
    assert!(room, "the answer came while vectors waited");
}
