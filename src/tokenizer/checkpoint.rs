//! The tokenizer that belongs to a checkpoint, whichever container it came in.

use super::Tokenizer;
use crate::{
    error::{Error, Result},
    file::{Checkpoint, Format},
};
use serde_json::Value;

impl Tokenizer {
    /// Reads the tokenizer from the metadata of a GGUF file, or from the `tokenizer.json`, chat template and end-of-generation
    /// ids of a Hugging Face folder.
    ///
    /// # Errors
    /// As [`Tokenizer::from_gguf`] and [`Tokenizer::from_json`]; [`Error::Tokenizer`] where a folder has no
    /// `tokenizer.json`.
    pub fn from_checkpoint(ckpt: &Checkpoint) -> Result<Self> {
        if ckpt.format() == Format::Gguf {
            return Self::from_gguf(ckpt.meta());
        }
        let json = ckpt.tokenizer_json().ok_or_else(|| {
            Error::Tokenizer(
                "there is no tokenizer.json beside the model; without one only token ids can be fed".into(),
            )
        })?;
        let mut tokenizer = Self::from_json(json, ckpt.tokenizer_config())?;
        if let Some(template) = ckpt.chat_template() {
            tokenizer = tokenizer.with_chat_template(template);
        }
        let configs = [ckpt.generation_config(), ckpt.config()];
        let ends: Vec<u32> = configs.into_iter().flatten().flat_map(|c| ids(&c["eos_token_id"])).collect();
        Ok(tokenizer.with_eos_ids(&ends))
    }
}

/// The ids of a JSON value that is one id or a list of ids.
fn ids(v: &Value) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
    match v.as_array() {
        Some(list) => list.iter().filter_map(one).collect(),
        None => one(v).into_iter().collect(),
    }
}
