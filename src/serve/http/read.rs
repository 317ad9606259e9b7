//! Bodies of requests: as JSON, within limits of size and time.

use crate::serve::{
    app::ServeOptions,
    error::{ApiError, ApiResult},
};
use http_body_util::{BodyExt, Limited};
use hyper::{Request, body::Incoming, header};
use serde_json::Value;

/// The body of a request as JSON.
///
/// # Errors
/// 415 for another kind of content, 413 for too much of it, 408 where it does not come, 400 for what is no JSON.
pub async fn json(options: &ServeOptions, request: Request<Incoming>) -> ApiResult<Value> {
    let limit = options.body_limit;
    let too_large = || ApiError::new(413, format!("the body is larger than {limit} bytes"));
    let (head, body) = request.into_parts();
    let length = head.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|n| n > limit as u64) {
        return Err(too_large());
    }
    let kind = head.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind != "application/json" && !kind.ends_with("+json") {
        return Err(ApiError::new(415, format!("content-type must be application/json, not {kind:?}")));
    }
    let collected = tokio::time::timeout(options.read_timeout, Limited::new(body, limit).collect()).await;
    let slow = |_| ApiError::new(408, "the body did not come in time");
    let bytes = collected.map_err(slow)?.map_err(|e| match e.is::<http_body_util::LengthLimitError>() {
        true => too_large(),
        false => ApiError::new(400, format!("the body could not be read: {e}")),
    })?;
    serde_json::from_slice(&bytes.to_bytes())
        .map_err(|e| ApiError { code: Some("invalid_json"), ..ApiError::new(400, format!("the body is no JSON: {e}")) })
}
