//! Which path does what.

use super::{
    body::{AnswerBody, EventBody, Writer},
    gate, read,
};
use crate::serve::{
    api::{
        chat::{self, ChatWriter},
        completions::{self, TextWriter},
        facts,
        messages::{self, MessagesWriter},
        responses,
        responses_out::ResponsesWriter,
    },
    app::{App, Client},
    engine::Event,
    error::{ApiError, ApiResult},
    openapi::OPENAPI,
    page::{PAGE, POLICY},
};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{self, HeaderName, HeaderValue},
};
use serde_json::Value;
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};
use tokio::sync::mpsc::UnboundedReceiver;

/// An answer, or why there is none.
type Answered = ApiResult<Response<AnswerBody>>;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a path is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Page,
    Health,
    OpenApi,
    Metrics,
    Props,
    Slots,
    Models,
    Model,
    Chat,
    Completions,
    Responses,
    ResponsesCount,
    Messages,
    MessagesCount,
    Tokenize,
    Detokenize,
    ApplyTemplate,
}

impl Route {
    fn of(path: &str) -> Option<Route> {
        Some(match path {
            "/" => Route::Page,
            "/health" | "/v1/health" => Route::Health,
            "/openapi.json" => Route::OpenApi,
            "/metrics" => Route::Metrics,
            "/props" => Route::Props,
            "/slots" => Route::Slots,
            "/v1/models" | "/models" => Route::Models,
            "/v1/chat/completions" | "/chat/completions" => Route::Chat,
            "/v1/completions" => Route::Completions,
            "/v1/responses" => Route::Responses,
            "/v1/responses/input_tokens" => Route::ResponsesCount,
            "/v1/messages" => Route::Messages,
            "/v1/messages/count_tokens" => Route::MessagesCount,
            "/tokenize" => Route::Tokenize,
            "/detokenize" => Route::Detokenize,
            "/apply-template" => Route::ApplyTemplate,
            _ if path.strip_prefix("/v1/models/").is_some_and(|id| !id.is_empty()) => Route::Model,
            _ => return None,
        })
    }

    fn methods(self) -> &'static str {
        match self {
            Route::Page => "GET, HEAD",
            Route::Health | Route::OpenApi | Route::Metrics | Route::Props => "GET, HEAD",
            Route::Slots | Route::Models | Route::Model => "GET, HEAD",
            Route::Chat | Route::Completions | Route::Responses | Route::Messages => "POST",
            Route::ResponsesCount | Route::MessagesCount => "POST",
            Route::Tokenize | Route::Detokenize | Route::ApplyTemplate => "POST",
        }
    }

    fn allows(self, method: &Method) -> bool {
        self.methods().split(", ").any(|m| m == method.as_str())
    }

    /// Whether it takes part of the model's time.
    fn generates(self) -> bool {
        matches!(self, Route::Chat | Route::Completions | Route::Responses | Route::Messages)
    }
}

/// Answers a request, whatever it is.
pub async fn answer(app: Arc<App>, peer: IpAddr, request: Request<Incoming>) -> Response<AnswerBody> {
    let arrived = Instant::now();
    let id = app.id("req_");
    let origin = request.headers().get(header::ORIGIN).cloned();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let result = match gate::is_preflight(&method, request.headers()) {
        true => Ok(empty(StatusCode::NO_CONTENT)),
        false => {
            let client = Client { id: client(peer, request.headers()), arrived };
            dispatch(&app, client, request).await
        }
    };
    let mut response = result.unwrap_or_else(|e| refusal(&path, &e));
    gate::allow_origin(&app, origin.as_ref(), &mut response);
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let (status, ms) = (response.status().as_u16(), arrived.elapsed().as_millis() as u64);
    tracing::info!(id, %method, path, status, ms, "request");
    response
}

/// Clients are told apart by address and key.
fn client(peer: IpAddr, headers: &HeaderMap) -> u64 {
    let mut hasher = DefaultHasher::new();
    peer.hash(&mut hasher);
    gate::key(headers).hash(&mut hasher);
    hasher.finish()
}

async fn dispatch(app: &Arc<App>, client: Client, request: Request<Incoming>) -> Answered {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let route = Route::of(&path);
    if !matches!(route, Some(Route::Health | Route::Page)) {
        gate::check_key(app, request.headers())?;
    }
    let Some(route) = route else {
        return Err(ApiError {
            code: Some("unknown_url"),
            ..ApiError::new(404, format!("there is no {method} {path}"))
        });
    };
    if !route.allows(&method) {
        let allow = Some(route.methods());
        return Err(ApiError {
            allow,
            ..ApiError::new(405, format!("{path} takes {}, not {method}", route.methods()))
        });
    }
    if app.draining.load(Ordering::Relaxed) && route.generates() {
        return Err(ApiError { retry_after: Some(5), ..ApiError::new(503, "the server is shutting down") });
    }
    match route {
        Route::Page => Ok(page()),
        Route::Health => facts::health(app).map(|v| json(&v)),
        Route::OpenApi => Ok(full(StatusCode::OK, "application/json", OPENAPI.into())),
        Route::Metrics => Ok(metrics(app)),
        Route::Props => Ok(json(&facts::props(app))),
        Route::Slots => Ok(json(&facts::slots(app))),
        Route::Models => Ok(json(&facts::models(app))),
        Route::Model => {
            let id = path.strip_prefix("/v1/models/").unwrap_or_default();
            app.check_model(&decoded(id))?;
            Ok(json(&facts::model(app)))
        }
        Route::Chat => generate_chat(app, client, request).await,
        Route::Completions => generate_text(app, client, request).await,
        Route::Responses => generate_response(app, client, request).await,
        Route::Messages => generate_message(app, client, request).await,
        Route::ResponsesCount => by_json(app, request, responses::count).await,
        Route::MessagesCount => by_json(app, request, messages::count).await,
        Route::Tokenize => by_json(app, request, facts::tokenize).await,
        Route::Detokenize => by_json(app, request, facts::detokenize).await,
        Route::ApplyTemplate => by_json(app, request, facts::apply_template).await,
    }
}

async fn generate_chat(app: &Arc<App>, client: Client, request: Request<Incoming>) -> Answered {
    let body = read::json(app, request).await?;
    let request = blocking(app, move |app| chat::read(app, &body)).await?;
    let events = app.submit(|to| request.options.jobs(&client, &request.prompt, 0, &to))?;
    let writer = ChatWriter::new(app, &request);
    if request.stream { Ok(stream(app, events, writer)) } else { whole(events, writer, ChatWriter::answer).await }
}

async fn generate_text(app: &Arc<App>, client: Client, request: Request<Incoming>) -> Answered {
    let body = read::json(app, request).await?;
    let request = blocking(app, move |app| completions::read(app, &body)).await?;
    let events = app.submit(|to| {
        let n = request.options.n;
        let prompts = request.prompts.iter().enumerate();
        prompts.flat_map(|(i, p)| request.options.jobs(&client, p, i * n, &to)).collect()
    })?;
    let streams = request.stream;
    let writer = TextWriter::new(app, request);
    if streams { Ok(stream(app, events, writer)) } else { whole(events, writer, TextWriter::answer).await }
}

async fn generate_response(app: &Arc<App>, client: Client, request: Request<Incoming>) -> Answered {
    let body = read::json(app, request).await?;
    let request = blocking(app, move |app| responses::read(app, &body)).await?;
    let events = app.submit(|to| request.options.jobs(&client, &request.prompt, 0, &to))?;
    let writer = ResponsesWriter::new(app, &request);
    if request.stream { Ok(stream(app, events, writer)) } else { whole(events, writer, ResponsesWriter::answer).await }
}

async fn generate_message(app: &Arc<App>, client: Client, request: Request<Incoming>) -> Answered {
    let body = read::json(app, request).await?;
    let request = blocking(app, move |app| messages::read(app, &body)).await?;
    let events = app.submit(|to| request.options.jobs(&client, &request.prompt, 0, &to))?;
    let writer = MessagesWriter::new(app, &request);
    if request.stream { Ok(stream(app, events, writer)) } else { whole(events, writer, MessagesWriter::answer).await }
}

/// The percent-decoded form of a part of a path.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = vec![];
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
        let byte = hex.filter(|_| bytes[i] == b'%').and_then(|h| u8::from_str_radix(h, 16).ok());
        out.push(byte.unwrap_or(bytes[i]));
        i += if byte.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Runs what may take some milliseconds (templates, tokenizers) where it delays nobody else.
async fn blocking<T: Send + 'static>(
    app: &Arc<App>,
    work: impl FnOnce(&Arc<App>) -> ApiResult<T> + Send + 'static,
) -> ApiResult<T> {
    let app = app.clone();
    let done = tokio::task::spawn_blocking(move || work(&app)).await;
    done.unwrap_or_else(|e| Err(ApiError::new(500, format!("a request could not be read: {e}"))))
}

async fn by_json(app: &Arc<App>, request: Request<Incoming>, work: fn(&App, &Value) -> ApiResult<Value>) -> Answered {
    let body = read::json(app, request).await?;
    blocking(app, move |app| work(app, &body)).await.map(|v| json(&v))
}

/// Waits for all events. Where the client goes away this future is dropped, the events with it, and the engine notices.
async fn whole<W: Writer>(
    mut events: UnboundedReceiver<(usize, Event)>,
    mut writer: W,
    answer: fn(W) -> ApiResult<Value>,
) -> Answered {
    let mut unused = String::new();
    while let Some((index, event)) = events.recv().await {
        writer.write(index, event, &mut unused);
    }
    answer(writer).map(|v| json(&v))
}

fn stream(
    app: &Arc<App>,
    events: UnboundedReceiver<(usize, Event)>,
    writer: impl Writer + 'static,
) -> Response<AnswerBody> {
    let body = EventBody::new(events, Box::new(writer), app.options.ping);
    let mut response = Response::new(AnswerBody::Events(Box::new(body)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that collect answers would undo the stream.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

fn full(status: StatusCode, kind: &'static str, text: String) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::Full(Some(Bytes::from(text))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The chat page.
fn page() -> Response<AnswerBody> {
    let mut response = full(StatusCode::OK, "text/html; charset=utf-8", PAGE.into());
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response
}

fn empty(status: StatusCode) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::Full(None));
    *response.status_mut() = status;
    response
}

fn json(value: &Value) -> Response<AnswerBody> {
    full(StatusCode::OK, "application/json", value.to_string())
}

fn metrics(app: &App) -> Response<AnswerBody> {
    let text = app.metrics.text(app.options.metrics);
    full(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
}

/// A refusal in the form of the path's API.
fn refusal(path: &str, e: &ApiError) -> Response<AnswerBody> {
    let body = if path.starts_with("/v1/messages") { e.anthropic() } else { e.openai() };
    let status = StatusCode::from_u16(e.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = full(status, "application/json", body.to_string());
    let headers = response.headers_mut();
    if let Some(seconds) = e.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(allow) = e.allow {
        headers.insert(header::ALLOW, HeaderValue::from_static(allow));
    }
    if e.status == 401 {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
