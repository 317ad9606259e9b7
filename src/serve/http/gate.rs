//! Who may ask: keys, and origins of web pages.

use crate::serve::{
    app::ServeOptions,
    error::{ApiError, ApiResult},
};
use hyper::{
    HeaderMap, Method, Response,
    header::{self, HeaderName, HeaderValue},
};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The key that a request brings, in either API's header.
pub fn key(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).and_then(|v| {
        let (scheme, key) = v.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
    });
    bearer.or_else(|| headers.get(API_KEY).map(HeaderValue::as_bytes))
}

/// Whether a request brings one of the server's keys, if it has any.
///
/// # Errors
/// 401 otherwise.
pub fn check_key(options: &ServeOptions, headers: &HeaderMap) -> ApiResult<()> {
    let keys = &options.keys;
    if keys.is_empty() {
        return Ok(());
    }
    let Some(given) = key(headers) else {
        return Err(ApiError::new(401, "an API key is required: Authorization: Bearer KEY, or x-api-key: KEY"));
    };
    // All keys are looked at, whichever is right.
    let right = keys.iter().fold(false, |right, key| right | same(key.as_bytes(), given));
    match right {
        true => Ok(()),
        false => Err(ApiError { code: Some("invalid_api_key"), ..ApiError::new(401, "this API key is not known") }),
    }
}

/// Compares in a time that depends on the given key's length alone, not on where it differs.
fn same(key: &[u8], given: &[u8]) -> bool {
    let mut differs = u8::from(key.len() != given.len());
    for (i, byte) in given.iter().enumerate() {
        let own = key.get(i % key.len().max(1)).unwrap_or(&0);
        differs |= std::hint::black_box(own ^ byte);
    }
    differs == 0
}

/// Adds the headers by which a browser lets a page of an allowed origin read the answer.
pub fn allow_origin<B>(options: &ServeOptions, origin: Option<&HeaderValue>, response: &mut Response<B>) {
    let Some(origin) = origin else { return };
    let cors = &options.cors;
    let any = cors.iter().any(|o| o == "*");
    if !any && !cors.iter().any(|o| o.as_bytes() == origin.as_bytes()) {
        return;
    }
    let headers = response.headers_mut();
    headers
        .insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, if any { HeaderValue::from_static("*") } else { origin.clone() });
    headers.insert(header::VARY, HeaderValue::from_static("origin"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
    let names = "authorization, content-type, x-api-key, anthropic-version, anthropic-beta";
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(names));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
}

/// Whether a request is a browser's question before the real one.
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

#[cfg(test)]
mod tests {
    use super::same;

    #[test]
    fn keys_are_compared_as_a_whole() {
        assert!(same(b"s3cret", b"s3cret"));
        for wrong in [&b"s3cre"[..], b"s3crets3cret", b"S3cret", b"", b"s3crets"] {
            assert!(!same(b"s3cret", wrong));
        }
        assert!(!same(b"", b"x"));
    }
}
