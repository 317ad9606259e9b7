//! Many clients: nobody gets another's text, what is cached is counted, who goes away is noticed, who is too many is told.

use super::client::{Answer, JSON, Server, options};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    thread,
    time::{Duration, Instant},
};

const NAMES: [&str; 12] = [
    "ROMEO", "JULIET", "HAMLET", "OTHELLO", "MACBETH", "LEAR", "PROSPERO", "IAGO", "PORTIA", "BRUTUS", "VIOLA", "PUCK",
];

fn text(j: &Value) -> String {
    j["choices"][0]["text"].as_str().unwrap().to_owned()
}

/// Texts of twelve clients at once on five sequences are those that each gets alone, but for near-ties.
#[test]
fn clients_at_once_get_what_they_get_alone() {
    let s = Server::start(options(5, 256, 64));
    let prompt = |name: &str| format!("{name}:\nMy name is {name}, and I say to thee:");
    let alone: Vec<String> = NAMES.iter().map(|n| text(&s.text(&prompt(n), 16, &json!({})))).collect();
    let together: Vec<String> = thread::scope(|scope| {
        let ask = |n: &&str| {
            let (s, p) = (&s, prompt(n));
            scope.spawn(move || text(&s.text(&p, 16, &json!({}))))
        };
        let all: Vec<_> = NAMES.iter().map(ask).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let same = alone.iter().zip(&together).filter(|(a, b)| a == b).count();
    assert!(same >= NAMES.len() - 1, "{same} of {}: {alone:?} {together:?}", NAMES.len());
}

/// `cached_tokens` is what was not fed: the counter of fed rows says so.
#[test]
fn what_was_read_is_not_read_again() {
    let s = Server::start(options(3, 512, 16));
    let fed = || s.metric("moeray_prefill_tokens_total");
    let cached = |j: &Value| j["usage"]["prompt_tokens_details"]["cached_tokens"].as_f64().unwrap();
    let total = |j: &Value| j["usage"]["prompt_tokens"].as_f64().unwrap();
    let beginning =
        "Friends, Romans, countrymen, lend me your ears; I come to bury Caesar, not to praise him. ".repeat(3);
    let mut before = fed();
    let mut check = |j: &Value| {
        let now = fed();
        assert_eq!(now - before, total(j) - cached(j), "{j}");
        before = now;
        cached(j)
    };
    let first = s.text(&beginning, 8, &json!({}));
    assert_eq!(check(&first), 0.0);
    // The same again: all but the last token, whose logits are needed.
    assert_eq!(check(&s.text(&beginning, 8, &json!({}))), total(&first) - 1.0);
    // A second turn: what was generated is there too, but for the last token, which was never fed.
    let turn = s.text(&format!("{beginning}{}", text(&first)), 4, &json!({}));
    assert!(check(&turn) >= total(&first) - 1.0, "{turn}");
    // Two others behind the same beginning, in other sequences, and the first once more: all keep it.
    for (name, tokens) in [("ANTONY:", 4), ("BRUTUS:", 4)] {
        let other = s.text(&format!("{beginning}{name}"), tokens, &json!({}));
        assert!(check(&other) >= total(&first) - 2.0, "{name} {other}");
    }
    assert!(check(&s.text(&beginning, 8, &json!({}))) >= total(&first) - 1.0);
    assert_eq!(s.text("Something else.", 2, &json!({}))["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    // Several texts of one prompt: it is read once.
    let before = fed();
    let n =
        s.text(&"Now is the winter of our discontent. ".repeat(5), 4, &json!({"n": 3, "temperature": 1, "seed": 1}));
    assert!(fed() - before <= total(&n) + 4.0, "{} rows for {n}", fed() - before);
}

fn until(what: &str, within: Duration, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < within, "{what} took longer than {within:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A client that closes its connection, waiting, reading or generating, streaming or not, is let go.
#[test]
fn who_goes_away_is_noticed() {
    let s = Server::start(options(1, 2048, 16));
    let body = |stream: bool| {
        json!({"model": "demo", "prompt": "ROMEO:", "max_tokens": 2000, "ignore_eos": true, "stream": stream})
            .to_string()
    };
    let gone = || s.metric("moeray_requests_total{outcome=\"client_disconnected\"}");
    for (i, stream) in [true, false].into_iter().enumerate() {
        let running = s.send("POST", "/v1/completions", JSON, body(stream).as_bytes());
        until("to begin", Duration::from_secs(20), || s.metric("moeray_requests_running") == 1.0);
        let waiting = s.send("POST", "/v1/completions", JSON, body(stream).as_bytes());
        until("to wait", Duration::from_secs(20), || s.metric("moeray_requests_waiting") == 1.0);
        drop(waiting);
        until("to leave the queue", Duration::from_secs(3), || s.metric("moeray_requests_waiting") == 0.0);
        drop(running);
        until("to end", Duration::from_secs(3), || s.metric("moeray_requests_running") == 0.0);
        until("the count", Duration::from_secs(3), || gone() == 2.0 * (i + 1) as f64);
    }
    assert_eq!(s.text("JULIET:", 2, &json!({}))["usage"]["completion_tokens"], 2);
}

#[test]
fn a_full_queue_says_so() {
    let s = Server::start(options(1, 1024, 1));
    let body = json!({"model": "demo", "prompt": "ROMEO:", "max_tokens": 1000, "ignore_eos": true, "stream": true})
        .to_string();
    let mut running = s.send("POST", "/v1/completions", JSON, body.as_bytes());
    running.read_exact(&mut [0; 64]).unwrap();
    until("to begin", Duration::from_secs(20), || s.metric("moeray_requests_running") == 1.0);
    let waiting = s.send("POST", "/v1/completions", JSON, body.as_bytes());
    until("to wait", Duration::from_secs(20), || s.metric("moeray_requests_waiting") == 1.0);
    let a = s.post("/v1/completions", &json!({"model": "demo", "prompt": "x"}));
    assert_eq!((a.status, &a.json()["error"]["type"]), (429, &json!("rate_limit_error")));
    assert!((1..=60).contains(&a.header("retry-after").parse::<u64>().unwrap()));
    assert_eq!(s.get("/health").status, 200);
    drop((running, waiting));
    until("to be free", Duration::from_secs(3), || s.metric("moeray_requests_running") == 0.0);
    assert_eq!(s.text("JULIET:", 2, &json!({}))["usage"]["completion_tokens"], 2);
}

/// Running answers are finished, new ones refused, and then the server ends.
#[test]
fn the_end_lets_answers_finish() {
    let mut s = Server::start(options(1, 512, 4));
    let body =
        json!({"model": "demo", "prompt": "ROMEO:", "max_tokens": 120, "ignore_eos": true, "stream": true}).to_string();
    // Somebody whose request is under way, too: the server is there for as long as that is, however fast the answer comes.
    let mut slow = s.connect();
    slow.write_all(b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{").unwrap();
    let mut running = s.send("POST", "/v1/completions", JSON, body.as_bytes());
    let mut head = [0; 64];
    running.read_exact(&mut head).unwrap();
    s.tell_to_end();
    until("to refuse", Duration::from_secs(20), || s.get("/health").status == 503);
    assert_eq!(s.post("/v1/completions", &json!({"model": "demo", "prompt": "x"})).status, 503);
    drop(slow);
    let mut rest = String::new();
    running.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("[DONE]"), "{rest}");
    s.join();
}

#[test]
fn keys_origins_and_sizes() {
    let mut o = options(1, 128, 4);
    o.keys = vec!["first".into(), "s3cret".into()];
    o.cors = vec!["https://page.example".into()];
    o.body_limit = 4096;
    let s = Server::start(o);
    let ask = |headers: &str| s.ask("GET", "/v1/models", headers, b"").status;
    assert_eq!((ask(""), ask("authorization: Bearer no\r\n"), ask("x-api-key: s3cre\r\n")), (401, 401, 401));
    assert_eq!((ask("authorization: Bearer s3cret\r\n"), ask("x-api-key: first\r\n")), (200, 200));
    assert_eq!((s.get("/health").status, s.get("/v1/nothing").status), (200, 401));
    let a = s.ask("POST", "/v1/messages", JSON, b"{}");
    assert_eq!((a.status, &a.json()["error"]["type"]), (401, &json!("authentication_error")));
    let preflight = "origin: https://page.example\r\naccess-control-request-method: POST\r\n";
    let a = s.ask("OPTIONS", "/v1/chat/completions", preflight, b"");
    assert_eq!((a.status, a.header("access-control-allow-origin")), (204, "https://page.example"));
    let a = s.ask("GET", "/health", "origin: https://other.example\r\n", b"");
    assert_eq!(a.header("access-control-allow-origin"), "");
    let large = format!("{{\"model\": \"{}\"}}", "x".repeat(5000));
    let a = s.ask("POST", "/v1/completions", &format!("{JSON}x-api-key: first\r\n"), large.as_bytes());
    assert_eq!(a.status, 413);
    // One that only says how large it will be is not waited for.
    let mut stream = s.connect();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-api-key: first\r\n{JSON}content-length: 4000000000\r\n\r\n{{"
    );
    std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
    assert_eq!(Answer::read(stream).status, 413);
}

/// Every family of metrics has a help and a type; histograms are cumulative and agree with their counts.
#[test]
fn metrics_are_whole() {
    let s = Server::start(options(2, 256, 4));
    let j = s.text("ROMEO:", 9, &json!({}));
    assert_eq!(s.metric("moeray_generated_tokens_total"), j["usage"]["completion_tokens"].as_f64().unwrap());
    assert_eq!(s.metric("moeray_time_to_first_token_seconds_count"), 1.0);
    assert_eq!(s.metric("moeray_inter_token_latency_seconds_count"), 8.0);
    let text = s.get("/metrics").text;
    for kind in ["# HELP ", "# TYPE "] {
        let names: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix(kind)?.split(' ').next()).collect();
        assert!(names.len() >= 15 && names.iter().all(|n| n.starts_with("moeray_")), "{names:?}");
    }
    let buckets: Vec<f64> = text
        .lines()
        .filter(|l| l.starts_with("moeray_step_seconds_bucket"))
        .map(|l| l.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(buckets.len() > 6 && buckets.windows(2).all(|w| w[0] <= w[1]), "{buckets:?}");
    assert_eq!(*buckets.last().unwrap(), s.metric("moeray_step_seconds_count"));
}
