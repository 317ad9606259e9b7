//! A `tokenizer.json` as the vocabulary of a GGUF file.
//!
//! Two kinds can be said in GGUF: byte-level BPE with a known pre-tokenizer (`gpt2`), and SentencePiece's BPE in its
//! `tokenizer.json` form (`llama`: byte fallback, `▁` for blanks). What comes out is then held to the original: both must
//! give the same ids for a mixed corpus, with and without special tokens, or there is an error. A wrong tokenizer would
//! not be noticed otherwise.
//!
//! As in llama.cpp's converter, an NFC normalisation is dropped: text that is not in NFC is tokenised as it stands.

use super::{
    EncodeOptions, GgufVocab, Tokenizer, hf,
    pretok::patterns,
    probe, rank,
    vocab::{NORMAL, bad, byte_of, cannot},
};
use crate::{
    error::{Error, Result},
    file::{Array, Checkpoint, Metadata, Value},
};
use serde_json::Value as Json;
use std::collections::HashSet;

/// Numbers of `tokenizer.ggml.token_type`, beside [`NORMAL`].
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

impl GgufVocab {
    /// The tokenizer of a Hugging Face folder as a GGUF file has it, with its chat template and end-of-generation ids.
    /// `rows` are the rows of the model's embedding table: ids without a token become unused tokens.
    ///
    /// # Errors
    /// As [`GgufVocab::from_json`]; [`Error::Tokenizer`] without a `tokenizer.json`.
    pub fn from_checkpoint(ckpt: &Checkpoint, rows: usize) -> Result<Self> {
        let original = Tokenizer::from_checkpoint(ckpt)?;
        let mut v = Self::from_json(ckpt.tokenizer_json().unwrap_or_default(), ckpt.tokenizer_config(), rows)?;
        v.chat_template = original.chat_template_source().map(str::to_owned);
        let config = |key: &str| {
            let id = ckpt.config()?.get(key)?;
            let id = id.as_array().and_then(|list| list.first()).unwrap_or(id);
            u32::try_from(id.as_u64()?).ok().filter(|id| (*id as usize) < rows)
        };
        v.bos = v.bos.or_else(|| config("bos_token_id"));
        v.eos = v.eos.or_else(|| config("eos_token_id"));
        v.pad = v.pad.or_else(|| config("pad_token_id"));
        // Ends of a generation that neither EOS nor their texts tell have two keys more.
        let known = Tokenizer::from_vocab(v.clone())?;
        let mut left = original.eos_ids().iter().copied().filter(|id| !known.eos_ids().contains(id));
        (v.eot, v.eom) = (left.next(), left.next());
        match left.next() {
            Some(id) => Err(cannot(format!("token {id}, one more end of a generation"))),
            None => Ok(v),
        }
    }

    /// The vocabulary of a `tokenizer.json`; `config` is `tokenizer_config.json`, `rows` the size to pad to.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the files do not parse, contradict each other, or hold ids from `rows` on;
    /// [`Error::Unsupported`] for what GGUF cannot say, which names it.
    pub fn from_json(json: &[u8], config: Option<&Json>, rows: usize) -> Result<Self> {
        let original = Tokenizer::from_json(json, config)?;
        let root: Json = serde_json::from_slice(json).map_err(|e| bad(format!("tokenizer.json: {e}")))?;
        let model = &root["model"];
        if model["type"] != "BPE" {
            return Err(cannot(format!("its model {}", model["type"])));
        }
        let inert = |v: &Json| v.is_null() || *v == "" || v.as_f64() == Some(0.0);
        for key in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
            if !inert(&model[key]) {
                return Err(cannot(format!("{key} = {}", model[key])));
            }
        }
        let unk = hf::token_text(config, "unk_token").or(model["unk_token"].as_str());
        let id = |text: Option<&str>| text.and_then(|t| original.token_id(t));
        let mut v = GgufVocab { bos: original.bos(), eos: original.eos(), unk: id(unk), ..Default::default() };
        v.pad = id(hf::token_text(config, "pad_token"));
        tokens(&mut v, &root, rows)?;
        let merges = merges(model)?;
        let flag = |key: &str| model[key].as_bool().unwrap_or(false);
        if flag("byte_fallback") {
            sentence_piece(&mut v, &root, &merges)?;
        } else {
            byte_level(&mut v, &root, &merges, flag("ignore_merges"))?;
        }
        (v.add_bos, v.add_eos) = around(&original)?;
        hold(&v, &root, config)?;
        Ok(v)
    }

    /// Sets the `tokenizer.*` keys.
    pub fn write(&self, meta: &mut Metadata) {
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(v) = value {
                meta.set(format!("tokenizer.ggml.{key}"), v);
            }
        };
        let text = |t: &Option<String>| t.as_deref().map(Value::string);
        let texts = |t: &[String]| Value::Array(Array::from_strings(t));
        set("model", Some(Value::string(self.model.as_str())));
        set("pre", text(&self.pre));
        set("tokens", Some(texts(&self.tokens)));
        set("scores", self.scores.as_deref().map(|s| Value::Array(Array::from_f32(s))));
        set("token_type", self.token_types.as_deref().map(|t| Value::Array(Array::from_i32(t))));
        set("merges", self.merges.as_deref().map(texts));
        let ids = [
            ("bos_token_id", self.bos),
            ("eos_token_id", self.eos),
            ("eot_token_id", self.eot),
            ("eom_token_id", self.eom),
            ("unknown_token_id", self.unk),
            ("padding_token_id", self.pad),
        ];
        ids.into_iter().for_each(|(key, id)| set(key, id.map(Value::U32)));
        set("add_bos_token", self.add_bos.map(Value::Bool));
        set("add_eos_token", self.add_eos.map(Value::Bool));
        set("add_space_prefix", self.add_space_prefix.map(Value::Bool));
        if let Some(template) = &self.chat_template {
            meta.set("tokenizer.chat_template", Value::string(template.as_str()));
        }
    }
}

/// Texts and kinds by id.
fn tokens(v: &mut GgufVocab, root: &Json, rows: usize) -> Result<()> {
    let mut texts: Vec<Option<String>> = vec![None; rows];
    let mut types = vec![NORMAL; rows];
    let mut put = |id: Option<u64>, text: &str| -> Result<usize> {
        let id = id.and_then(|i| usize::try_from(i).ok()).filter(|i| *i < rows).ok_or_else(|| {
            bad(format!("token {text:?} has the id {id:?}, but the model's embedding table has {rows} rows"))
        })?;
        match &texts[id] {
            Some(other) if other != text => Err(bad(format!("token {id} is both {other:?} and {text:?}"))),
            _ => {
                texts[id] = Some(text.to_owned());
                Ok(id)
            }
        }
    };
    let vocab = root["model"]["vocab"].as_object().ok_or_else(|| bad("tokenizer.json has no model.vocab"))?;
    let fallback = root["model"]["byte_fallback"] == true;
    for (text, id) in vocab {
        let id = put(id.as_u64(), text)?;
        if fallback && byte_of(text).is_some() {
            types[id] = BYTE;
        }
    }
    for added in root["added_tokens"].as_array().into_iter().flatten() {
        let text = added["content"].as_str().unwrap_or_default();
        let id = put(added["id"].as_u64(), text)?;
        if let Some(what) = ["lstrip", "rstrip", "single_word"].iter().find(|k| added[**k] == true) {
            return Err(cannot(format!("the token {text:?} with {what}")));
        }
        types[id] = if added["special"] == true || looks_special(text) { CONTROL } else { USER_DEFINED };
    }
    // Byte-level vocabularies need none; where they name one (GPT-2 its end of text), it is a control token.
    if let Some(unk) = v.unk.filter(|_| fallback) {
        types[unk as usize] = UNKNOWN;
    }
    let named = texts.into_iter().zip(&mut types).enumerate().map(|(id, (text, kind))| {
        text.unwrap_or_else(|| {
            *kind = UNUSED;
            format!("[PAD{id}]")
        })
    });
    v.tokens = named.collect();
    v.token_types = Some(types);
    Ok(())
}

/// Added tokens that steer a model whatever their `special` flag says (as llama.cpp's converter sees them).
fn looks_special(text: &str) -> bool {
    let between = |open: &str, close: &str| text.starts_with(open) && text.ends_with(close);
    between("<|", "|>") || between("<｜", "｜>") || between("<unused", ">") || matches!(text, "<pad>" | "<mask>")
}

/// The merges: "left right", or a list of two.
fn merges(model: &Json) -> Result<Vec<(&str, &str)>> {
    let list = model["merges"].as_array().ok_or_else(|| bad("tokenizer.json has no model.merges"))?;
    fn pair(m: &Json) -> Option<(&str, &str)> {
        match m.as_str() {
            Some(text) => text.split_once(' '),
            None => Some((m.get(0)?.as_str()?, m.get(1)?.as_str()?)),
        }
    }
    let pairs = list.iter().map(|m| pair(m).ok_or_else(|| bad(format!("tokenizer.json: the merge {m}"))));
    pairs.collect()
}

/// The parts of a `Sequence`, or the one thing itself; nothing for null.
fn stages<'j>(v: &'j Json, list: &str) -> Vec<&'j Json> {
    match v.get(list).and_then(Json::as_array) {
        Some(parts) => parts.iter().flat_map(|p| stages(p, list)).collect(),
        None if v.is_null() => vec![],
        None => vec![v],
    }
}

fn byte_level(v: &mut GgufVocab, root: &Json, merges: &[(&str, &str)], ignore_merges: bool) -> Result<()> {
    if let Some(n) = stages(&root["normalizer"], "normalizers").into_iter().find(|n| n["type"] != "NFC") {
        return Err(cannot(format!("the normalizer {n}")));
    }
    let known = patterns::by_json(&root["pre_tokenizer"], ignore_merges).map_err(|found| {
        let known: Vec<&str> = patterns::names().collect();
        Error::Unsupported(format!(
            "the pre-tokenizer of tokenizer.json is none that has a name in GGUF (known: {}). Found: {found}. The model \
             can be run from its folder",
            known.join(", ")
        ))
    })?;
    if let Some((l, r)) = merges.iter().find(|(l, r)| l.contains(' ') || r.contains(' ')) {
        return Err(cannot(format!("the merge of {l:?} and {r:?} with a blank in it")));
    }
    v.model = "gpt2".into();
    v.pre = Some(known.name.into());
    v.merges = Some(merges.iter().map(|(l, r)| format!("{l} {r}")).collect());
    Ok(())
}

fn sentence_piece(v: &mut GgufVocab, root: &Json, merges: &[(&str, &str)]) -> Result<()> {
    let normalizers = stages(&root["normalizer"], "normalizers");
    let pre = stages(&root["pre_tokenizer"], "pretokenizers");
    let prepend = |n: &Json| n["type"] == "Prepend" && n["prepend"] == "▁";
    let replace = |n: &Json| n["type"] == "Replace" && n["pattern"]["String"] == " " && n["content"] == "▁";
    // Metaspace that prepends does so only where the text does not begin with a blank: no GGUF reader does that.
    let metaspace = |p: &Json| {
        p["type"] == "Metaspace" && p["replacement"] == "▁" && p["prepend_scheme"] == "never" && p["split"] == false
    };
    let prefix = match (normalizers.as_slice(), pre.as_slice()) {
        ([p, r], []) if prepend(p) && replace(r) => true,
        ([r], []) if replace(r) => false,
        ([], [m]) if metaspace(m) => false,
        _ => {
            let found = format!("the normalizer {} and pre-tokenizer {}", root["normalizer"], root["pre_tokenizer"]);
            return Err(cannot(found));
        }
    };
    let bytes: HashSet<u8> = v.tokens.iter().filter_map(|t| byte_of(t)).collect();
    if bytes.len() < 256 || root["model"]["ignore_merges"] == true {
        return Err(cannot(format!("byte fallback with {} bytes, or ignore_merges beside it", bytes.len())));
    }
    v.model = "llama".into();
    v.pre = Some("default".into());
    v.add_space_prefix = Some(prefix);
    v.scores = Some(rank::scores(&v.tokens, v.token_types.as_deref().unwrap_or_default(), merges)?);
    Ok(())
}

/// Whether BOS and EOS go around a text.
fn around(original: &Tokenizer) -> Result<(Option<bool>, Option<bool>)> {
    let encode = |add_bos| original.encode("a", EncodeOptions { add_bos, parse_special: false });
    let (with, without) = (encode(true)?, encode(false)?);
    match with.strip_suffix(without.as_slice()) {
        Some([]) => Ok((Some(false), Some(original.adds_eos()))),
        Some([id]) if original.bos() == Some(*id) => Ok((Some(true), Some(original.adds_eos()))),
        _ => Err(cannot(format!("a post-processor that makes {with:?} of {without:?}"))),
    }
}

/// Compares the ids of the vocabulary with those of the original, its NFC normalisation aside.
pub(super) fn hold(v: &GgufVocab, root: &Json, config: Option<&Json>) -> Result<()> {
    let ours = Tokenizer::from_vocab(v.clone())?;
    let mut root = root.clone();
    if v.model == "gpt2" {
        root["normalizer"] = Json::Null;
    }
    let json = serde_json::to_vec(&root).map_err(|e| bad(format!("tokenizer.json: {e}")))?;
    let original = Tokenizer::from_json(&json, config)?;
    let same = |text: &str, add_bos: bool, parse_special: bool| -> Result<()> {
        let options = EncodeOptions { add_bos, parse_special };
        let (got, want) = (ours.encode(text, options)?, original.encode(text, options)?);
        if got == want {
            return Ok(());
        }
        let at = got.iter().zip(&want).take_while(|(a, b)| a == b).count();
        Err(cannot(format!(
            "rules that a GGUF tokenizer does not follow: of {text:?} it would make {:?}... where tokenizer.json makes \
             {:?}... (from token {at} on)",
            &got[at..got.len().min(at + 6)],
            &want[at..want.len().min(at + 6)]
        )))
    };
    for text in probe::TEXTS {
        same(text, false, false)?;
        same(text, true, true)?;
    }
    let types = v.token_types.as_deref().unwrap_or_default();
    for (token, kind) in v.tokens.iter().zip(types).filter(|(_, k)| matches!(**k, CONTROL | USER_DEFINED)).take(64) {
        let text = format!("one{token}two {token} three{token}{token}\n{token}");
        same(&text, true, true)?;
        if *kind == USER_DEFINED {
            same(&text, false, false)?;
        }
    }
    if v.model == "llama" {
        // No patterns that read characters otherwise: any text will do, such as tokens in another order.
        let normal = v.tokens.iter().zip(types).filter(|(_, k)| **k == NORMAL).map(|(t, _)| t.replace('▁', " "));
        let normal: Vec<String> = normal.collect();
        let step = (normal.len() / 4096).max(1);
        for start in (0..normal.len()).step_by(step) {
            let pick = |i: usize| normal[(start + i * 7919) % normal.len()].as_str();
            same(&[pick(0), pick(1), pick(2), pick(3)].concat(), false, false)?;
        }
    }
    Ok(())
}
