//! Tokenizers and chat templates: ids equal to llama.cpp's, text round trips, hostile vocabularies, long texts.
//! `tests/data/tokenizer/make.py` says where the data comes from.

use moeray::{
    file::{self, Bytes, Metadata, Value},
    tokenizer::{EncodeOptions, GgufVocab, Tokenizer},
};
use serde::Deserialize;
use std::sync::OnceLock;

#[derive(Deserialize)]
struct Expected {
    texts: Vec<String>,
    random: Vec<String>,
    bpe: Vec<Group>,
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

/// Ids of `texts`, digests of the ids of `random`.
#[derive(Deserialize)]
struct Ids {
    ids: Vec<Vec<u32>>,
    digests: Vec<String>,
}

fn expected() -> &'static Expected {
    static DATA: OnceLock<Expected> = OnceLock::new();
    DATA.get_or_init(|| serde_json::from_str(include_str!("data/tokenizer/expected.json")).unwrap())
}

fn metadata(bytes: &'static [u8]) -> Metadata {
    file::open_bytes(Bytes::from_static(bytes)).unwrap().meta().clone()
}

fn bpe_meta() -> Metadata {
    metadata(include_bytes!("data/tokenizer/bpe.gguf"))
}

fn spm_meta() -> Metadata {
    metadata(include_bytes!("data/tokenizer/spm.gguf"))
}

const BARD: &[u8] = include_bytes!("data/tokenizer/bard.json");

/// The vocabulary of bard's `tokenizer.json` as a GGUF file has it.
fn bard_vocab() -> GgufVocab {
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
    let mut tested = Vec::new();
    let mut failures = Vec::new();
    for group in &expected().bpe {
        for name in &group.names {
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
