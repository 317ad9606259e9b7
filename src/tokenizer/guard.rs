//! What keeps faults of the `tokenizers` crate from the host: it panics at some files that it does not understand, and at some
//! texts with decoders that it does.

use super::vocab::bad;
use crate::error::Result;
use serde_json::Value;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The parts of `tokenizer.json` that are looked at before the crate reads it.
#[derive(serde::Deserialize)]
struct Parts {
    #[serde(default)]
    decoder: Value,
}

/// Refuses a text that is no JSON, and a decoder that strips the end of tokens: the crate's panics at tokens that are shorter, and
/// no language model has one.
///
/// # Errors
/// [`crate::Error::Tokenizer`].
pub(super) fn check(json: &[u8]) -> Result<()> {
    let parts: Parts = serde_json::from_slice(json).map_err(|e| bad(format!("tokenizer.json: {e}")))?;
    if strips_ends(&parts.decoder) {
        return Err(bad("tokenizer.json has a decoder that strips the end of tokens, which is not known here"));
    }
    Ok(())
}

fn strips_ends(decoder: &Value) -> bool {
    match decoder {
        Value::Array(list) => list.iter().any(strips_ends),
        Value::Object(map) => {
            let strips = map.get("type").and_then(Value::as_str) == Some("Strip");
            (strips && map.get("stop").and_then(Value::as_u64) != Some(0)) || map.values().any(strips_ends)
        }
        _ => false,
    }
}

/// Runs a piece of the crate; a panic in it becomes an error. What it worked on is not used again where it was being changed.
///
/// # Errors
/// [`crate::Error::Tokenizer`].
pub(super) fn guarded<T>(what: &str, work: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| bad(format!("{what} fails within the tokenizers crate")))
}
