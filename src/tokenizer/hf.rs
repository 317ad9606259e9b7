//! `tokenizer.json` of Hugging Face, through the `tokenizers` crate.

use super::{
    guard,
    special::touches,
    vocab::{bad, end_ids},
};
use crate::error::Result;
use serde_json::Value;
use std::{collections::HashSet, ops::Range, sync::OnceLock};

/// A tokenizer of the `tokenizers` crate.
///
/// The crate finds added tokens in a text before anything else, special ones included, unless it is told to encode
/// special tokens as ordinary text: a setting of the whole tokenizer, hence two of them, the second made when first
/// needed.
pub(crate) struct Hf {
    /// Takes special tokens in a text for ordinary text.
    plain: tokenizers::Tokenizer,
    /// Finds special tokens in a text.
    parsing: OnceLock<tokenizers::Tokenizer>,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) add_bos: bool,
    add_eos: Option<u32>,
    /// A token of ordinary text, which a stream takes for what came before: decoders trim the blank before a text.
    pub(crate) neutral: Option<u32>,
    pub(crate) ends: Vec<u32>,
    special: HashSet<u32>,
}

/// The text of a special token in `tokenizer_config.json`: a string, or an object with `content`.
pub(crate) fn token_text<'a>(config: Option<&'a Value>, key: &str) -> Option<&'a str> {
    let value = config?.get(key)?;
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// The chat template of `tokenizer_config.json`: a string, or a list of named ones, of which `default` counts.
pub(crate) fn chat_template(config: &Value) -> Option<&str> {
    let value = config.get("chat_template")?;
    value.as_str().or_else(|| {
        let named = value.as_array()?.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"))?;
        named.get("template")?.as_str()
    })
}

impl Hf {
    /// Reads `tokenizer.json`; `config` is `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`crate::Error::Tokenizer`] with the crate's reason, or for a special token that the vocabulary lacks.
    pub(crate) fn new(json: &[u8], config: Option<&Value>) -> Result<Self> {
        guard::check(json)?;
        let read = guard::guarded("reading tokenizer.json", || tokenizers::Tokenizer::from_bytes(json))?;
        let mut plain = read.map_err(|e| bad(format!("tokenizer.json: {e}")))?;
        // Settings for training batches, which would cut or pad a prompt in silence.
        plain.with_truncation(None).map_err(|e| bad(format!("tokenizer.json: {e}")))?;
        plain.with_padding(None);
        plain.set_encode_special_tokens(true);
        let id = |key: &str| match token_text(config, key) {
            None => Ok(None),
            Some(text) => match plain.token_to_id(text) {
                Some(id) => Ok(Some(id)),
                None => Err(bad(format!("tokenizer_config.json names {text:?} as {key}, which the vocabulary lacks"))),
            },
        };
        let (bos, eos) = (id("bos_token")?, id("eos_token")?);
        let flag = |key: &str| config.and_then(|c| c.get(key)).and_then(Value::as_bool);
        let ends = end_ids(eos.into_iter().collect(), |t| plain.token_to_id(t));
        let add_eos = flag("add_eos_token").unwrap_or(false).then_some(eos).flatten();
        let neutral = ["a", "▁a", "Ġa"].into_iter().find_map(|t| plain.token_to_id(t));
        let added = plain.get_added_tokens_decoder();
        let special = added.into_iter().filter(|(_, t)| t.special).map(|(id, _)| id).collect();
        let mut hf = Hf { plain, parsing: OnceLock::new(), bos, eos, add_bos: false, add_eos, neutral, ends, special };
        // The post-processor says whether BOS goes first; where it does not, the configuration may.
        let template_bos = bos.is_some() && hf.run("", true, false)?.first() == bos.as_ref();
        hf.add_bos = template_bos || flag("add_bos_token").unwrap_or(false) && bos.is_some();
        Ok(hf)
    }

    fn run(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        let tokenizer = if parse_special {
            self.parsing.get_or_init(|| {
                let mut t = self.plain.clone();
                t.set_encode_special_tokens(false);
                t
            })
        } else {
            &self.plain
        };
        let encoding = guard::guarded("encoding a text", || tokenizer.encode_fast(text, add_special))?;
        Ok(encoding.map_err(|e| bad(format!("cannot encode: {e}")))?.get_ids().to_vec())
    }

    /// Ids of a text; special tokens that touch one of the byte ranges `foreign` (ascending) are ordinary text.
    pub(crate) fn encode(
        &self,
        text: &str,
        foreign: &[Range<usize>],
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>> {
        let marks = if parse_special { self.marks(text) } else { vec![] };
        let mut ids = if marks.iter().any(|(range, _)| touches(foreign, range.clone())) {
            self.run_around(text, &marks, foreign)?
        } else {
            self.run(text, add_special, parse_special)?
        };
        if add_special {
            if let Some(bos) = self.bos.filter(|bos| self.add_bos && ids.first() != Some(bos)) {
                ids.insert(0, bos);
            }
            if let Some(eos) = self.add_eos.filter(|eos| ids.last() != Some(eos)) {
                ids.push(eos);
            }
        }
        Ok(ids)
    }

    /// The special tokens in a text, from the left, the longest where several begin at a place.
    fn marks(&self, text: &str) -> Vec<(Range<usize>, u32)> {
        let added = self.plain.get_added_tokens_decoder();
        let mut special: Vec<(String, u32)> = added
            .into_iter()
            .filter(|(_, t)| t.special && !t.content.is_empty())
            .map(|(id, t)| (t.content, id))
            .collect();
        special.sort_by_key(|(t, _)| std::cmp::Reverse(t.len()));
        let mut found = vec![];
        let mut at = 0;
        while at < text.len() {
            let mark = special.iter().find(|(t, _)| text[at..].starts_with(t.as_str()));
            if let Some((t, id)) = mark {
                found.push((at..at + t.len(), *id));
                at += t.len();
            } else {
                at += text[at..].chars().next().map_or(1, char::len_utf8);
            }
        }
        found
    }

    /// Ids of a text some of whose special tokens are foreign: it is cut at the others, and what lies between is ordinary.
    fn run_around(&self, text: &str, marks: &[(Range<usize>, u32)], foreign: &[Range<usize>]) -> Result<Vec<u32>> {
        let mut ids = vec![];
        let mut from = 0;
        for (range, id) in marks.iter().filter(|(range, _)| !touches(foreign, range.clone())) {
            ids.extend(self.run(&text[from..range.start], false, false)?);
            ids.push(*id);
            from = range.end;
        }
        ids.extend(self.run(&text[from..], false, false)?);
        Ok(ids)
    }

    pub(crate) fn decode(&self, ids: &[u32], special: bool) -> String {
        // The crate fails only where a decoder does; ids without a token are skipped by it.
        let text = guard::guarded("decoding", || self.plain.decode(ids, !special));
        let text = text.and_then(|t| t.map_err(|e| bad(format!("tokenizer.json: cannot decode: {e}"))));
        text.unwrap_or_else(|e| {
            tracing::warn!("{e}");
            String::new()
        })
    }

    pub(crate) fn vocab_size(&self) -> usize {
        // Ids may have holes: the size is what an embedding table needs.
        let largest = self.plain.get_vocab(true).into_values().max();
        largest.map_or(0, |id| id as usize + 1)
    }

    pub(crate) fn token_text(&self, id: u32) -> Option<String> {
        self.plain.id_to_token(id)
    }

    pub(crate) fn token_id(&self, text: &str) -> Option<u32> {
        self.plain.token_to_id(text)
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }
}
