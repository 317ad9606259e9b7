//! Tokenizers and chat templates: ids equal to llama.cpp's, text round trips, hostile vocabularies, long texts.
//! `tests/data/tokenizer/make.py` says where the data comes from.
#![allow(clippy::unwrap_used)]

mod answers;
mod families;
mod gemma4;
mod hostile;
mod scripts;
mod snippets;
mod templates;
mod tool_messages;
mod tools;

use moeray::{
    file::{self, Array, Bytes, Metadata, Value},
    tokenizer::{EncodeOptions, GgufVocab, Tokenizer},
};
use serde::Deserialize;
use std::sync::OnceLock;

#[derive(Deserialize)]
struct Expected {
    texts: Vec<String>,
    random: Vec<String>,
    bpe: Vec<Group>,
    ends: Vec<Ends>,
    special: Vec<Vec<u32>>,
    spm: Ids,
    spm_special: Vec<Vec<u32>>,
    spm_no_prefix: Vec<Vec<u32>>,
    phi3: Vec<Vec<u32>>,
    bard: Ids,
}

/// Pre-tokenizers that give the same ids for all texts.
#[derive(Deserialize)]
struct Group {
    names: Vec<String>,
    #[serde(flatten)]
    expected: Ids,
}

/// End-of-generation ids of a vocabulary whose first tokens have these texts.
#[derive(Deserialize)]
struct Ends {
    texts: Vec<String>,
    ids: Vec<u32>,
}

/// Ids of `texts`, digests of the ids of `random`.
#[derive(Deserialize)]
struct Ids {
    ids: Vec<Vec<u32>>,
    digests: Vec<String>,
}

fn expected() -> &'static Expected {
    static DATA: OnceLock<Expected> = OnceLock::new();
    DATA.get_or_init(|| serde_json::from_str(include_str!("../data/tokenizer/expected.json")).unwrap())
}

fn metadata(bytes: &'static [u8]) -> Metadata {
    file::open_bytes(Bytes::from_static(bytes)).unwrap().meta().clone()
}

fn bpe_meta() -> Metadata {
    metadata(include_bytes!("../data/tokenizer/bpe.gguf"))
}

fn spm_meta() -> Metadata {
    metadata(include_bytes!("../data/tokenizer/spm.gguf"))
}

const BARD: &[u8] = include_bytes!("../data/tokenizer/bard.json");

/// The vocabulary of bard's `tokenizer.json` as a GGUF file has it.
pub(super) fn bard_vocab() -> GgufVocab {
    let json: serde_json::Value = serde_json::from_slice(BARD).unwrap();
    let map = json["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); map.len()];
    for (text, id) in map {
        tokens[id.as_u64().unwrap() as usize] = text.clone();
    }
    let merge = |m: &serde_json::Value| match m.as_str() {
        Some(text) => text.to_owned(),
        None => format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap()),
    };
    let mut types = vec![1; tokens.len()];
    types[0] = 3;
    GgufVocab {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        merges: Some(json["model"]["merges"].as_array().unwrap().iter().map(merge).collect()),
        token_types: Some(types),
        bos: Some(0),
        eos: Some(0),
        tokens,
        ..GgufVocab::default()
    }
}

const PLAIN: EncodeOptions = EncodeOptions { add_bos: false, parse_special: false };
const SPECIAL: EncodeOptions = EncodeOptions { add_bos: false, parse_special: true };
const ALL: EncodeOptions = EncodeOptions { add_bos: true, parse_special: true };

/// The lower half of FNV-1a over the ids as little-endian u32, as in make.py.
fn digest(ids: &[u32]) -> String {
    let bytes = ids.iter().flat_map(|i| i.to_le_bytes());
    let h = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{:08x}", h as u32)
}

/// Compares all texts and names every one that differs.
fn compare(what: &str, tokenizer: &Tokenizer, options: EncodeOptions, expected_ids: &[Vec<u32>], digests: &[String]) {
    let data = expected();
    let mut wrong = Vec::new();
    assert_eq!(expected_ids.len(), data.texts.len());
    for (text, want) in data.texts.iter().zip(expected_ids) {
        let got = tokenizer.encode(text, options).unwrap();
        if got != *want {
            let at = got.iter().zip(want).take_while(|(a, b)| a == b).count();
            let show = |ids: &[u32]| -> Vec<String> {
                ids[at.saturating_sub(1)..].iter().take(6).map(|i| tokenizer.token_text(*i).unwrap()).collect()
            };
            wrong.push(format!("{what}: {text:?} at {at}: got {:?}, want {:?}", show(&got), show(want)));
        }
    }
    for (text, want) in data.random.iter().zip(digests) {
        if digest(&tokenizer.encode(text, options).unwrap()) != *want {
            wrong.push(format!("{what}: {text:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} texts differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_pre_tokenizer_equals_llama_cpp() {
    // Where llama.cpp departs from the pattern that it quotes, the pattern counts: `scripts.rs` tests these.
    let published = scripts::names();
    let mut tested: Vec<&str> = published.iter().copied().collect();
    let mut failures = Vec::new();
    for group in &expected().bpe {
        for name in group.names.iter().filter(|n| !published.contains(n.as_str())) {
            let mut meta = bpe_meta();
            meta.set("tokenizer.ggml.pre", Value::string(name.as_str()));
            let tokenizer = Tokenizer::from_gguf(&meta).unwrap();
            let run = || compare(name, &tokenizer, PLAIN, &group.expected.ids, &group.expected.digests);
            if let Err(e) = std::panic::catch_unwind(run) {
                failures.push(e.downcast_ref::<String>().unwrap().clone());
            }
            tested.push(name.as_str());
        }
    }
    assert!(failures.is_empty(), "{} pre-tokenizers differ:\n{}", failures.len(), failures.join("\n\n"));
    tested.sort_unstable();
    let mut known: Vec<_> = Tokenizer::pre_tokenizers().collect();
    known.sort_unstable();
    assert_eq!(tested, known, "every known name is tested");
}

#[test]
fn special_tokens_equal_llama_cpp() {
    let tokenizer = Tokenizer::from_gguf(&bpe_meta()).unwrap();
    compare("special", &tokenizer, SPECIAL, &expected().special, &[]);
}

#[test]
fn sentencepiece_equals_llama_cpp() {
    let data = expected();
    let tokenizer = Tokenizer::from_gguf(&spm_meta()).unwrap();
    compare("spm", &tokenizer, PLAIN, &data.spm.ids, &data.spm.digests);
    compare("spm special", &tokenizer, ALL, &data.spm_special, &[]);
    let mut meta = spm_meta();
    meta.set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
    compare("spm without prefix", &Tokenizer::from_gguf(&meta).unwrap(), SPECIAL, &data.spm_no_prefix, &[]);
    let mut meta = spm_meta();
    meta.set("general.name", Value::string("Phi-3.5-MoE"));
    compare("phi-3", &Tokenizer::from_gguf(&meta).unwrap(), SPECIAL, &data.phi3, &[]);
}

#[test]
fn tokenizer_json_and_gguf_equal_llama_cpp() {
    let data = expected();
    let gguf = Tokenizer::from_vocab(bard_vocab()).unwrap();
    compare("bard gguf", &gguf, PLAIN, &data.bard.ids, &data.bard.digests);
    let json = Tokenizer::from_json(BARD, None).unwrap();
    compare("bard json", &json, PLAIN, &data.bard.ids, &data.bard.digests);
}

/// The patterns of Llama 3's and Qwen 2's own `tokenizer.json`, run by the `tokenizers` crate's regex engine: an
/// independent reading of what `llama-bpe` and `qwen2` stand for.
#[test]
fn hand_written_rules_equal_the_original_patterns() {
    let data = expected();
    for (name, digits) in [("glm4", r"\p{N}{1,3}"), ("qwen2", r"\p{N}")] {
        let pattern = [
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
            digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]
        .concat();
        let mut json: serde_json::Value = serde_json::from_slice(BARD).unwrap();
        json["pre_tokenizer"] = serde_json::json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]});
        let json = Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap();
        let gguf = Tokenizer::from_vocab(GgufVocab { pre: Some(name.into()), ..bard_vocab() }).unwrap();
        for text in data.texts.iter().chain(&data.random) {
            assert_eq!(gguf.encode(text, PLAIN).unwrap(), json.encode(text, PLAIN).unwrap(), "{name}: {text:?}");
        }
    }
}

#[test]
fn end_of_generation_ids_equal_llama_cpp() {
    let meta = bpe_meta();
    for case in &expected().ends {
        let mut tokens: Vec<&str> = meta.strings("tokenizer.ggml.tokens").unwrap().collect();
        for (slot, text) in tokens.iter_mut().zip(&case.texts) {
            *slot = text;
        }
        let mut meta = meta.clone();
        meta.set("tokenizer.ggml.tokens", Value::Array(Array::from_strings(&tokens)));
        meta.set("tokenizer.ggml.eos_token_id", Value::U32(1));
        assert_eq!(Tokenizer::from_gguf(&meta).unwrap().eos_ids(), case.ids, "{:?}", case.texts);
    }
}

#[test]
fn decoding_inverts_encoding() {
    let data = expected();
    let bard = Tokenizer::from_vocab(bard_vocab()).unwrap();
    let json = Tokenizer::from_json(BARD, None).unwrap();
    let bpe = Tokenizer::from_gguf(&bpe_meta()).unwrap();
    let spm = Tokenizer::from_gguf(&spm_meta()).unwrap();
    for (name, tokenizer) in [("bard", &bard), ("json", &json), ("bpe", &bpe), ("spm", &spm)] {
        for text in data.texts.iter().chain(&data.random) {
            // SentencePiece cannot tell U+2581 from the blank that it stands for.
            assert!(!text.contains('▁'));
            let ids = tokenizer.encode(text, PLAIN).unwrap();
            assert_eq!(tokenizer.decode(&ids), *text, "{name}");
            let ids = tokenizer.encode(text, SPECIAL).unwrap();
            // <unk> on request stands for itself, too.
            assert_eq!(tokenizer.decode_with(&ids, true), *text, "{name} with special tokens");
            for special in [false, true] {
                let mut stream = if special { tokenizer.stream_special() } else { tokenizer.stream() };
                let mut pieces: String = ids.iter().map(|id| stream.push(*id)).collect();
                pieces += &stream.flush();
                let whole = tokenizer.decode_with(&ids, special);
                // A stream continues a prompt: it keeps the blanks that SentencePiece puts before a text.
                let (pieces, whole) =
                    if name == "spm" { (pieces.replace(' ', ""), whole.replace(' ', "")) } else { (pieces, whole) };
                assert_eq!(pieces, whole, "{name} as a stream");
            }
        }
    }
}

#[test]
fn streams_hold_back_unfinished_characters() {
    let bard = Tokenizer::from_vocab(bard_vocab()).unwrap();
    let json = Tokenizer::from_json(BARD, None).unwrap();
    for tokenizer in [bard, json] {
        let ids = tokenizer.encode("a👍b", PLAIN).unwrap();
        assert!(ids.len() > 3, "the emoji has several tokens");
        let mut stream = tokenizer.stream();
        let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id)).collect();
        assert_eq!(pieces.concat(), "a👍b");
        assert!(pieces.iter().all(|p| !p.contains('\u{fffd}')), "{pieces:?}");
        assert!(pieces.iter().any(String::is_empty), "{pieces:?}");
        // Cut off inside the emoji.
        let mut stream = tokenizer.stream();
        let shown: String = ids[..ids.len() - 2].iter().map(|id| stream.push(*id)).collect();
        assert_eq!(shown, "a");
        assert!(stream.flush().contains('\u{fffd}'));
        assert_eq!(stream.flush(), "");
        // A byte that starts nothing, then text.
        let bad = tokenizer.token_id("ÿ").unwrap();
        let mut stream = tokenizer.stream();
        let mut shown = stream.push(bad);
        shown += &stream.push(ids[0]);
        shown += &stream.flush();
        assert_eq!(shown, "\u{fffd}a");
        // Ids beyond the vocabulary say nothing.
        assert_eq!(stream.push(u32::MAX), "");
        assert_eq!(tokenizer.decode(&[u32::MAX, ids[0]]), "a");
    }
}

#[test]
fn special_tokens_are_text_unless_asked_for() {
    let bpe = Tokenizer::from_gguf(&bpe_meta()).unwrap();
    let json = Tokenizer::from_json(BARD, None).unwrap();
    for (tokenizer, text) in [(&bpe, "a<|im_end|>b"), (&json, "a<|endoftext|>b")] {
        let plain = tokenizer.encode(text, PLAIN).unwrap();
        assert!(plain.iter().all(|id| !tokenizer.is_special(*id)), "{plain:?}");
        assert_eq!(tokenizer.decode(&plain), text);
        let special = tokenizer.encode(text, SPECIAL).unwrap();
        assert_eq!(special.iter().filter(|id| tokenizer.is_special(**id)).count(), 1, "{special:?}");
        assert_eq!(tokenizer.decode(&special), "ab", "control tokens are hidden");
        assert_eq!(tokenizer.decode_with(&special, true), text);
    }
    // User-defined tokens are text that is always one token.
    let spm = Tokenizer::from_gguf(&spm_meta()).unwrap();
    let tool = spm.token_id("<tool>").unwrap();
    assert!(spm.encode("a<tool>b", PLAIN).unwrap().contains(&tool));
    assert_eq!(spm.decode(&[tool]), "<tool>");
}

#[test]
fn bos_is_added_where_the_vocabulary_wants_it() {
    let encode = |t: &Tokenizer, o| t.encode("x", o).unwrap();
    let spm = Tokenizer::from_gguf(&spm_meta()).unwrap();
    assert!(spm.adds_bos());
    assert_eq!(encode(&spm, ALL)[1..], encode(&spm, PLAIN));
    assert_eq!(encode(&spm, ALL)[0], spm.bos().unwrap());
    assert_eq!(spm.encode_rendered("<s>x").unwrap().iter().filter(|id| **id == 1).count(), 1);
    assert_eq!(spm.encode_rendered("x").unwrap()[0], 1);
    let bpe = Tokenizer::from_gguf(&bpe_meta()).unwrap();
    assert!(!bpe.adds_bos());
    assert_eq!(encode(&bpe, ALL), encode(&bpe, PLAIN));
    // A prompt is to be continued: EOS goes behind it in no file, whatever says that it should.
    let with_eos = GgufVocab { add_bos: Some(true), add_eos: Some(true), ..bard_vocab() };
    let bard = Tokenizer::from_vocab(with_eos).unwrap();
    assert!(bard.adds_eos());
    assert_eq!(encode(&bard, ALL), [&[0], &encode(&bard, PLAIN)[..]].concat());
    let mut spm_eos = spm_meta();
    spm_eos.set("tokenizer.ggml.add_eos_token", Value::Bool(true));
    let spm_eos = Tokenizer::from_gguf(&spm_eos).unwrap();
    assert!(spm_eos.adds_eos() && !spm.adds_eos());
    assert_eq!(encode(&spm_eos, ALL), encode(&spm, ALL));
    for by_template in [true, false] {
        let mut json: serde_json::Value = serde_json::from_slice(BARD).unwrap();
        let end = serde_json::json!({"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}});
        if by_template {
            json["post_processor"] = serde_json::json!({"type": "TemplateProcessing",
                "single": [end, {"Sequence": {"id": "A", "type_id": 0}}, end], "pair": [],
                "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}});
        }
        let config = serde_json::json!({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>",
            "add_bos_token": true, "add_eos_token": !by_template});
        let json = Tokenizer::from_json(json.to_string().as_bytes(), Some(&config)).unwrap();
        assert!(json.adds_bos() && json.adds_eos(), "{by_template}");
        assert_eq!(encode(&json, ALL), [&[0], &encode(&json, PLAIN)[..]].concat(), "{by_template}");
    }
    // tokenizer_config.json names the tokens and may ask for them.
    let config = serde_json::json!({"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>"},
        "add_bos_token": true, "chat_template": [{"name": "default", "template": "{{ bos_token }}!"}]});
    let json = Tokenizer::from_json(BARD, Some(&config)).unwrap();
    assert_eq!((json.bos(), json.eos(), json.eos_ids(), encode(&json, ALL)[0]), (Some(0), Some(0), &[0][..], 0));
    assert_eq!(json.chat_template().unwrap().unwrap().render(&[], false).unwrap(), "<|endoftext|>!");
    assert_eq!(json.with_eos_ids(&[7, 3]).eos_ids(), [0, 3, 7]);
}

#[test]
fn vocabulary_look_ups() {
    let bard = Tokenizer::from_vocab(bard_vocab()).unwrap();
    let json = Tokenizer::from_json(BARD, None).unwrap();
    assert_eq!((bard.vocab_size(), json.vocab_size()), (4096, 4096));
    for id in 0..4096 {
        assert_eq!(bard.token_text(id), json.token_text(id));
        assert_eq!(bard.is_special(id), json.is_special(id));
    }
    assert_eq!((bard.token_text(4096), json.token_text(4096)), (None, None));
    fn shared<T: Clone + Send + Sync>(_: &T) {}
    shared(&bard);
}

/// Bytes that are no UTF-8, in a vocabulary with byte fallback: nothing before or behind them is lost.
#[test]
fn streams_lose_nothing_around_bytes() {
    let mut vocab = serde_json::json!({"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 259, "x": 260, "▁b": 261});
    (0..256).for_each(|b| vocab[format!("<0x{b:02X}>")] = (3 + b).into());
    let special = |id: u32, t: &str| {
        serde_json::json!({"id": id, "content": t, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let json = serde_json::json!({
        "version": "1.0", "added_tokens": [special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": []},
    });
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap();
    let byte = |b: u32| 3 + b;
    let text = |ids: &[u32]| {
        let mut stream = tokenizer.stream();
        let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
        text += &stream.flush();
        text
    };
    assert_eq!(text(&[260, byte(0x0a), byte(0xff), 261]), "x\n\u{fffd} b");
    assert_eq!(text(&[byte(0xe2), byte(0x82), byte(0xac), 260]), "€x");
    assert_eq!(text(&[260, byte(0xe2), byte(0x82)]), "x\u{fffd}", "an unfinished end");
    assert_eq!(text(&[byte(0xe2), 260, byte(0x82), 260]), "\u{fffd}x\u{fffd}x");
    assert_eq!(
        text(&[byte(0xe2), 2, byte(0x82), byte(0xac)]),
        "\u{fffd}\u{fffd}\u{fffd}",
        "no character across a mark"
    );
    assert_eq!(text(&[byte(0xff); 100]), "\u{fffd}".repeat(100));
    let mut stream = tokenizer.stream();
    assert_eq!((stream.hidden(2), stream.hidden(260)), (Some("</s>".into()), None));
    assert!(stream.push(byte(0xe2)).is_empty() && stream.is_pending());
}

/// A decoder that trims the blank before a text must not trim the one before an answer's first word.
#[test]
fn streams_keep_the_first_blank() {
    let json = serde_json::json!({
        "version": "1.0", "added_tokens": [],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "model": {"type": "BPE", "vocab": {"▁": 0, "a": 1, "b": 2, "▁a": 3, "▁b": 4}, "merges": ["▁ a", "▁ b"]},
    });
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), None).unwrap();
    assert_eq!(tokenizer.encode("a b", PLAIN).unwrap(), [3, 4]);
    assert_eq!(tokenizer.decode(&[3, 4]), "a b");
    let mut stream = tokenizer.stream();
    assert_eq!([stream.push(3), stream.push(4), stream.push(1), stream.flush()], [" a", " b", "a", ""]);
}
