//! Tokenizers of Hugging Face checkpoints as GGUF vocabularies: the same ids, and refusals of what GGUF cannot say.

use moeray::{
    file::{self, Bytes, Metadata},
    tokenizer::{EncodeOptions, GgufVocab, Tokenizer},
};
use serde_json::{Value as Json, json};

const BARD: &[u8] = include_bytes!("data/tokenizer/bard.json");

fn meta_of(bytes: &'static [u8]) -> Metadata {
    file::open_bytes(Bytes::from_static(bytes)).unwrap().meta().clone()
}

fn written(v: &GgufVocab) -> Metadata {
    let mut meta = Metadata::new();
    v.write(&mut meta);
    meta
}

/// The same keys as llama.cpp's converter wrote for the same model.
#[test]
fn bards_vocabulary_equals_llama_cpps() {
    let end = "<|endoftext|>";
    let config = json!({"bos_token": end, "eos_token": {"content": end}, "pad_token": end});
    let theirs = meta_of(include_bytes!("../demo/bard-q4_k_m.gguf"));
    let ours = written(&GgufVocab::from_json(BARD, Some(&config), 4096).unwrap());
    let keys: Vec<&str> = theirs.iter().map(|(k, _)| k).filter(|k| k.starts_with("tokenizer.")).collect();
    assert_eq!(keys.len(), 8, "{keys:?}");
    for key in keys {
        assert_eq!(ours.get(key), theirs.get(key), "{key}");
    }
    assert_eq!(ours.bool("tokenizer.ggml.add_bos_token"), Some(false));
}

#[test]
fn vocabularies_are_padded_and_bounded() {
    let v = GgufVocab::from_json(BARD, None, 4100).unwrap();
    assert_eq!((v.tokens.len(), v.tokens[4097].as_str()), (4100, "[PAD4097]"));
    assert_eq!(v.token_types.unwrap()[4095..], [1, 5, 5, 5, 5]);
    let text = GgufVocab::from_json(BARD, None, 4095).unwrap_err().to_string();
    assert!(text.contains("4095 rows"), "{text}");
}

/// A tokenizer.json of a GGUF's vocabulary.
fn json_of(v: &GgufVocab, merges: Vec<[String; 2]>, parts: Json) -> Json {
    let vocab: serde_json::Map<_, _> = v.tokens.iter().enumerate().map(|(i, t)| (t.clone(), json!(i))).collect();
    let types = v.token_types.as_ref().unwrap();
    let special = |(id, text): (usize, &String)| {
        (types[id] == 2 || types[id] == 3 || types[id] == 4).then(|| {
            json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": types[id] != 4})
        })
    };
    let added: Vec<Json> = v.tokens.iter().enumerate().filter_map(special).collect();
    let mut json = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges}});
    for (key, value) in parts.as_object().unwrap() {
        match json["model"].get(key) {
            Some(_) => json["model"][key] = value.clone(),
            None => json[key] = value.clone(),
        }
    }
    json
}

fn bpe() -> (GgufVocab, Vec<[String; 2]>) {
    let meta = meta_of(include_bytes!("data/tokenizer/bpe.gguf"));
    let strings = |key: &str| meta.strings(key).unwrap().map(str::to_owned).collect::<Vec<String>>();
    let types = meta.i64s("tokenizer.ggml.token_type").unwrap().iter().map(|t| *t as i32).collect();
    let v = GgufVocab { tokens: strings("tokenizer.ggml.tokens"), token_types: Some(types), ..Default::default() };
    let merges = strings("tokenizer.ggml.merges").into_iter().map(|m| {
        let (l, r) = m.split_once(' ').unwrap();
        [l.to_owned(), r.to_owned()]
    });
    (v, merges.collect())
}

/// Patterns as models' files have them become names, and the named rules give the ids that the patterns give.
#[test]
fn patterns_become_names_with_the_same_ids() {
    let level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let split = |p: &str| json!({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": false});
    let tail = r"\s*[\r\n]+|\s+(?!\S)|\s+";
    let short = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)";
    let word = r"[^\r\n\p{L}\p{N}]?";
    let llama = format!(r"{short}|{word}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{tail}");
    let qwen = format!(r"{short}|{word}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{tail}");
    let qwen35 = format!(r"{short}|{word}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{tail}");
    let bailing =
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
    let ascii = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##;
    let deepseek = format!(r"{ascii}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{tail}");
    let (upper, lower) = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]");
    let signs = r" ?[^\s\p{L}\p{N}]+[\r\n/]*";
    let gpt4o = format!(r"{word}{upper}*{lower}+{short}?|{word}{upper}+{lower}*{short}?|\p{{N}}{{1,3}}|{signs}|{tail}");
    let tekken = format!(r"{word}{upper}*{lower}+|{word}{upper}+{lower}*|\p{{N}}|{signs}|{tail}");
    let one = |p: &str| json!([split(p), level(false)]);
    let cases: [(&str, Json, bool); 10] = [
        ("gpt-2", json!([level(true)]), false),
        ("llama-bpe", one(&llama), true),
        ("smaug-bpe", one(&llama), false),
        ("qwen2", one(&qwen), false),
        ("qwen35", one(&qwen35), false),
        ("smollm", json!([{"type": "Digits", "individual_digits": true}, level(true)]), false),
        ("bailingmoe", one(bailing), false),
        (
            "deepseek-v3",
            json!([split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(&deepseek), level(false)]),
            false,
        ),
        ("gpt-4o", one(&gpt4o), false),
        ("tekken", one(&tekken), true),
    ];
    let (v, merges) = bpe();
    for (name, stages, ignore_merges) in cases {
        let parts = json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": stages},
            "normalizer": {"type": "NFC"}, "ignore_merges": ignore_merges});
        let json = json_of(&v, merges.clone(), parts).to_string();
        // Holds the ids to those of the original, or fails.
        let got = GgufVocab::from_json(json.as_bytes(), None, v.tokens.len()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(got.pre.as_deref(), Some(name));
        assert_eq!(got.tokens, v.tokens);
    }
}

#[test]
fn unknown_tokenizers_are_refused_by_name() {
    let (v, merges) = bpe();
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let whole = json!({"type": "Split", "pattern": {"Regex": "[a-z]+|."}, "behavior": "Isolated", "invert": false});
    let cases = [
        (json!({"pre_tokenizer": whole}), "[a-z]+|."),
        (json!({"pre_tokenizer": {"type": "Whitespace"}}), "Whitespace"),
        (json!({"pre_tokenizer": level, "normalizer": {"type": "Lowercase"}}), "Lowercase"),
        (json!({"pre_tokenizer": level, "dropout": 0.1}), "dropout"),
        (json!({"pre_tokenizer": level, "byte_fallback": true}), "ByteLevel"),
    ];
    for (parts, said) in cases {
        let json = json_of(&v, merges.clone(), parts).to_string();
        let text = GgufVocab::from_json(json.as_bytes(), None, v.tokens.len()).unwrap_err().to_string();
        assert!(text.contains(said) && text.contains("folder"), "{said}: {text}");
    }
    let mut json = json_of(&v, merges, json!({"pre_tokenizer": level}));
    json["added_tokens"][0]["rstrip"] = json!(true);
    let text = GgufVocab::from_json(json.to_string().as_bytes(), None, v.tokens.len()).unwrap_err().to_string();
    assert!(text.contains("rstrip"), "{text}");
}

/// A SentencePiece vocabulary and its `tokenizer.json` as transformers makes it: every split of a piece into two is a
/// merge, the best piece first.
fn spm() -> (Metadata, GgufVocab, Json) {
    let meta = meta_of(include_bytes!("data/tokenizer/spm.gguf"));
    let tokens: Vec<String> = meta.strings("tokenizer.ggml.tokens").unwrap().map(str::to_owned).collect();
    let types: Vec<i32> = meta.i64s("tokenizer.ggml.token_type").unwrap().iter().map(|t| *t as i32).collect();
    let scores = meta.f32s("tokenizer.ggml.scores").unwrap();
    let id = |t: &str| tokens.iter().position(|x| x == t);
    let mut order: Vec<usize> = (0..tokens.len()).filter(|i| types[*i] == 1).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let mut merges = vec![];
    for i in order {
        let mut pairs: Vec<_> = tokens[i]
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (l, r) = tokens[i].split_at(at);
                Some((id(l)?, id(r)?))
            })
            .collect();
        pairs.sort_unstable();
        merges.extend(pairs.into_iter().map(|(l, r)| [tokens[l].clone(), tokens[r].clone()]));
    }
    let v = GgufVocab { tokens, token_types: Some(types), ..Default::default() };
    let parts = json!({"byte_fallback": true, "fuse_unk": true, "unk_token": "<unk>",
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}});
    let json = json_of(&v, merges, parts);
    (meta, v, json)
}

#[test]
fn sentencepiece_json_gives_the_same_ids() {
    let (meta, v, json) = spm();
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true});
    let got = GgufVocab::from_json(json.to_string().as_bytes(), Some(&config), v.tokens.len()).unwrap();
    assert_eq!((got.model.as_str(), got.add_space_prefix), ("llama", Some(true)));
    assert_eq!(got.token_types, v.token_types);
    let (ours, theirs) = (Tokenizer::from_gguf(&written(&got)).unwrap(), Tokenizer::from_gguf(&meta).unwrap());
    assert_eq!((ours.bos(), ours.eos(), ours.adds_bos()), (theirs.bos(), theirs.eos(), true));
    let expected: Json = serde_json::from_str(include_str!("data/tokenizer/expected.json")).unwrap();
    let texts = expected["texts"].as_array().unwrap().iter().zip(expected["spm"]["ids"].as_array().unwrap());
    let mut compared = 0;
    for (text, want) in texts {
        let want: Vec<u32> = want.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect();
        assert_eq!(
            ours.encode(text.as_str().unwrap(), EncodeOptions { add_bos: false, parse_special: false }).unwrap(),
            want,
            "{text}"
        );
        compared += 1;
    }
    assert!(compared > 30);
}

/// Where scores cannot say what the merges do, there is an error and no vocabulary.
#[test]
fn alarm_sentencepiece_json_that_scores_cannot_say() {
    let (_, v, json) = spm();
    let refused =
        |json: &Json| GgufVocab::from_json(json.to_string().as_bytes(), None, v.tokens.len()).unwrap_err().to_string();
    let mut first = json.clone();
    first["pre_tokenizer"] =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    first["normalizer"] = json!(null);
    assert!(refused(&first).contains("Metaspace"));

    let merges = json["model"]["merges"].as_array().unwrap();
    let mut fewer = json.clone();
    fewer["model"]["merges"] = json!(merges[1..]);
    assert!(refused(&fewer).contains("no merge"));

    let union = |m: &Json| format!("{}{}", m[0].as_str().unwrap(), m[1].as_str().unwrap());
    let twin = (1..merges.len()).find(|i| union(&merges[*i]) == union(&merges[i - 1])).unwrap();
    let mut torn = merges.clone();
    let moved = torn.remove(twin);
    torn.push(moved);
    let mut apart = json.clone();
    apart["model"]["merges"] = json!(torn);
    assert!(refused(&apart).contains("several ranks"));
}
