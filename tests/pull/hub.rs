//! A small hub on loopback: the API and files of one host, large files at another, and faults on demand.

use ring::digest::{SHA256, digest};
use serde_json::json;
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

pub const COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// What goes wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Connections end after so many bytes of a large file.
    pub cut: Option<usize>,
    /// Milliseconds between pieces of 16 KiB.
    pub slow: u64,
    /// Ranges are not understood: everything comes from the beginning.
    pub no_ranges: bool,
    /// The ranges that come are others than those asked for.
    pub wrong_range: bool,
    /// So many answers with large files have a wrong byte.
    pub spoilt: usize,
    /// So many answers are a 503.
    pub busy: usize,
    /// The token without which nothing is shown, and what a refusal says in `x-error-code`.
    pub gated: Option<(&'static str, &'static str)>,
}

/// A request that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub from: Option<u64>,
    pub token: Option<String>,
}

pub struct Hub {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    repo: String,
    files: BTreeMap<String, Vec<u8>>,
    faults: Mutex<Faults>,
    seen: Mutex<Vec<Seen>>,
    far: SocketAddr,
}

/// Bytes that look like none other.
pub fn noise(seed: u64, n: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    (0..n).map(|_| next()).collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// Files from this size on lie at the other host, as those in git-lfs do.
const LARGE: usize = 1 << 12;

impl Hub {
    pub fn start(repo: &str, files: &[(&str, Vec<u8>)]) -> Hub {
        let near = TcpListener::bind("127.0.0.1:0").unwrap();
        let far = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = near.local_addr().unwrap();
        let shared = Arc::new(Shared {
            repo: repo.into(),
            files: files.iter().map(|(n, b)| ((*n).to_owned(), b.clone())).collect(),
            faults: Mutex::default(),
            seen: Mutex::default(),
            far: far.local_addr().unwrap(),
        });
        for (listener, is_far) in [(near, false), (far, true)] {
            let shared = shared.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let shared = shared.clone();
                    // A client that goes away is the client's matter.
                    std::thread::spawn(move || drop(shared.connection(stream, is_far)));
                }
            });
        }
        Hub { address, shared }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set(&self, faults: Faults) {
        *self.shared.faults.lock().unwrap() = faults;
    }

    /// What was asked since this was called last.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.shared.seen.lock().unwrap())
    }
}

impl Shared {
    fn connection(&self, stream: TcpStream, far: bool) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?);
        loop {
            let mut head = vec![];
            loop {
                let mut line = String::new();
                if lines.read_line(&mut line)? == 0 {
                    return Ok(());
                }
                match line.trim_end() {
                    "" => break,
                    line => head.push(line.to_owned()),
                }
            }
            let mut words = head[0].split(' ');
            let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
            let header = |name: &str| {
                let lines = head[1..].iter().filter_map(|l| l.split_once(": "));
                lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.to_owned()).next()
            };
            let from =
                header("range").map(|r| r.strip_prefix("bytes=").unwrap().trim_end_matches('-').parse().unwrap());
            let token = header("authorization").map(|t| t.strip_prefix("Bearer ").unwrap().to_owned());
            let seen = Seen { method, path, from, token };
            self.seen.lock().unwrap().push(seen.clone());
            if !self.answer(&stream, &seen, far)? {
                return stream.shutdown(std::net::Shutdown::Both);
            }
        }
    }

    /// Answers; `false` where the connection ends with it.
    fn answer(&self, out: &TcpStream, seen: &Seen, far: bool) -> std::io::Result<bool> {
        let faults = {
            let mut f = self.faults.lock().unwrap();
            if f.busy > 0 {
                f.busy -= 1;
                return plain(out, 503, &[], b"");
            }
            f.clone()
        };
        if far {
            return self.large(out, seen, &faults);
        }
        if let Some((token, code)) = faults.gated
            && seen.token.as_deref() != Some(token)
        {
            return plain(out, 401, &[("x-error-code", code.into())], b"");
        }
        let path = seen.path.split('?').next().unwrap();
        if path == format!("/api/models/{}/revision/main", self.repo) {
            let file = |(name, bytes): (&String, &Vec<u8>)| {
                let lfs = (bytes.len() >= LARGE).then(|| json!({"sha256": sha256(bytes), "size": bytes.len()}));
                json!({"rfilename": name, "size": bytes.len(), "lfs": lfs})
            };
            let body = json!({"sha": COMMIT, "siblings": self.files.iter().map(file).collect::<Vec<_>>()}).to_string();
            return plain(out, 200, &[("content-type", "application/json".into())], body.as_bytes());
        }
        let file = path.strip_prefix(&format!("/{}/resolve/{COMMIT}/", self.repo)).and_then(|f| self.files.get(f));
        let Some(bytes) = file else {
            return plain(out, 404, &[("x-error-code", "RepoNotFound".into())], b"");
        };
        let mut headers = vec![("x-repo-commit", COMMIT.to_owned())];
        if bytes.len() >= LARGE {
            let sha = sha256(bytes);
            headers.push(("x-linked-etag", format!("\"{sha}\"")));
            headers.push(("x-linked-size", bytes.len().to_string()));
            headers.push(("location", format!("http://{}/{sha}?signed=1", self.far)));
            return plain(out, 302, &headers, b"");
        }
        headers.push(("etag", format!("\"{}\"", &sha256(bytes)[..40])));
        match seen.method.as_str() {
            "HEAD" => {
                headers.push(("content-length", bytes.len().to_string()));
                head(out, 200, &headers).map(|()| true)
            }
            _ => plain(out, 200, &headers, bytes),
        }
    }

    /// A large file, with its faults.
    fn large(&self, mut out: &TcpStream, seen: &Seen, faults: &Faults) -> std::io::Result<bool> {
        let sha = seen.path.trim_start_matches('/').split('?').next().unwrap();
        let mut bytes = self.files.values().find(|b| sha256(b) == sha).unwrap().clone();
        let size = bytes.len();
        {
            let mut f = self.faults.lock().unwrap();
            if f.spoilt > 0 {
                f.spoilt -= 1;
                bytes[size - 1] ^= 1;
            }
        }
        let from = seen.from.filter(|_| !faults.no_ranges).unwrap_or(0) as usize;
        let rest = &bytes[from..];
        let mut headers = vec![("content-length", rest.len().to_string())];
        let shown = if faults.wrong_range { from + 1 } else { from };
        if from > 0 {
            headers.push(("content-range", format!("bytes {shown}-{}/{size}", size - 1)));
        }
        head(out, if from > 0 { 206 } else { 200 }, &headers)?;
        let cut = faults.cut.unwrap_or(usize::MAX).min(rest.len());
        for piece in rest[..cut].chunks(1 << 14) {
            out.write_all(piece)?;
            std::thread::sleep(Duration::from_millis(faults.slow));
        }
        // What was written is read before the connection ends.
        if cut < rest.len() {
            out.shutdown(std::net::Shutdown::Write)?;
            let _ = out.read(&mut [0; 64]);
        }
        Ok(cut == rest.len())
    }
}

fn head(mut out: &TcpStream, status: u16, headers: &[(&str, String)]) -> std::io::Result<()> {
    let lines: String = headers.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
    out.write_all(format!("HTTP/1.1 {status} x\r\n{lines}\r\n").as_bytes())
}

fn plain(mut out: &TcpStream, status: u16, headers: &[(&str, String)], body: &[u8]) -> std::io::Result<bool> {
    let length = [("content-length", body.len().to_string())];
    head(out, status, &[headers, &length].concat())?;
    out.write_all(body).map(|()| true)
}
