//! Words of many scripts: a GGUF vocabulary splits them as the pattern of the same model's `tokenizer.json` does.

use super::{PLAIN, expected};
use crate::support::successor::letters;
use moeray::tokenizer::{GgufVocab, Tokenizer};
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, HashSet};

/// The same sentence or two, and words in which upper and lower case follow each other where the script has cases.
const SCRIPTS: &[(&str, &str)] = &[
    ("Latin", "The Straße isn't far; ŒuvreÉtat iPhoneÀ naïveÑandú McDONALD'S İstanbulIğdır ǅungla ŉa"),
    ("Cyrillic", "Привет, МИР! тТа ПриветМир СССРа ёлкаЁлка б\u{301}уква"),
    ("Greek", "Καλημέρα ΚόσμεΑΒΓ αΒγΔ ΐᾼῼ ά\u{345}"),
    ("Armenian", "Բարև ԱշխարհԲարև բԱրև"),
    ("Georgian", "გამარჯობა მსოფლიო ᲒამარჯობაᲐᲑ ႠႡაბ"),
    ("Cherokee", "ᎣᏏᏲ ᏣᎳᎩ ꭳꮟᏲ"),
    ("Deseret", "𐐀𐐨𐐁 𐐨𐐀𐐩"),
    ("Hebrew", "שָׁלוֹם עולם בְּרֵאשִׁית"),
    ("Arabic", "مَرْحَبًا بالعالم ١٢٣٤٥ كتابA"),
    ("Devanagari", "नमस्ते दुनिया। हिन्दी १२३४ क्षA"),
    ("Bengali", "বাংলা ভাষা ১২৩৪ নমস্কার"),
    ("Gurmukhi", "ਪੰਜਾਬੀ ਭਾਸ਼ਾ"),
    ("Gujarati", "ગુજરાતી ભાષા"),
    ("Tamil", "தமிழ் மொழி வணக்கம்"),
    ("Telugu", "తెలుగు భాష నమస్కారం"),
    ("Kannada", "ಕನ್ನಡ ಭಾಷೆ"),
    ("Malayalam", "മലയാളം ഭാഷ"),
    ("Sinhala", "සිංහල භාෂාව"),
    ("Thai", "ภาษาไทยไม่มีช่องว่าง ๑๒๓๔"),
    ("Lao", "ພາສາລາວ ສະບາຍດີ"),
    ("Tibetan", "བོད་སྐད། བཀྲ་ཤིས་"),
    ("Myanmar", "မြန်မာဘာသာ မင်္ဂလာပါ"),
    ("Khmer", "ភាសាខ្មែរ សួស្តី"),
    ("Ethiopic", "አማርኛ ሰላም ፩፪"),
    ("Hangul", "한국어 텍스트 ㄱㄴㄷ 가나A"),
    ("Kana", "ひらがなカタカナｶﾀｶﾅ ー々 あAい"),
    ("Han", "漢字仮名a漢字 Aa漢 々〇⼀豈 １２３"),
    ("Mongolian", "ᠮᠣᠩᠭᠣᠯ ᠬᠡᠯᠡ"),
    ("marks alone", " \u{301}\u{301}ABC \u{301}abc a\u{301}B\u{301}c ♥\u{fe0f}A 1\u{301}2 A\u{200d}b it'S 'ſ x'ſa"),
];

const UPPER: &str = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]";
const LOWER: &str = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]";
const SHORT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?";
const TAIL: &str = r"\s*[\r\n]+|\s+(?!\S)|\s+";

/// Two alternatives of a word with upper and lower case; `and` narrows both sets.
fn words(and: &str, short: &str) -> String {
    let narrowed = |set: &str| format!("{}{and}]", set.strip_suffix(']').unwrap());
    let (u, l, before) = (narrowed(UPPER), narrowed(LOWER), r"[^\r\n\p{L}\p{N}]?");
    format!("{before}{u}*{l}+{short}|{before}{u}+{l}*{short}")
}

/// The patterns of published files, by the names that GGUF files have for them.
fn published() -> Vec<(&'static [&'static str], Vec<String>, bool)> {
    let cased = words("", SHORT);
    let slashes = r" ?[^\s\p{L}\p{N}]+[\r\n/]*";
    let gpt4o = format!(r"{cased}|\p{{N}}{{1,3}}|{slashes}|{TAIL}");
    let tekken = format!(r"{}|\p{{N}}|{slashes}|{TAIL}", words("", ""));
    let kimi =
        format!(r"[\p{{Han}}]+|{}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{TAIL}", words(r"&&[^\p{Han}]", SHORT));
    let youtu = format!(r"{cased}|\p{{N}}|{slashes}|{TAIL}");
    let asian = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+";
    vec![
        (&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], vec![gpt4o.clone()], false),
        (&["tekken"], vec![tekken], true),
        (&["kimi-k2"], vec![kimi], false),
        (&["tiny_aya", "cohere2moe"], vec![r"\d{1,3}(?=(?:\d{3})*\b)".into(), gpt4o], false),
        (&["youtu"], vec![asian.into(), youtu], true),
    ]
}

/// The names whose ids are the published pattern's, not llama.cpp's.
pub(super) fn names() -> HashSet<&'static str> {
    published().iter().flat_map(|(names, ..)| names.iter().copied()).collect()
}

/// Tokens and merges that were trained on the texts without a pre-tokenizer, so that they cross every boundary and the ids
/// show where one splits.
fn crossing(texts: &[&str], merges: usize) -> (Vec<String>, Vec<(String, String)>) {
    let letters = letters();
    let mut words: Vec<Vec<String>> =
        texts.iter().map(|t| t.bytes().map(|b| letters[b as usize].clone()).collect()).collect();
    let (mut tokens, mut made) = (letters, vec![]);
    for _ in 0..merges {
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for pair in words.iter().flat_map(|w| w.windows(2)).filter(|p| p.concat().chars().count() <= 9) {
            *counts.entry((&pair[0], &pair[1])).or_default() += 1;
        }
        let Some(best) = counts.iter().max_by_key(|(_, n)| **n) else { break };
        let (left, right) = (best.0.0.to_owned(), best.0.1.to_owned());
        let union = format!("{left}{right}");
        for w in &mut words {
            let mut i = 0;
            while i + 1 < w.len() {
                if w[i] == left && w[i + 1] == right {
                    w.splice(i..i + 2, [union.clone()]);
                }
                i += 1;
            }
        }
        if !tokens.contains(&union) {
            tokens.push(union);
        }
        made.push((left, right));
    }
    (tokens, made)
}

fn tokenizer_json(tokens: &[String], merges: &[(String, String)], patterns: &[String], ignore_merges: bool) -> Json {
    let vocab: serde_json::Map<_, _> = tokens.iter().enumerate().map(|(i, t)| (t.clone(), json!(i))).collect();
    let split = |p: &String| json!({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": false});
    let mut stages: Vec<Json> = patterns.iter().map(split).collect();
    stages.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}));
    json!({"version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null, "decoder": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": stages},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
            "vocab": vocab, "merges": merges.iter().map(|(l, r)| format!("{l} {r}")).collect::<Vec<_>>()}})
}

#[test]
fn words_of_every_script_split_as_in_the_published_patterns() {
    let data = expected();
    let corpus: Vec<&str> = SCRIPTS.iter().map(|(_, text)| *text).collect();
    assert!(corpus.len() >= 20);
    let (tokens, merges) = crossing(&corpus, 900);
    let mut joined = 0;
    for (names, patterns, ignore_merges) in published() {
        let json = tokenizer_json(&tokens, &merges, &patterns, ignore_merges).to_string();
        let original = Tokenizer::from_json(json.as_bytes(), None).unwrap();
        for name in names {
            let vocab = GgufVocab {
                model: "gpt2".into(),
                pre: Some((*name).into()),
                tokens: tokens.clone(),
                merges: Some(merges.iter().map(|(l, r)| format!("{l} {r}")).collect()),
                add_bos: Some(false),
                ..GgufVocab::default()
            };
            let ours = Tokenizer::from_vocab(vocab).unwrap();
            let hand_written = data.texts.iter().chain(&data.random).map(|t| ("", t.as_str()));
            for (script, text) in SCRIPTS.iter().copied().chain(hand_written) {
                let (got, want) = (ours.encode(text, PLAIN).unwrap(), original.encode(text, PLAIN).unwrap());
                let show = |ids: &[u32]| ids.iter().map(|i| original.decode(&[*i])).collect::<Vec<_>>();
                assert_eq!(got, want, "{name}, {script}: {:?} instead of {:?}", show(&got), show(&want));
                joined += usize::from(got.len() < text.len());
            }
        }
        // What is written as GGUF has a name of the same patterns, or is refused.
        let written = GgufVocab::from_json(json.as_bytes(), None, tokens.len()).unwrap();
        assert_eq!(written.pre.as_deref(), Some(names[0]));
    }
    assert!(joined > 1000, "alarm: no merges, no boundaries");
}
