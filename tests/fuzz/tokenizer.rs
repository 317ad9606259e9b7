//! Tokenizers: the metadata of a GGUF, and `tokenizer.json`.

use super::values;
use crate::support::rng::Rng;
use moeray::{
    file::{self, Array, Metadata, Value},
    tokenizer::{EncodeOptions, Tokenizer},
};
use serde_json::{Map, Value as Json, json};
use std::{path::Path, sync::OnceLock};

/// Texts in many scripts, with marks of chat formats, bytes that are rare, and numbers.
const TEXTS: [&str; 6] = [
    "Hello, world! 12345 it's",
    "नमस्ते दुनिया  \n\n\t ШколаЙ ǅ 世界",
    "<|im_start|>user\n</s><0x0A>",
    "\u{0}\u{fffd}\u{feff} \u{301}",
    "",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa      ",
];

fn used(t: &Tokenizer) {
    for text in TEXTS {
        for parse_special in [false, true] {
            let options = EncodeOptions { add_bos: true, parse_special };
            if let Ok(ids) = t.encode(text, options) {
                let _ = (t.decode_with(&ids, true), t.decode_with(&ids, false));
            }
        }
    }
    let ids = [0, 1, 258, 4095, u32::MAX];
    let _ = (t.decode_with(&ids, true), ids.map(|id| t.token_text(id)));
}

/// The metadata of small vocabularies.
fn vocabularies() -> &'static [Metadata] {
    static ALL: OnceLock<Vec<Metadata>> = OnceLock::new();
    ALL.get_or_init(|| {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer");
        ["bpe.gguf", "spm.gguf"].iter().map(|n| file::open(&data.join(n)).unwrap().meta().clone()).collect()
    })
}

/// Other values under a GGUF's keys, or within its lists.
pub fn gguf(rng: &mut Rng) -> usize {
    let base = &vocabularies()[rng.below(vocabularies().len())];
    let mut meta = base.clone();
    let mut size = 0;
    for _ in 0..1 + rng.below(2) {
        let (key, value) = base.iter().nth(rng.below(base.len())).unwrap();
        let value = match value.as_array() {
            Some(list) if rng.below(3) > 0 => within(rng, list),
            _ => values::value(rng),
        };
        meta.set(key, value);
    }
    meta.iter().for_each(|(k, v)| size += k.len() + v.as_array().map_or(8, |a| 16 * a.len()));
    if let Ok(t) = Tokenizer::from_gguf(&meta) {
        used(&t);
    }
    size
}

/// A list with one entry changed, doubled, or without its end.
fn within(rng: &mut Rng, list: &Array) -> Value {
    let i = rng.below(list.len().max(1));
    if let Some(texts) = list.strings() {
        let mut texts: Vec<String> = texts.map(String::from).collect();
        match (rng.below(4), texts.len()) {
            (_, 0) => {}
            (0, _) => texts.truncate(i),
            (1, _) => texts[i] = texts[rng.below(texts.len())].clone(),
            (2, _) => texts.push(texts[i].clone()),
            _ => texts[i] = values::spliced(rng, &texts[i]),
        }
        return Value::Array(Array::from_strings(texts));
    }
    let mut numbers: Vec<f32> = list.iter().map(|v| v.as_f64().unwrap_or(0.0) as f32).collect();
    if let Some(n) = numbers.get_mut(i) {
        *n = if rng.below(2) == 0 { values::float(rng) as f32 } else { values::number(rng) as f32 };
    }
    let whole = list.get(0).is_some_and(|v| v.as_i64().is_some());
    let counts: Vec<i32> = numbers.iter().map(|n| *n as i32).collect();
    Value::Array(if whole { Array::from_i32(&counts) } else { Array::from_f32(&numbers) })
}

/// Small files of the kinds that models have: byte-level with a pattern, and pieces with bytes to fall back on.
fn files() -> &'static [Map<String, Json>] {
    static ALL: OnceLock<Vec<Map<String, Json>>> = OnceLock::new();
    ALL.get_or_init(|| {
        let added = |id: u32, text: &str| {
            json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                   "special": true})
        };
        let mut plain: Map<String, Json> = ('!'..='~').enumerate().map(|(i, c)| (c.to_string(), json!(i))).collect();
        for text in ["Ġ", "he", "ll", "hell", "hello"] {
            plain.insert(text.into(), json!(plain.len()));
        }
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let split = json!({"type": "Split", "pattern": {"Regex": "\\p{L}+|\\p{N}{1,3}|\\s+(?!\\S)|."}, "behavior": "Isolated", "invert": false});
        let bytes = json!({
            "version": "1.0", "added_tokens": [added(200, "<|im_start|>"), added(201, "</s>")], "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}, "decoder": level,
            "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {"</s>": {"id": "</s>", "ids": [201], "tokens": ["</s>"]}}},
            "model": {"type": "BPE", "vocab": plain, "merges": [["h", "e"], ["l", "l"], ["he", "ll"], ["hell", "o"]]},
        });
        let mut pieces: Map<String, Json> = ["<unk>", "<s>", "</s>"].iter().enumerate().map(|(i, t)| (t.to_string(), json!(i))).collect();
        (0..256).for_each(|b| drop(pieces.insert(format!("<0x{b:02X}>"), json!(b + 3))));
        for text in ["▁", "a", "▁a", "aa"] {
            pieces.insert(text.into(), json!(pieces.len()));
        }
        let fallback = json!({
            "version": "1.0", "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": pieces,
                "merges": ["▁ a", "a a"]},
        });
        [bytes, fallback].into_iter().map(|v| v.as_object().unwrap().clone()).collect()
    })
}

/// Other values in `tokenizer.json` and in its config.
pub fn json(rng: &mut Rng) -> usize {
    let base = &files()[rng.below(2)];
    let whole = values::changed(rng, base);
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true, "add_eos_token": false});
    let config = if rng.below(3) == 0 { values::changed(rng, config.as_object().unwrap()) } else { config };
    let mut bytes = whole.to_string().into_bytes();
    if rng.below(6) == 0 {
        let head = bytes.len();
        values::damaged(rng, &mut bytes, head);
    }
    if let Ok(t) = Tokenizer::from_json(&bytes, Some(&config)) {
        used(&t);
    }
    bytes.len()
}
