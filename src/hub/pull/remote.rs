//! What the hub is asked, over HTTP.

use super::{PullOptions, cache::is_plain};
use crate::{
    cancel::CancelToken,
    error::{Error, Result},
};
use serde_json::Value as Json;
use std::time::Duration;
use ureq::{
    Agent, Body,
    http::{HeaderMap, Response, Uri, header},
};

/// Silence after which a connection is given up.
const SILENCE: Duration = Duration::from_secs(30);
/// A listing beyond this is none.
const MAX_LISTING: u64 = 64 << 20;
/// Addresses that an answer may lead to, one after the other.
const MAX_HOPS: usize = 8;

/// See the [module](self).
pub(super) struct Remote<'a> {
    agent: Agent,
    options: &'a PullOptions,
    endpoint: Uri,
}

/// A repository at a commit.
pub(super) struct Listing {
    pub commit: String,
    /// Names and bytes.
    pub files: Vec<(String, u64)>,
}

/// A file at a commit.
pub(super) struct Facts {
    /// The name of its blob: its sha256 where it is large.
    pub etag: String,
    pub size: u64,
    pub url: String,
}

impl Facts {
    /// Its sha256 in hexadecimal digits; `None` for small files, which the hub knows by another hash.
    pub fn sha256(&self) -> Option<&str> {
        (self.etag.len() == 64 && self.etag.bytes().all(|b| b.is_ascii_hexdigit())).then_some(&self.etag)
    }
}

/// Why there is no answer.
pub(super) enum Failed {
    /// It may be there when it is asked for again.
    Broken(String),
    /// It will not.
    Refused(Error),
}

impl Failed {
    /// For who does not ask again.
    fn error(self) -> Error {
        match self {
            Failed::Broken(why) => Error::Network(why),
            Failed::Refused(e) => e,
        }
    }
}

impl<'a> Remote<'a> {
    /// # Errors
    /// [`Error::Invalid`] for an endpoint that is no address.
    pub fn new(options: &'a PullOptions) -> Result<Self> {
        let address = options.endpoint.trim_end_matches('/');
        let wrong =
            || Error::Invalid(format!("{:?} is no address of a hub, such as https://huggingface.co", options.endpoint));
        let endpoint: Uri = address.parse().map_err(|_| wrong())?;
        if endpoint.host().is_none() || !matches!(endpoint.scheme_str(), Some("http" | "https")) {
            return Err(wrong());
        }
        if !options.revision.split('/').all(is_plain) {
            return Err(Error::Invalid(format!("{:?} is no name of a branch, a tag or a commit", options.revision)));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Tokens go to the hub alone, so that every hop is looked at here.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("moeray/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .proxy(options.proxy_of_environment.then(ureq::Proxy::try_from_env).flatten())
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .build();
        Ok(Remote { agent: config.into(), options, endpoint })
    }

    pub fn cancel(&self) -> &CancelToken {
        &self.options.cancel
    }

    /// The commit of the wanted revision, and its files.
    ///
    /// # Errors
    /// As [`super::pull`].
    pub fn list(&self, repo: &str) -> Result<Listing> {
        let revision = self.options.revision.replace('/', "%2F");
        let url = self.address(&format!("api/models/{repo}/revision/{revision}?blobs=true"));
        let answer = again(self.cancel(), || {
            let mut answer = self.ask("GET", &url, None, true)?;
            check(repo, self.options, &answer)?;
            let text = answer.body_mut().with_config().limit(MAX_LISTING).read_to_vec();
            text.map_err(|e| Failed::Broken(format!("{url}: {e}")))
        })?;
        let wrong = |what: &str| Error::format(url.clone(), format!("is no description of a repository: {what}"));
        let json: Json = serde_json::from_slice(&answer).map_err(|e| wrong(&e.to_string()))?;
        let commit = json["sha"].as_str().filter(|s| is_plain(s)).ok_or_else(|| wrong("no commit"))?.to_owned();
        let file = |f: &Json| {
            let bytes = f["lfs"]["size"].as_u64().or(f["size"].as_u64()).unwrap_or(0);
            Some((f["rfilename"].as_str()?.to_owned(), bytes))
        };
        let files = json["siblings"].as_array().ok_or_else(|| wrong("no files"))?.iter().filter_map(file).collect();
        Ok(Listing { commit, files })
    }

    /// What is known of a file.
    ///
    /// # Errors
    /// As [`super::pull`].
    pub fn facts(&self, repo: &str, commit: &str, file: &str) -> Result<Facts> {
        let path: String = file.split('/').map(encoded).collect::<Vec<_>>().join("/");
        let url = self.address(&format!("{repo}/resolve/{commit}/{path}"));
        let answer = again(self.cancel(), || {
            let answer = self.ask("HEAD", &url, None, false)?;
            check(repo, self.options, &answer)?;
            Ok(answer)
        })?;
        let text = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok());
        let etag = text("x-linked-etag").or(text("etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        let leads_on = answer.status().is_redirection();
        let size = text("x-linked-size").or(text("content-length").filter(|_| !leads_on));
        let size = size.and_then(|s| s.parse().ok());
        match size.filter(|_| is_plain(&etag)) {
            Some(size) => Ok(Facts { etag, size, url }),
            None => Err(Error::format(url, "the hub says neither the size of this file nor its hash")),
        }
    }

    /// The bytes of a file from a position on, and the position from which they really come.
    ///
    /// # Errors
    /// As [`super::pull`].
    pub fn bytes(&self, facts: &Facts, from: u64) -> Result<(Response<Body>, u64), Failed> {
        let answer = self.ask("GET", &facts.url, Some(from).filter(|n| *n > 0), true)?;
        let broken = |what: String| Failed::Broken(format!("{}: {what}", facts.url));
        match answer.status().as_u16() {
            200 => Ok((answer, 0)),
            206 => {
                let range =
                    answer.headers().get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
                let right = range == format!("bytes {from}-{}/{}", facts.size - 1, facts.size);
                if right { Ok((answer, from)) } else { Err(broken(format!("an unexpected range came: {range:?}"))) }
            }
            status @ (408 | 425 | 429 | 500..) => Err(broken(format!("status {status}"))),
            status => Err(Failed::Refused(Error::Network(format!("{}: status {status}", facts.url)))),
        }
    }

    fn address(&self, rest: &str) -> String {
        format!("{}/{rest}", self.options.endpoint.trim_end_matches('/'))
    }

    /// Asks, and follows where the answer leads: within the hub, and with `far` elsewhere too.
    /// Errors name the first address: what a hub leads to is often signed, and not for everybody's eyes.
    fn ask(&self, method: &str, first: &str, from: Option<u64>, far: bool) -> Result<Response<Body>, Failed> {
        let mut url = first.to_owned();
        for _ in 0..MAX_HOPS {
            let uri: Uri =
                url.parse().map_err(|e| Failed::Refused(Error::format(first, format!("leads to no address: {e}"))))?;
            let at_home = uri.authority() == self.endpoint.authority() && uri.scheme() == self.endpoint.scheme();
            let mut request = ureq::http::Request::builder().method(method).uri(&url);
            if let Some(token) = self.options.token.as_ref().filter(|_| at_home) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if let Some(from) = from {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let request = request.body(()).map_err(|e| Failed::Refused(Error::Invalid(format!("{first}: {e}"))))?;
            let answer = self.agent.run(request).map_err(|e| Failed::Broken(format!("{first}: {e}")))?;
            let next = answer.status().is_redirection().then(|| location(answer.headers(), &uri)).flatten();
            match next {
                Some((next, near)) if near || far => url = next,
                Some(_) | None => return Ok(answer),
            }
        }
        Err(Failed::Refused(Error::Network(format!("{first}: the hub leads in circles"))))
    }
}

/// Where an answer leads, and whether that is on the same host.
fn location(headers: &HeaderMap, from: &Uri) -> Option<(String, bool)> {
    let to = headers.get(header::LOCATION)?.to_str().ok()?;
    let (scheme, host) = (from.scheme_str()?, from.authority()?);
    if let Some(rest) = to.strip_prefix("//") {
        return Some((format!("{scheme}://{rest}"), false));
    }
    if to.starts_with('/') {
        return Some((format!("{scheme}://{host}{to}"), true));
    }
    to.contains("://").then(|| (to.to_owned(), false))
}

/// A name in an address: what is no letter or digit by its bytes.
fn encoded(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// What a refusal of the hub means to a person.
fn check(repo: &str, options: &PullOptions, answer: &Response<Body>) -> Result<(), Failed> {
    let status = answer.status().as_u16();
    let (hub, revision) = (&options.endpoint, &options.revision);
    let code = answer.headers().get("x-error-code").and_then(|v| v.to_str().ok()).unwrap_or_default();
    let says = match (status, code) {
        (200..=399, _) => return Ok(()),
        (408 | 425 | 429 | 500.., _) => return Err(Failed::Broken(format!("{hub} answers with status {status}"))),
        (_, "GatedRepo") => format!("{repo} is open only to those who have accepted its terms at {hub}/{repo}"),
        (_, "RevisionNotFound") => format!("{repo} has no revision {revision}"),
        (404, "EntryNotFound") => format!("{repo} has no such file at {revision}"),
        // The hub does not tell what is hidden from what is not there.
        (401 | 403 | 404, _) => format!("{hub} has no repository {repo}, or does not show it to everybody"),
        _ => format!("{hub} answers with status {status} for {repo}"),
    };
    let token = match (status, &options.token) {
        (401 | 403 | 404, None) => "; no token was sent",
        (401 | 403, Some(_)) => "; the token that was sent does not open it",
        _ => "",
    };
    Err(Failed::Refused(Error::Network(format!("{says}{token}"))))
}

/// Tries a small question some times.
fn again<T>(cancel: &CancelToken, mut ask: impl FnMut() -> Result<T, Failed>) -> Result<T> {
    for pause in PAUSES {
        cancel.check()?;
        match ask() {
            Err(Failed::Broken(why)) => tracing::info!("{why}; trying again"),
            Err(Failed::Refused(e)) => return Err(e),
            Ok(answer) => return Ok(answer),
        }
        sleep(pause, cancel)?;
    }
    ask().map_err(Failed::error)
}

/// Waits before new tries, in milliseconds.
pub(super) const PAUSES: [u64; 4] = [250, 1000, 3000, 8000];

/// Sleeps so many milliseconds, or until the download is cancelled.
pub(super) fn sleep(mut millis: u64, cancel: &CancelToken) -> Result<()> {
    while millis > 0 {
        cancel.check()?;
        let piece = millis.min(50);
        std::thread::sleep(Duration::from_millis(piece));
        millis -= piece;
    }
    cancel.check()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_answers_lead() {
        let from: Uri = "https://huggingface.co/a/b".parse().unwrap();
        let of = |to: &str| {
            let headers = HeaderMap::from_iter([(header::LOCATION, to.parse().unwrap())]);
            location(&headers, &from)
        };
        assert_eq!(of("/c/d"), Some(("https://huggingface.co/c/d".into(), true)));
        assert_eq!(of("https://cdn.example/x?y=1"), Some(("https://cdn.example/x?y=1".into(), false)));
        assert_eq!(of("//cdn.example/x"), Some(("https://cdn.example/x".into(), false)));
        assert_eq!(of("nonsense"), None);
        assert_eq!(encoded("a b+c.gguf"), "a%20b%2Bc.gguf");
    }
}
