//! Refusals, in the forms of the two APIs.

use super::engine::Refused;
use crate::error::Error;
use serde_json::{Value, json};

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The status of HTTP.
    pub status: u16,
    /// OpenAI's `code`.
    pub code: Option<&'static str>,
    /// The field that is at fault, as a path.
    pub param: Option<String>,
    /// For a person.
    pub message: String,
    /// Seconds after which to try again.
    pub retry_after: Option<u64>,
    /// Methods that the path has.
    pub allow: Option<&'static str>,
}

/// A result that a client sees.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// A refusal with a status and a message.
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        ApiError { status, code: None, param: None, message: message.into(), retry_after: None, allow: None }
    }

    /// A field with a value that cannot be.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        let param = param.into();
        ApiError { code: Some("invalid_value"), ..ApiError::new(400, format!("{param}: {}", message.into())) }.at(param)
    }

    /// A field that is missing.
    pub fn missing(param: &str) -> Self {
        let message = format!("{param} is missing: it is required");
        ApiError { code: Some("missing_required_parameter"), ..ApiError::new(400, message) }.at(param)
    }

    /// Something valid that this server does not do.
    pub fn unsupported(param: &str, message: impl Into<String>) -> Self {
        ApiError { code: Some("unsupported_parameter"), ..ApiError::field(param, message) }
    }

    /// A model that is not there.
    pub fn no_model(name: &str) -> Self {
        let message = format!("the model {name:?} does not exist; GET /v1/models lists those that do");
        ApiError { code: Some("model_not_found"), ..ApiError::new(404, message) }.at("model")
    }

    /// A prompt that is too long.
    pub fn context(param: &str, ctx: usize, tokens: usize) -> Self {
        let message = format!(
            "the context of this model is {ctx} tokens, and the prompt has {tokens} tokens; shorten it, or start the server \
             with a longer context"
        );
        ApiError { code: Some("context_length_exceeded"), ..ApiError::new(400, message) }.at(param)
    }

    fn at(self, param: impl Into<String>) -> Self {
        ApiError { param: Some(param.into()), ..self }
    }

    /// The body as OpenAI's API has it.
    pub fn openai(&self) -> Value {
        let kind = match self.status {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }

    /// The body as Anthropic's API has it.
    pub fn anthropic(&self) -> Value {
        let kind = match self.status {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        };
        json!({"type": "error", "error": {"type": kind, "message": self.message}, "request_id": null})
    }
}

impl From<Refused> for ApiError {
    fn from(r: Refused) -> Self {
        match r {
            Refused::Full(seconds) => ApiError {
                retry_after: Some(seconds),
                code: Some("queue_full"),
                ..ApiError::new(429, format!("too many requests wait already; try again in {seconds} s"))
            },
            Refused::Closing => ApiError { retry_after: Some(5), ..ApiError::new(503, "the server is shutting down") },
        }
    }
}

/// What the library says of a request: what the request asked for is its fault, everything else the server's.
impl From<Error> for ApiError {
    fn from(e: Error) -> Self {
        match e {
            Error::ContextFull { needed, capacity } => ApiError::context("messages", capacity, needed),
            Error::Invalid(_) | Error::Tokenizer(_) | Error::SystemMessage(_) => ApiError::new(400, e.to_string()),
            e => ApiError::new(500, e.to_string()),
        }
    }
}
