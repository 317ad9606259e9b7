//! How the hidden states of a text become one vector, as the model's file says.
//!
//! Sources: `LLAMA_POOLING_TYPE_*` of llama.cpp's `llama.h` for `<architecture>.pooling_type` in GGUF; the module
//! `1_Pooling/config.json` of sentence-transformers for folders.

use crate::{
    error::{Error, Result},
    file::Checkpoint,
};
use serde_json::Value as Json;

/// How the hidden states of a text's tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Pooling {
    /// They do not: each token has its own vector.
    None,
    /// Their mean.
    Mean,
    /// That of the first token (`CLS`).
    First,
    /// That of the last token.
    Last,
}

/// What the file says; `None` where it says nothing, as files of language models do.
///
/// # Errors
/// [`Error::Unsupported`] for a kind that is not known here, such as that of rerankers.
pub fn pooling(ckpt: &Checkpoint, arch: &str) -> Result<Option<Pooling>> {
    let key = format!("{arch}.pooling_type");
    if let Some(value) = ckpt.meta().get(&key) {
        return match value.as_i64() {
            Some(-1) => Ok(None),
            Some(0) => Ok(Some(Pooling::None)),
            Some(1) => Ok(Some(Pooling::Mean)),
            Some(2) => Ok(Some(Pooling::First)),
            Some(3) => Ok(Some(Pooling::Last)),
            Some(4) => Err(unknown(&key, "4: a reranker's scores")),
            _ => Err(unknown(&key, &format!("{value:?}"))),
        };
    }
    let Some(config) = ckpt.pooling() else { return Ok(None) };
    let place = "1_Pooling/config.json";
    if let Some(mode) = config.get("pooling_mode").and_then(Json::as_str) {
        return named(mode).map(Some).ok_or_else(|| unknown(place, mode));
    }
    let on: Vec<&str> = config
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, v)| **v == Json::Bool(true))
        .filter_map(|(k, _)| k.strip_prefix("pooling_mode_"))
        .collect();
    match on[..] {
        [] => Ok(None),
        [mode] => named(mode).map(Some).ok_or_else(|| unknown(place, mode)),
        _ => Err(unknown(place, &on.join(" with "))),
    }
}

fn named(mode: &str) -> Option<Pooling> {
    match mode {
        "mean" | "mean_tokens" => Some(Pooling::Mean),
        "cls" | "cls_token" => Some(Pooling::First),
        "lasttoken" => Some(Pooling::Last),
        _ => None,
    }
}

fn unknown(place: &str, what: &str) -> Error {
    Error::Unsupported(format!(
        "{place} asks for a pooling that is not known here ({what}); known are mean, first, last"
    ))
}
