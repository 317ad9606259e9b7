//! The tokenizer keys of a GGUF file's metadata.

use super::vocab::{GgufVocab, bad};
use crate::{
    error::Result,
    file::{Metadata, Value},
};

const PREFIX: &str = "tokenizer.ggml.";

/// Reads the value of a key with `read`; `None` where the key is missing.
fn optional<'m, T>(
    meta: &'m Metadata,
    key: &str,
    what: &str,
    read: impl Fn(&'m Value) -> Option<T>,
) -> Result<Option<T>> {
    match meta.get(key) {
        None => Ok(None),
        Some(value) => match read(value) {
            Some(v) => Ok(Some(v)),
            None => Err(bad(format!("{key} is {value}, not {what}"))),
        },
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn texts(value: &Value) -> Option<Vec<String>> {
    Some(value.as_array()?.strings()?.map(str::to_owned).collect())
}

/// Fills a [`GgufVocab`].
///
/// # Errors
/// [`crate::Error::Tokenizer`] where the model or the tokens are missing, or a key has another type than it should.
pub(crate) fn read(meta: &Metadata) -> Result<GgufVocab> {
    let key = |name: &str| format!("{PREFIX}{name}");
    let string = |name: &str| optional(meta, &key(name), "a string", text);
    let list = |name: &str| optional(meta, &key(name), "a list of strings", texts);
    let flag = |name: &str| optional(meta, &key(name), "true or false", Value::as_bool);
    // Some converters write -1 (as i32, or as the u32 of the same bits) for "none".
    let id = |name: &str| -> Result<Option<u32>> {
        let read = optional(meta, &key(name), "a token id", Value::as_i64)?;
        match read {
            None | Some(-1) | Some(0xffff_ffff) => Ok(None),
            Some(i) => u32::try_from(i).map(Some).map_err(|_| bad(format!("{} = {i}", key(name)))),
        }
    };
    let token_types = optional(meta, &key("token_type"), "a list of integers", |v| {
        v.as_array()?.iter().map(|x| i32::try_from(x.as_i64()?).ok()).collect::<Option<Vec<i32>>>()
    })?;
    let scores = optional(meta, &key("scores"), "a list of numbers", |v| {
        v.as_array()?.iter().map(|x| x.as_f64().map(|x| x as f32)).collect::<Option<Vec<f32>>>()
    })?;
    let mut fim_ends = Vec::new();
    for name in ["fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id"] {
        fim_ends.extend(id(name)?);
    }
    let missing = |name: &str| bad(format!("the file has no tokenizer: {} is missing", key(name)));
    Ok(GgufVocab {
        name: meta.str("general.name").map(str::to_owned),
        model: string("model")?.ok_or_else(|| missing("model"))?,
        pre: string("pre")?,
        tokens: list("tokens")?.ok_or_else(|| missing("tokens"))?,
        token_types,
        scores,
        merges: list("merges")?,
        bos: id("bos_token_id")?,
        eos: id("eos_token_id")?,
        eot: id("eot_token_id")?,
        eom: id("eom_token_id")?,
        unk: id("unknown_token_id")?,
        pad: id("padding_token_id")?,
        fim_ends,
        add_bos: flag("add_bos_token")?,
        add_eos: flag("add_eos_token")?,
        add_space_prefix: flag("add_space_prefix")?,
        chat_template: optional(meta, "tokenizer.chat_template", "a string", text)?,
    })
}
