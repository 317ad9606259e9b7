//! Several models behind one server: loaded when asked for, gone when their memory is wanted or nobody asks, never while in use.

use super::client::{Answer, JSON, Server, demo, merged, options};
use moeray::{
    Error,
    serve::{App, Fleet, FleetOptions, ServeOptions, Source},
};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Models by these names, all of them the demo model, and how often each was loaded.
fn fleet(names: &[&str], limits: FleetOptions) -> (Fleet, Vec<Arc<AtomicUsize>>) {
    let mut counts = vec![];
    let mut sources = vec![];
    for name in names {
        let count = Arc::new(AtomicUsize::new(0));
        counts.push(count.clone());
        let name = (*name).to_owned();
        let own = ServeOptions { name: name.clone(), ..options(1, 256, 8) };
        let load = move |metrics| {
            count.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(100));
            match own.name.as_str() {
                "broken" => Err(Error::Model("the weights are missing".into())),
                _ => App::counting(demo(), own.clone(), metrics),
            }
        };
        sources.push(Source { name, bytes: 1 << 30, load: Arc::new(load) });
    }
    (Fleet::new(options(1, 256, 8), limits, sources).unwrap(), counts)
}

fn body(model: &str) -> Value {
    json!({"model": model, "prompt": "ROMEO:", "temperature": 0, "max_tokens": 6})
}

fn loaded(s: &Server) -> Vec<String> {
    let models = s.get("/v1/models").json();
    let is = |m: &&Value| m["status"]["value"] == "loaded";
    models["data"].as_array().unwrap().iter().filter(is).map(|m| m["id"].as_str().unwrap().to_owned()).collect()
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn loaded_when_asked_for_and_gone_for_others() {
    // Two of them fit.
    let limits = FleetOptions { memory: Some((5 << 30) / 2), idle: None };
    let (fleet, counts) = fleet(&["a", "b", "c", "broken"], limits);
    let s = Server::of(fleet);
    let counted = || counts.iter().map(|c| c.load(Ordering::Relaxed)).collect::<Vec<_>>();
    assert!(loaded(&s).is_empty() && s.get("/health").status == 200);
    assert_eq!((s.get("/slots").status, s.get("/props?model=a").status), (503, 503));
    // Many at once load it once, and what it says is what it says alone.
    let texts: Vec<Value> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| s.good("/v1/completions", &body("a")))).collect();
        threads.into_iter().map(|t| t.join().unwrap()["choices"][0]["text"].clone()).collect()
    });
    assert!(texts.iter().all(|t| *t == texts[0]) && counted() == [1, 0, 0, 0], "{texts:?}");
    let b = s.good("/v1/completions", &body("b"));
    assert_eq!((&b["model"], &b["choices"][0]["text"]), (&json!("b"), &texts[0]));
    assert_eq!(loaded(&s), ["a", "b"]);
    // a was asked for last, so b goes for c.
    s.good("/v1/completions", &body("a"));
    s.good("/v1/completions", &body("c"));
    assert_eq!((loaded(&s), counted()), (vec!["a".to_owned(), "c".into()], vec![1, 1, 1, 0]));
    assert_eq!(s.get("/slots?model=b").json()["error"]["code"], "model_not_loaded");
    assert_eq!(s.get("/v1/experts?model=c").json()["object"], "experts");
    assert_eq!(s.get("/slots?model=x").status, 404);
    // One that does not load says why, and stops nobody else.
    let a = s.post("/v1/completions", &body("broken"));
    let e = a.json()["error"].clone();
    assert!(
        a.status == 503
            && e["code"] == "model_not_loaded"
            && e["message"].as_str().unwrap().contains("the weights are missing"),
        "{e}"
    );
    assert_eq!(s.good("/v1/completions", &body("c"))["model"], "c");
    let a = s.post("/v1/completions", &body("x"));
    assert_eq!((a.status, &a.json()["error"]["code"]), (404, &json!("model_not_found")));
    // What was counted of a model stays when it goes.
    let metrics = s.get("/metrics").text;
    for line in
        ["moeray_generated_tokens_total{model=\"b\"} 6", "moeray_requests_total{model=\"a\",outcome=\"length\"} 7"]
    {
        assert!(metrics.lines().any(|l| l == line), "{line} in {metrics}");
    }
    assert_eq!(metrics.matches("# TYPE moeray_step_seconds ").count(), 1);
    assert_eq!(s.get("/v1/models/b").json()["status"]["value"], "unloaded");
    assert_eq!(s.get("/v1/models/x").status, 404);
}

/// A model in use does not go, whoever wants its memory; who waits for it gets it afterwards.
#[test]
fn what_runs_is_never_cut_off() {
    let (fleet, counts) = fleet(&["a", "b"], FleetOptions { memory: Some(1), idle: None });
    let s = Server::of(fleet);
    let long = merged(&body("a"), &json!({"max_tokens": 200, "ignore_eos": true}));
    let alone = s.good("/v1/completions", &long);
    let stream = s.send("POST", "/v1/completions", JSON, long.to_string().as_bytes());
    wait("the answer has not begun", || s.get("/metrics").text.contains("moeray_requests_running{model=\"a\"} 1"));
    let b = s.good("/v1/completions", &body("b"));
    assert_eq!(b["usage"]["completion_tokens"], 6);
    let a = Answer::read(stream);
    assert_eq!((a.status, &a.json()["choices"][0]["text"]), (200, &alone["choices"][0]["text"]));
    assert_eq!(loaded(&s), ["b"]);
    assert_eq!(counts.iter().map(|c| c.load(Ordering::Relaxed)).collect::<Vec<_>>(), [1, 1]);
}

/// A client that goes away while its model is loaded does not stop the load: with nobody else asking, the model comes.
#[test]
fn a_load_outlives_its_client() {
    let (count, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let load = {
        let (count, gate) = (count.clone(), gate.clone());
        move |metrics| {
            count.fetch_add(1, Ordering::Relaxed);
            wait("nobody opens the gate", || gate.load(Ordering::Relaxed) > 0);
            App::counting(demo(), ServeOptions { name: "a".into(), ..options(1, 256, 8) }, metrics)
        }
    };
    let source = Source { name: "a".into(), bytes: 1, load: Arc::new(load) };
    let s = Server::of(Fleet::new(options(1, 256, 8), FleetOptions::default(), vec![source]).unwrap());
    let client = s.send("POST", "/v1/completions", JSON, body("a").to_string().as_bytes());
    wait("the load has not begun", || count.load(Ordering::Relaxed) == 1);
    drop(client);
    // Time for the server to see that the client is gone.
    std::thread::sleep(Duration::from_millis(200));
    assert!(loaded(&s).is_empty());
    gate.store(1, Ordering::Relaxed);
    wait("the model did not come", || loaded(&s) == ["a"]);
    s.good("/v1/completions", &body("a"));
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

#[test]
fn gone_when_nobody_asks() {
    let (fleet, counts) = fleet(&["a", "b"], FleetOptions { memory: None, idle: Some(Duration::from_secs(3)) });
    let mut s = Server::of(fleet);
    s.good("/v1/completions", &body("a"));
    s.good("/v1/completions", &body("b"));
    assert_eq!(loaded(&s).len(), 2);
    wait("b is still there", || {
        s.good("/v1/completions", &body("a"));
        loaded(&s) == ["a"]
    });
    wait("a is still there", || loaded(&s).is_empty());
    s.good("/v1/completions", &body("a"));
    assert_eq!(counts.iter().map(|c| c.load(Ordering::Relaxed)).collect::<Vec<_>>(), [2, 1]);
    s.tell_to_end();
    s.join();
    assert!(Fleet::new(options(1, 64, 1), FleetOptions::default(), vec![]).is_err());
}

/// The load of experts is counted while somebody looks: as many choices as tokens times experts a token.
#[test]
fn the_load_of_experts() {
    let s = Server::start(options(2, 256, 8));
    let first = s.get("/v1/experts").json();
    assert_eq!(first["tokens"], 0, "nobody has looked before");
    let j = s.good("/v1/completions", &merged(&body("demo"), &json!({"max_tokens": 20, "ignore_eos": true})));
    let load = s.get("/v1/experts").json();
    // The last token is chosen, and not fed.
    let fed = j["usage"]["total_tokens"].as_u64().unwrap() - 1;
    assert_eq!(load["tokens"].as_u64().unwrap(), fed);
    let used = load["used"].as_u64().unwrap();
    for layer in load["layers"].as_array().unwrap() {
        let counts: Vec<u64> = layer["load"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
        assert_eq!((counts.len() as u64, counts.iter().sum::<u64>()), (load["experts"].as_u64().unwrap(), fed * used));
    }
    // A window of the last tokens, not all of them.
    for _ in 0..6 {
        s.good("/v1/completions", &merged(&body("demo"), &json!({"max_tokens": 100, "ignore_eos": true})));
        s.get("/v1/experts");
    }
    let tokens = s.get("/v1/experts").json()["tokens"].as_u64().unwrap();
    assert!((512..512 + 64).contains(&tokens), "{tokens}");
}
