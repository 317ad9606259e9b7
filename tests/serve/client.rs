//! A server in this process, and a plain client of HTTP/1.1 over sockets: a library would hide what is tested here.

use moeray::{
    backend::runner::RunnerOptions,
    quant::KvType,
    serve::{self, App, Fleet, ServeOptions, engine::EngineOptions, metrics::Style},
    session::{BackendChoice, LoadOptions, Model},
};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, OnceLock},
    time::Duration,
};

/// The demo model on the CPU, loaded once.
pub fn demo() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| {
        let cpu = moeray::cpu::Options { threads: Some(2), ..Default::default() };
        let traced = moeray::model::Options { trace_router: true };
        let options = LoadOptions { backend: BackendChoice::Cpu(cpu), model: traced, ..LoadOptions::default() };
        Model::demo(&options, &mut |_| {}).unwrap()
    })
}

pub fn options(sequences: usize, ctx: usize, queue: usize) -> ServeOptions {
    let runner = RunnerOptions { ctx, sequences, ubatch: 64.min(ctx), kv: KvType::F16 };
    ServeOptions {
        engine: EngineOptions { runner, queue, step_micros: 100_000, prefix_bytes: 64 << 20 },
        name: "demo".into(),
        keys: vec![],
        chat_template: None,
        cors: vec![],
        body_limit: 1 << 20,
        connections: 64,
        read_timeout: Duration::from_secs(20),
        ping: Duration::from_secs(15),
        grace: Duration::from_secs(30),
        pooling: None,
        slot_folder: None,
        metrics: Style::Moeray,
        now: || None,
    }
}

/// A server that runs until it is told to end, or the tests do.
pub struct Server {
    pub address: SocketAddr,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub fn start(options: ServeOptions) -> Server {
        Server::of(Fleet::of(Arc::new(App::new(demo(), options).unwrap())))
    }

    pub fn of(fleet: Fleet) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ended) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let until = async { ended.await.unwrap_or(()) };
            serve::serve_models(Arc::new(fleet), listener, until).unwrap();
        });
        Server { address, end: Some(end), thread: Some(thread) }
    }

    /// Tells it to end; running answers may finish.
    pub fn tell_to_end(&mut self) {
        self.end.take().unwrap().send(()).unwrap();
    }

    pub fn join(&mut self) {
        self.thread.take().unwrap().join().unwrap();
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends a request; gives its connection.
    pub fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        stream
    }

    pub fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        Answer::read(self.send(method, path, headers, body))
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, JSON, body.to_string().as_bytes())
    }

    /// A request that must be answered.
    pub fn good(&self, path: &str, body: &Value) -> Value {
        let a = self.post(path, body);
        assert_eq!(a.status, 200, "{path} {body}: {}", a.text);
        a.json()
    }

    /// A greedy completion.
    pub fn text(&self, prompt: &str, tokens: usize, more: &Value) -> Value {
        self.good(
            "/v1/completions",
            &merged(&json!({"model": "demo", "prompt": prompt, "temperature": 0, "max_tokens": tokens}), more),
        )
    }

    /// The data of a stream's events.
    pub fn events(&self, path: &str, body: &Value) -> Vec<String> {
        let a = self.post(path, &merged(body, &json!({"stream": true})));
        assert_eq!((a.status, a.header("content-type")), (200, "text/event-stream; charset=utf-8"), "{}", a.text);
        a.text.lines().filter_map(|l| l.strip_prefix("data: ")).map(str::to_owned).collect()
    }

    /// The number behind a name in the metrics, labels included in the name.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text;
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }
}

pub const JSON: &str = "content-type: application/json\r\n";

/// An object with some fields in place of its own.
pub fn merged(a: &Value, b: &Value) -> Value {
    let mut all = a.clone();
    for (k, v) in b.as_object().into_iter().flatten() {
        all[k] = v.clone();
    }
    all
}

/// An answer that was read to its end.
pub struct Answer {
    pub status: u16,
    head: String,
    pub text: String,
}

impl Answer {
    pub fn read(mut stream: TcpStream) -> Answer {
        let mut bytes = vec![];
        stream.read_to_end(&mut bytes).unwrap();
        let at = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(bytes[..at].to_vec()).unwrap().to_ascii_lowercase();
        let mut body = bytes[at + 4..].to_vec();
        if head.contains("transfer-encoding: chunked") {
            body = joined_chunks(&body);
        }
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head, text: String::from_utf8(body).unwrap() }
    }

    pub fn header(&self, name: &str) -> &str {
        let line = self.head.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_default()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }
}

fn joined_chunks(mut body: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    while let Some(at) = body.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&body[..at]).unwrap(), 16).unwrap();
        out.extend_from_slice(&body[at + 2..at + 2 + size]);
        body = &body[at + 4 + size..];
        if size == 0 {
            break;
        }
    }
    out
}
