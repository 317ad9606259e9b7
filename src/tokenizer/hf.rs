//! `tokenizer.json` of Hugging Face, through the `tokenizers` crate.

use super::{
    bpe, guard,
    special::touches,
    vocab::{bad, byte_of, end_ids},
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
    /// Whether the file wants EOS behind a text that is complete: a prompt that is to be continued never is.
    pub(crate) add_eos: bool,
    /// What the post-processor puts around a text, without EOS behind it; `None` where that depends on the text.
    around: Option<(Vec<u32>, Vec<u32>)>,
    spelling: Option<Spelling>,
    /// A token of ordinary text, which a stream takes for what came before: decoders trim the blank before a text.
    pub(crate) neutral: Option<u32>,
    pub(crate) ends: Vec<u32>,
    special: HashSet<u32>,
    /// Special tokens and those that are always one token.
    added: HashSet<u32>,
}

/// How tokens spell bytes, where a token's bytes do not depend on its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// A character for each byte, as in GPT-2.
    ByteLevel,
    /// `▁` for a blank; with byte fallback `<0x0A>` for a byte.
    Blanks { bytes: bool },
}

/// What the `decoder` of a `tokenizer.json` says of the spelling.
fn spelling(decoder: &Value) -> Option<Spelling> {
    let stages = decoder["decoders"].as_array().map_or(std::slice::from_ref(decoder), Vec::as_slice);
    let mut found = None;
    let mut fallback = false;
    for stage in stages {
        match stage["type"].as_str()? {
            "ByteLevel" => found = Some(Spelling::ByteLevel),
            "Metaspace" if stage["replacement"] == "▁" => found = Some(Spelling::Blanks { bytes: false }),
            "Replace" if stage["pattern"]["String"] == "▁" && stage["content"] == " " => {
                found = Some(Spelling::Blanks { bytes: false });
            }
            "ByteFallback" => fallback = true,
            // Joins what is there; and the blank before a whole text, which a stream keeps.
            "Fuse" | "Strip" => {}
            _ => return None,
        }
    }
    match found? {
        Spelling::ByteLevel if fallback => None,
        Spelling::Blanks { .. } => Some(Spelling::Blanks { bytes: fallback }),
        level => Some(level),
    }
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
        let neutral = ["a", "▁a", "Ġa"].into_iter().find_map(|t| plain.token_to_id(t));
        let added = plain.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, t)| t.special).map(|(id, _)| *id).collect();
        let added = added.into_keys().collect();
        let root: Value = serde_json::from_slice(json).map_err(|e| bad(format!("tokenizer.json: {e}")))?;
        let mut hf = Hf {
            plain,
            parsing: OnceLock::new(),
            bos,
            eos,
            add_bos: false,
            add_eos: flag("add_eos_token").unwrap_or(false) && eos.is_some(),
            around: None,
            spelling: spelling(&root["decoder"]),
            neutral,
            ends,
            special,
            added,
        };
        hf.find_around()?;
        // The post-processor says whether BOS goes first; where it does not, the configuration may.
        let template_bos =
            bos.is_some() && hf.around.as_ref().is_some_and(|(before, _)| before.first() == bos.as_ref());
        hf.add_bos = template_bos || flag("add_bos_token").unwrap_or(false) && bos.is_some();
        Ok(hf)
    }

    /// Finds what the post-processor puts around a text.
    fn find_around(&mut self) -> Result<()> {
        let (with, without) = (self.run("a", true, false)?, self.run("a", false, false)?);
        let most = with.len().saturating_sub(without.len());
        let Some(at) = (0..=most).find(|at| with[*at..].starts_with(&without)) else { return Ok(()) };
        let (before, mut after) = (with[..at].to_vec(), with[at + without.len()..].to_vec());
        while after.last().is_some_and(|id| self.eos == Some(*id) || self.ends.contains(id)) {
            after.pop();
            self.add_eos |= self.eos.is_some();
        }
        self.around = Some((before, after));
        Ok(())
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

    /// Ids of a text, with `add_special` what belongs around a prompt; special tokens that touch one of the byte ranges `foreign` (ascending) are ordinary text.
    pub(crate) fn encode(
        &self,
        text: &str,
        foreign: &[Range<usize>],
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>> {
        let marks = if parse_special { self.marks(text) } else { vec![] };
        let around = if add_special { self.around.as_ref() } else { None };
        let mut ids = if marks.iter().any(|(range, _)| touches(foreign, range.clone())) {
            self.run_around(text, &marks, foreign)?
        } else {
            self.run(text, add_special && around.is_none(), parse_special)?
        };
        if let Some((before, after)) = around {
            ids = [&before[..], &ids, after].concat();
        }
        if add_special && let Some(bos) = self.bos.filter(|bos| self.add_bos && ids.first() != Some(bos)) {
            ids.insert(0, bos);
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

    /// Whether [`Hf::piece`] knows the bytes of tokens.
    pub(crate) fn spells_bytes(&self) -> bool {
        self.spelling.is_some()
    }

    /// Appends the bytes of a token; of an added one its text.
    pub(crate) fn piece(&self, id: u32, out: &mut Vec<u8>) {
        let Some(text) = self.plain.id_to_token(id) else { return };
        match self.spelling {
            Some(Spelling::ByteLevel) if !self.added.contains(&id) => bpe::unspelled(&text, out),
            Some(Spelling::Blanks { bytes: true }) if byte_of(&text).is_some() => out.extend(byte_of(&text)),
            Some(Spelling::Blanks { .. }) => out.extend_from_slice(text.replace('▁', " ").as_bytes()),
            Some(Spelling::ByteLevel) | None => out.extend_from_slice(text.as_bytes()),
        }
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
