//! GGUF's `gemma4` vocabularies: BPE by merges on characters, blanks spelled `▁`, bytes for what has no token, runs of line
//! ends by themselves. It is what Gemma's `tokenizer.json` says, so the `tokenizers` crate does it: the vocabulary is
//! spelled as such a file. Source: llama.cpp's `llama-vocab.cpp` (`LLAMA_VOCAB_PRE_TYPE_GEMMA4`).

use super::{
    Tokenizer,
    vocab::{GgufVocab, Kind, bad, kinds},
};
use crate::error::Result;
use serde_json::{Map, Value, json};

/// The tokenizer of such a vocabulary.
///
/// # Errors
/// [`crate::Error::Tokenizer`] where merges or special tokens are missing or not among the tokens.
pub(crate) fn tokenizer(v: &GgufVocab, template: Option<String>) -> Result<Tokenizer> {
    let text = |id: Option<u32>, key: &str| match id {
        None => Ok(None),
        Some(id) => match v.tokens.get(id as usize) {
            Some(text) => Ok(Some(text.as_str())),
            None => Err(bad(format!("{key} is {id}, but there are {} tokens", v.tokens.len()))),
        },
    };
    let json = spelled(v, text(v.unk, "unknown_token_id")?)?;
    let bytes = serde_json::to_vec(&json).map_err(|e| bad(format!("the vocabulary: {e}")))?;
    let mut config = json!({ "add_bos_token": v.add_bos.unwrap_or(true), "add_eos_token": v.add_eos.unwrap_or(false) });
    let named = [
        ("bos_token", text(v.bos, "bos_token_id")?),
        ("eos_token", text(v.eos, "eos_token_id")?),
        ("chat_template", template.as_deref()),
    ];
    for (key, text) in named {
        if let Some(text) = text {
            config[key] = text.into();
        }
    }
    let ends: Vec<u32> = v.eot.into_iter().chain(v.eom).collect();
    Ok(Tokenizer::from_json(&bytes, Some(&config))?.with_eos_ids(&ends))
}

/// The vocabulary as `tokenizer.json`.
fn spelled(v: &GgufVocab, unk: Option<&str>) -> Result<Value> {
    let merges = v.merges.as_deref();
    let merges = merges.ok_or_else(|| bad("no tokenizer.ggml.merges, which a `gemma4` tokenizer needs"))?;
    let pair = |m: &String| match m.split_once(' ') {
        Some((left, right)) => Ok(json!([left, right])),
        None => Err(bad(format!("the merge {m:?} has no blank in it"))),
    };
    let merges = merges.iter().map(pair).collect::<Result<Vec<Value>>>()?;
    let (mut vocab, mut added) = (Map::new(), vec![]);
    let kinds = kinds(v.tokens.len(), v.token_types.clone())?;
    for (id, (text, kind)) in v.tokens.iter().zip(kinds).enumerate() {
        vocab.insert(text.clone(), id.into());
        if matches!(kind, Kind::Control | Kind::UserDefined | Kind::Unknown) {
            added.push(json!({
                "id": id, "content": text, "special": kind != Kind::UserDefined, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false,
            }));
        }
    }
    Ok(json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        "pre_tokenizer": { "type": "Split", "pattern": { "Regex": "\n+" }, "behavior": "Isolated", "invert": false },
        "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
        ] },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    }))
}
