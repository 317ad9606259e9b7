//! The paths, and what each is for.

use hyper::Method;

/// What a path is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Page,
    Health,
    OpenApi,
    Metrics,
    Props,
    Slots,
    Slot,
    Models,
    Model,
    Experts,
    Chat,
    Completions,
    Embeddings,
    Responses,
    ResponsesCount,
    Messages,
    MessagesCount,
    Tokenize,
    Detokenize,
    ApplyTemplate,
}

impl Route {
    /// What a path is for; `None` for one that is not known.
    pub fn of(path: &str) -> Option<Route> {
        Some(match path {
            "/" => Route::Page,
            "/health" | "/v1/health" => Route::Health,
            "/openapi.json" => Route::OpenApi,
            "/metrics" => Route::Metrics,
            "/props" => Route::Props,
            "/slots" => Route::Slots,
            "/v1/models" | "/models" => Route::Models,
            "/v1/experts" => Route::Experts,
            "/v1/chat/completions" | "/chat/completions" => Route::Chat,
            "/v1/completions" => Route::Completions,
            "/v1/embeddings" => Route::Embeddings,
            "/v1/responses" => Route::Responses,
            "/v1/responses/input_tokens" => Route::ResponsesCount,
            "/v1/messages" => Route::Messages,
            "/v1/messages/count_tokens" => Route::MessagesCount,
            "/tokenize" => Route::Tokenize,
            "/detokenize" => Route::Detokenize,
            "/apply-template" => Route::ApplyTemplate,
            _ if path.strip_prefix("/slots/").is_some_and(|id| !id.is_empty()) => Route::Slot,
            _ if path.strip_prefix("/v1/models/").is_some_and(|id| !id.is_empty()) => Route::Model,
            _ => return None,
        })
    }

    /// Its methods.
    pub fn methods(self) -> &'static str {
        match self {
            Route::Page => "GET, HEAD",
            Route::Health | Route::OpenApi | Route::Metrics | Route::Props => "GET, HEAD",
            Route::Slots | Route::Models | Route::Model | Route::Experts => "GET, HEAD",
            Route::Chat | Route::Completions | Route::Embeddings | Route::Responses | Route::Messages => "POST",
            Route::Slot | Route::ResponsesCount | Route::MessagesCount => "POST",
            Route::Tokenize | Route::Detokenize | Route::ApplyTemplate => "POST",
        }
    }

    /// Whether it has a method.
    pub fn allows(self, method: &Method) -> bool {
        self.methods().split(", ").any(|m| m == method.as_str())
    }

    /// Whether it takes part of the model's time.
    pub fn generates(self) -> bool {
        matches!(self, Route::Chat | Route::Completions | Route::Embeddings | Route::Responses | Route::Messages)
    }
}
