//! From a request to its answer.

use super::{
    body::{AnswerBody, EventBody, Writer},
    gate, read,
    route::Route,
};
use crate::serve::{
    api::{
        chat::{self, ChatWriter},
        completions::{self, TextWriter},
        embeddings::{self, EmbeddingsWriter},
        facts,
        messages::{self, MessagesWriter},
        responses,
        responses_out::ResponsesWriter,
        slots::{self, Action},
    },
    app::{App, Client},
    engine::Event,
    error::{ApiError, ApiResult},
    fields::Fields,
    fleet::Fleet,
    metrics,
    openapi::OPENAPI,
    page::{PAGE, POLICY},
};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
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

/// Answers a request, whatever it is.
pub async fn answer(fleet: Arc<Fleet>, peer: IpAddr, request: Request<Incoming>) -> Response<AnswerBody> {
    let arrived = Instant::now();
    let id = fleet.request_id();
    let origin = request.headers().get(header::ORIGIN).cloned();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let result = match gate::is_preflight(&method, request.headers()) {
        true => Ok(empty(StatusCode::NO_CONTENT)),
        false => {
            let client = Client { id: client(peer, request.headers()), arrived };
            dispatch(&fleet, client, request).await
        }
    };
    let mut response = result.unwrap_or_else(|e| refusal(&path, &e));
    gate::allow_origin(&fleet.options, origin.as_ref(), &mut response);
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

async fn dispatch(fleet: &Arc<Fleet>, client: Client, request: Request<Incoming>) -> Answered {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let route = Route::of(&path);
    if !matches!(route, Some(Route::Health | Route::Page)) {
        gate::check_key(&fleet.options, request.headers())?;
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
    if fleet.draining.load(Ordering::Relaxed) && route.generates() {
        return Err(ApiError { retry_after: Some(5), ..ApiError::new(503, "the server is shutting down") });
    }
    let named = query(&request, "model=");
    match route {
        Route::Page => Ok(page()),
        Route::Health => facts::health(fleet).map(|v| json(&v)),
        Route::OpenApi => Ok(full(StatusCode::OK, "application/json", OPENAPI.into())),
        Route::Metrics => Ok(metrics(fleet)),
        Route::Props => fleet.loaded(named.as_deref()).map(|app| json(&facts::props(&app))),
        Route::Slots => fleet.loaded(named.as_deref()).map(|app| json(&facts::slots(&app))),
        Route::Slot => slot(fleet, &path, named.as_deref(), request).await,
        Route::Experts => facts::experts(&*fleet.loaded(named.as_deref())?).map(|v| json(&v)),
        Route::Models => Ok(json(&facts::models(fleet))),
        Route::Model => {
            facts::model(fleet, &decoded(path.strip_prefix("/v1/models/").unwrap_or_default())).map(|v| json(&v))
        }
        Route::Chat => generate_chat(fleet, client, request).await,
        Route::Completions => generate_text(fleet, client, request).await,
        Route::Embeddings => embed(fleet, client, request).await,
        Route::Responses => generate_response(fleet, client, request).await,
        Route::Messages => generate_message(fleet, client, request).await,
        Route::ResponsesCount => by_json(fleet, request, responses::count).await,
        Route::MessagesCount => by_json(fleet, request, messages::count).await,
        Route::Tokenize => by_json(fleet, request, facts::tokenize).await,
        Route::Detokenize => by_json(fleet, request, facts::detokenize).await,
        Route::ApplyTemplate => by_json(fleet, request, facts::apply_template).await,
    }
}

/// The decoded value behind a name with `=` in a request's query.
fn query(request: &Request<Incoming>, name: &str) -> Option<String> {
    request.uri().query().and_then(|q| q.split('&').find_map(|p| p.strip_prefix(name))).map(decoded)
}

/// Saves, restores or empties a slot.
async fn slot(fleet: &Arc<Fleet>, path: &str, named: Option<&str>, request: Request<Incoming>) -> Answered {
    let app = fleet.loaded(named)?;
    let id = path.strip_prefix("/slots/").unwrap_or_default();
    let known = app.engine.options().runner.sequences;
    let Some(id) = id.parse().ok().filter(|id| *id < known) else {
        let message = format!("there is no slot {id:?}: this server has {known}, from 0 on");
        return Err(ApiError { code: Some("no_slot"), ..ApiError::new(404, message) });
    };
    let action = Action::of(query(&request, "action=").as_deref())?;
    let body = match action {
        Action::Erase => Value::Null,
        Action::Save | Action::Restore => read::json(&fleet.options, request).await?,
    };
    slots::act(&app, id, action, &body).await.map(|v| json(&v))
}

/// A request as it was read for the model that it names.
async fn read<T: Send + 'static>(
    fleet: &Arc<Fleet>,
    request: Request<Incoming>,
    work: fn(&App, &Value) -> ApiResult<T>,
) -> ApiResult<(Arc<App>, T)> {
    let body = read::json(&fleet.options, request).await?;
    let app = fleet.app(Fields::of(&body)?.string("model")?).await?;
    let read = blocking(&app, move |app| work(app, &body)).await?;
    Ok((app, read))
}

async fn generate_chat(fleet: &Arc<Fleet>, client: Client, request: Request<Incoming>) -> Answered {
    let (app, request) = read(fleet, request, chat::read).await?;
    let events = app.submit(|to| request.options.jobs(&client, &request.prompt, 0, &to))?;
    let writer = ChatWriter::new(&app, &request);
    if request.stream { Ok(stream(&app, events, writer)) } else { whole(events, writer, ChatWriter::answer).await }
}

async fn generate_text(fleet: &Arc<Fleet>, client: Client, request: Request<Incoming>) -> Answered {
    let (app, request) = read(fleet, request, completions::read).await?;
    let events = app.submit(|to| {
        let n = request.options.n;
        let prompts = request.prompts.iter().enumerate();
        prompts.flat_map(|(i, p)| request.options.jobs(&client, p, i * n, &to)).collect()
    })?;
    let streams = request.stream;
    let writer = TextWriter::new(&app, request);
    if streams { Ok(stream(&app, events, writer)) } else { whole(events, writer, TextWriter::answer).await }
}

async fn embed(fleet: &Arc<Fleet>, client: Client, request: Request<Incoming>) -> Answered {
    let (app, request) = read(fleet, request, embeddings::read).await?;
    let events = app.submit(|to| request.jobs(&client, &to))?;
    whole(events, EmbeddingsWriter::new(&app, &request), EmbeddingsWriter::answer).await
}

async fn generate_response(fleet: &Arc<Fleet>, client: Client, request: Request<Incoming>) -> Answered {
    let (app, request) = read(fleet, request, responses::read).await?;
    let events = app.submit(|to| request.options.jobs(&client, &request.prompt, 0, &to))?;
    let writer = ResponsesWriter::new(&app, &request);
    if request.stream { Ok(stream(&app, events, writer)) } else { whole(events, writer, ResponsesWriter::answer).await }
}

async fn generate_message(fleet: &Arc<Fleet>, client: Client, request: Request<Incoming>) -> Answered {
    let (app, request) = read(fleet, request, messages::read).await?;
    let events = app.submit(|to| request.options.jobs(&client, &request.prompt, 0, &to))?;
    let writer = MessagesWriter::new(&app, &request);
    if request.stream { Ok(stream(&app, events, writer)) } else { whole(events, writer, MessagesWriter::answer).await }
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

async fn by_json(
    fleet: &Arc<Fleet>,
    request: Request<Incoming>,
    work: fn(&App, &Value) -> ApiResult<Value>,
) -> Answered {
    read(fleet, request, work).await.map(|(_, v)| json(&v))
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

fn metrics(fleet: &Fleet) -> Response<AnswerBody> {
    let text = metrics::text(&fleet.metrics(), fleet.options.metrics);
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
