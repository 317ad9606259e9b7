//! JSON as it lies beside models: what Python writes, which is more than the standard has.

use serde_json::Value;
use std::borrow::Cow;

/// Reads a text. Python writes numbers that are none as `NaN`, `Infinity` and `-Infinity`, which JSON does not have: they become
/// strings of these letters, so that a key that is not read does not matter, and one that is read as a number is an error with
/// its name.
///
/// # Errors
/// The parser's, about the text as it is.
pub(super) fn parse(text: &[u8]) -> serde_json::Result<Value> {
    // Editors on Windows put a mark before the text.
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    match (serde_json::from_slice(text), quoted(text)) {
        (Ok(value), _) => Ok(value),
        (Err(e), Cow::Borrowed(_)) => Err(e),
        (Err(e), Cow::Owned(text)) => serde_json::from_slice(&text).map_err(|_| e),
    }
}

/// The text with quotes around Python's numbers that are none, where they stand outside of strings.
fn quoted(text: &[u8]) -> Cow<'_, [u8]> {
    const WORDS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let (mut out, mut from, mut at, mut inside) = (vec![], 0, 0, false);
    while at < text.len() {
        match text[at] {
            b'\\' if inside => at += 1,
            b'"' => inside = !inside,
            b'-' | b'I' | b'N' if !inside => {
                if let Some(word) = WORDS.iter().find(|w| text[at..].starts_with(w)) {
                    out.extend_from_slice(&text[from..at]);
                    out.push(b'"');
                    out.extend_from_slice(word);
                    out.push(b'"');
                    at += word.len();
                    from = at;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if out.is_empty() {
        return Cow::Borrowed(text);
    }
    out.extend_from_slice(&text[from..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_that_are_none_are_read_as_words() {
        let text = br#"{"a": NaN, "b": [Infinity, -Infinity, -1], "c": "NaN, \" Infinity", "NaN": 1e3}"#;
        let want = json!({"a": "NaN", "b": ["Infinity", "-Infinity", -1], "c": "NaN, \" Infinity", "NaN": 1e3});
        assert_eq!(parse(text).unwrap(), want);
        assert_eq!(parse(b"\xef\xbb\xbf[1]").unwrap(), json!([1]));
    }

    #[test]
    fn other_errors_are_about_the_text_as_it_is() {
        let error = |text: &str| parse(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(error("{\"a\": nan}"), serde_json::from_str::<Value>("{\"a\": nan}").unwrap_err().to_string());
        assert!(error("{\"a\": NaN, }").contains("column 7"), "{}", error("{\"a\": NaN, }"));
        assert!(parse(b"\"Infinity").is_err() && parse(b"").is_err() && parse(b"NaNN").is_err());
    }
}
