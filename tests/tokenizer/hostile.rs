//! Vocabularies that contradict themselves, random text and ids, very long texts.

use super::{ALL, BARD, PLAIN, SPECIAL, bard_vocab, bpe_meta, expected, spm_meta};
use moeray::{
    Error,
    file::{Array, Metadata, Value},
    tokenizer::{GgufVocab, Tokenizer},
};
use proptest::prelude::*;
use std::{
    sync::{LazyLock, OnceLock},
    time::{Duration, Instant},
};

fn error(result: moeray::Result<Tokenizer>) -> String {
    match result {
        Err(e @ (Error::Tokenizer(_) | Error::Unsupported(_))) => e.to_string(),
        Err(other) => panic!("another kind of error: {other:?}"),
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn contradictory_vocabularies_are_refused_by_name() {
    type Change = fn(&mut GgufVocab);
    let cases: &[(&str, Change)] = &[
        ("\"bert\"", |v| v.model = "bert".into()),
        ("\"klingon\"", |v| v.pre = Some("klingon".into())),
        ("vocabulary of 0 tokens", |v| v.tokens.clear()),
        ("tokenizer.ggml.merges", |v| v.merges = None),
        ("merge 1", |v| v.merges = Some(vec!["a b".into(), "ab".into()])),
        ("needs the token", |v| v.merges = Some(vec!["a nosuchtoken".into()])),
        ("needs the token", |v| v.merges = Some(vec!["q q".into()])),
        ("not two texts", |v| v.merges = Some(vec![" a".into()])),
        ("not two texts", |v| v.merges = Some(vec![String::new()])),
        ("bos_token_id", |v| v.bos = Some(4096)),
        ("eos_token_id", |v| v.eos = Some(u32::MAX)),
        ("eot_token_id", |v| v.eot = Some(5000)),
        ("eom_token_id", |v| v.eom = Some(5000)),
        ("unknown_token_id", |v| v.unk = Some(5000)),
        ("fim_pad", |v| v.fim_ends = vec![5000]),
        ("5 token types", |v| v.token_types = Some(vec![1; 5])),
        ("token type 77", |v| v.token_types = Some(vec![77; 4096])),
        ("no bos_token_id", |v| (v.bos, v.add_bos) = (None, Some(true))),
        ("no eos_token_id", |v| (v.eos, v.add_eos) = (None, Some(true))),
        ("scores", |v| v.model = "llama".into()),
        ("3 scores", |v| (v.model, v.scores) = ("llama".into(), Some(vec![0.0; 3]))),
        ("score of token 7", |v| {
            let mut scores = vec![0.0; 4096];
            scores[7] = f32::NAN;
            (v.model, v.scores) = ("llama".into(), Some(scores));
        }),
    ];
    for (want, change) in cases {
        let mut vocab = bard_vocab();
        change(&mut vocab);
        let got = error(Tokenizer::from_vocab(vocab));
        assert!(got.contains(want), "{want}: {got}");
    }
}

/// Several ids may have one text: a text becomes the ordinary token among them, the first of several; each id keeps its text.
#[test]
fn tokens_of_one_text() {
    let encode = |t: &Tokenizer| t.encode("an apple", Default::default()).unwrap();
    let want = encode(&Tokenizer::from_vocab(bard_vocab()).unwrap());
    let a = bard_vocab().tokens.iter().position(|t| t == "a").unwrap();
    for kind in [1, 3, 5] {
        let mut vocab = bard_vocab();
        let mut types = vocab.token_types.take().unwrap_or_else(|| vec![1; vocab.tokens.len()]);
        vocab.tokens.extend(["a", "<twice>", "<twice>"].map(String::from));
        types.extend([kind, 5, 5]);
        vocab.token_types = Some(types);
        let t = Tokenizer::from_vocab(vocab).unwrap();
        assert_eq!(encode(&t), want, "kind {kind}");
        assert_eq!(t.token_text(4096).as_deref(), Some("a"));
        assert_eq!(t.token_text(a as u32).as_deref(), Some("a"));
    }
}

#[test]
fn missing_and_mistyped_keys_are_refused_by_name() {
    assert!(error(Tokenizer::from_gguf(&Metadata::new())).contains("tokenizer.ggml.model"));
    let keys: Vec<(String, Value)> = bpe_meta().iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
    for (i, (key, _)) in keys.iter().enumerate().filter(|(_, (k, _))| k.starts_with("tokenizer.")) {
        for value in [Value::F32(0.5), Value::Array(Array::from_bool(&[true])), Value::I64(-7)] {
            let mut changed = keys.clone();
            changed[i].1 = value;
            let got = error(Tokenizer::from_gguf(&Metadata::from_entries(changed).unwrap()));
            assert!(got.contains(key.as_str()), "{key}: {got}");
        }
        let mut without = keys.clone();
        without.remove(i);
        let result = Tokenizer::from_gguf(&Metadata::from_entries(without).unwrap());
        let needed = ["tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"];
        if needed.contains(&key.as_str()) {
            assert!(error(result).contains(key.as_str()));
        } else {
            result.unwrap();
        }
    }
}

#[test]
fn broken_tokenizer_json_is_refused() {
    for json in [&b""[..], b"{}", b"null", b"{\"version\":\"1.0\"", &BARD[..BARD.len() / 2], b"\xff\xfe"] {
        assert!(error(Tokenizer::from_json(json, None)).contains("tokenizer.json"));
    }
    let config = serde_json::json!({"eos_token": "<|nowhere|>"});
    assert!(error(Tokenizer::from_json(BARD, Some(&config))).contains("<|nowhere|>"));
    for odd in [serde_json::json!([]), serde_json::json!({"eos_token": 3, "chat_template": 7, "add_bos_token": "x"})] {
        Tokenizer::from_json(BARD, Some(&odd)).unwrap();
    }
}

/// Every kind of tokenizer, bytes complete first.
fn all() -> &'static [Tokenizer] {
    static ALL: OnceLock<Vec<Tokenizer>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut all = vec![Tokenizer::from_json(BARD, None).unwrap(), Tokenizer::from_gguf(&spm_meta()).unwrap()];
        for name in Tokenizer::pre_tokenizers() {
            let vocab = GgufVocab { pre: Some(name.into()), add_bos: Some(false), ..bard_vocab() };
            all.push(Tokenizer::from_vocab(vocab).unwrap());
        }
        all
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_text_survives_the_round_trip(text in "\\PC{0,40}|[ \\t\\r\\n'a-zA-Z0-9!/éÀ漢ー\u{301}½٣<|>]{0,60}|(?s:.{0,40})") {
        for tokenizer in all() {
            // SentencePiece cannot tell U+2581 from the blank that it stands for.
            let text = text.replace('▁', "_");
            let ids = tokenizer.encode(&text, PLAIN).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids), text.as_str(), "{:?}", tokenizer);
            prop_assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
            tokenizer.encode(&text, ALL).unwrap();
        }
    }

    #[test]
    fn any_ids_decode(ids in prop::collection::vec(0u32..4200, 0..40)) {
        for tokenizer in &all()[..3] {
            let whole = tokenizer.decode(&ids);
            let mut stream = tokenizer.stream();
            let mut pieces: String = ids.iter().map(|id| stream.push(*id)).collect();
            pieces += &stream.flush();
            // Invalid bytes may be grouped into other replacement characters; all else is the same.
            let bare = |s: &str| s.replace(['\u{fffd}', ' '], "");
            prop_assert_eq!(bare(&pieces), bare(&whole), "{:?}", tokenizer);
        }
    }

    #[test]
    fn random_vocabularies_do_not_panic(
        tokens in prop::collection::vec("[a-c<>|▁Ġ]{0,4}", 0..12),
        merges in prop::collection::vec("[abc]{0,2} [abc]{0,2}", 0..6),
        types in prop::collection::vec(0i32..8, 0..14),
        scores in prop::collection::vec(-5.0f32..5.0, 0..14),
        ids in (0u32..14, 0u32..14),
        llama: bool,
        text in "[a-c<>| ]{0,20}",
    ) {
        let vocab = GgufVocab {
            model: if llama { "llama" } else { "gpt2" }.into(),
            tokens, merges: Some(merges), token_types: Some(types), scores: Some(scores),
            bos: Some(ids.0), eos: Some(ids.1), ..GgufVocab::default()
        };
        if let Ok(tokenizer) = Tokenizer::from_vocab(vocab) {
            let ids = tokenizer.encode(&text, SPECIAL).unwrap();
            tokenizer.decode(&ids);
        }
    }
}

/// Texts of about `n` bytes that make naive merging or backtracking quadratic.
fn long_texts(n: usize) -> Vec<(&'static str, String)> {
    vec![
        ("prose", expected().texts.concat().repeat(n / 4000)),
        ("a", "a".repeat(n)),
        ("blanks", " ".repeat(n)),
        ("blanks and a word", " ".repeat(n) + "x"),
        ("line ends", "\n".repeat(n)),
        ("digits", "7".repeat(n) + "x"),
        ("capitals", "A".repeat(n)),
        ("signs", "<|".repeat(n / 2)),
        ("special", "<|endoftext|>".repeat(n / 13)),
        ("apostrophes", "'".repeat(n)),
    ]
}

/// How long this thread has been computing, whatever else the machine does; on systems that do not tell, the clock.
fn busy() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = told.and_then(|t| t.split_whitespace().next()?.parse().ok());
    nanoseconds.map_or_else(|| START.elapsed(), Duration::from_nanos)
}

/// Quadratic code would need minutes to hours for a megabyte; this takes about a second in an unoptimised build.
#[test]
fn a_megabyte_takes_about_a_second() {
    let encode = |what: &str, tokenizer: &Tokenizer, texts: &[(&str, String)]| {
        for (name, text) in texts {
            let start = busy();
            assert!(!tokenizer.encode(text, SPECIAL).unwrap().is_empty());
            let took = busy() - start;
            assert!(took < Duration::from_secs(20), "{what}, {name}: {took:?}");
        }
    };
    let megabyte = long_texts(1 << 20);
    encode("spm", &Tokenizer::from_gguf(&spm_meta()).unwrap(), &megabyte);
    encode("bpe", &Tokenizer::from_vocab(bard_vocab()).unwrap(), &megabyte);
    // Splitting takes a hundredth of merging: a smaller text would show a quadratic rule as well.
    let shorter = long_texts(1 << 17);
    for name in expected().bpe.iter().map(|group| group.names[0].as_str()) {
        let vocab =
            GgufVocab { pre: Some(name.into()), merges: Some(Vec::new()), add_bos: Some(false), ..bard_vocab() };
        encode(name, &Tokenizer::from_vocab(vocab).unwrap(), &shorter);
    }
}
