//! From the patterns of a `tokenizer.json` to the name that llama.cpp gives them.
//!
//! llama.cpp's converter knows a tokenizer by a digest of what it makes of a long text. Here the patterns themselves are
//! compared, which also knows a vocabulary that was trained yesterday with a known pre-tokenizer. Sources of the patterns:
//! the comments in llama.cpp's `src/llama-vocab.cpp`, which quote the models' `tokenizer.json` files, and the `tokenizers`
//! crate for GPT-2's.

use serde_json::{Value, json};

/// A known sequence of patterns.
pub(crate) struct Known {
    /// `tokenizer.ggml.pre`.
    pub(crate) name: &'static str,
    patterns: &'static [&'static str],
    /// `ignore_merges` of the model, where it decides.
    ignore_merges: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const KIMI_K2: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const YOUTU: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const MINICPM5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const fn known(name: &'static str, patterns: &'static [&'static str]) -> Known {
    Known { name, patterns, ignore_merges: false }
}

/// The usual ones first.
static KNOWN: &[Known] = &[
    known("gpt-2", &[GPT2]),
    Known { name: "llama-bpe", patterns: &[LLAMA3], ignore_merges: true },
    known("smaug-bpe", &[LLAMA3]),
    known("qwen2", &[QWEN2]),
    known("qwen35", &[QWEN35]),
    known("smollm", &[r"\p{N}", GPT2]),
    known("bailingmoe", &[BAILING]),
    known("deepseek-v3", &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK_V3]),
    Known { name: "gpt-4o", patterns: &[GPT4O], ignore_merges: false },
    Known { name: "tekken", patterns: &[TEKKEN], ignore_merges: true },
    known("kimi-k2", &[KIMI_K2]),
    known("seed-coder", &[SEED_CODER]),
    known("exaone-moe", &[EXAONE_MOE]),
    known("tiny_aya", &[r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O]),
    Known {
        name: "youtu",
        patterns: &["[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+", YOUTU],
        ignore_merges: true,
    },
    Known { name: "minicpm5", patterns: &[r"\p{N}{1,3}", MINICPM5], ignore_merges: true },
];

/// The pre-tokenizer of a byte-level BPE by the `pre_tokenizer` of its `tokenizer.json`.
///
/// # Errors
/// What was found, in words for an error's text.
pub(crate) fn by_json(pre_tokenizer: &Value, ignore_merges: bool) -> Result<&'static Known, String> {
    let mut patterns = Vec::new();
    collect(pre_tokenizer, &mut patterns)?;
    let found = |k: &&Known| k.patterns == patterns.as_slice() && k.ignore_merges == ignore_merges;
    KNOWN.iter().find(found).ok_or_else(|| format!("the patterns {patterns:?} with ignore_merges = {ignore_merges}"))
}

/// The patterns of a name.
pub(crate) fn by_name(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|k| k.name == name)
}

impl Known {
    /// `ignore_merges` of the model.
    pub(crate) fn ignore_merges(&self) -> bool {
        self.ignore_merges
    }

    /// The `pre_tokenizer` of a `tokenizer.json`.
    pub(crate) fn json(&self) -> Value {
        let split =
            |p: &&str| json!({ "type": "Split", "pattern": { "Regex": p }, "behavior": "Isolated", "invert": false });
        let mut stages: Vec<Value> = self.patterns.iter().map(split).collect();
        stages
            .push(json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false }));
        json!({ "type": "Sequence", "pretokenizers": stages })
    }
}

/// Every name that can be found, for errors.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|k| k.name)
}

/// The patterns, stage by stage.
fn collect<'j>(v: &'j Value, out: &mut Vec<&'j str>) -> Result<(), String> {
    let flag = |key: &str| v.get(key).and_then(Value::as_bool).unwrap_or(false);
    let text = |key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default();
    match text("type") {
        "Sequence" => {
            let stages = v.get("pretokenizers").and_then(Value::as_array);
            stages.into_iter().flatten().try_for_each(|stage| collect(stage, out))
        }
        // Spells bytes; splits only with its own pattern.
        "ByteLevel" if !flag("add_prefix_space") => {
            if v.get("use_regex").and_then(Value::as_bool).unwrap_or(true) {
                out.push(GPT2);
            }
            Ok(())
        }
        "Digits" if flag("individual_digits") => {
            out.push(r"\p{N}");
            Ok(())
        }
        // "Removed" of what does not match: the same where the pattern matches everything, as those in `KNOWN` do that
        // come alone.
        "Split" if matches!((text("behavior"), flag("invert")), ("Isolated", false) | ("Removed", true)) => {
            let pattern = v.get("pattern").and_then(|p| p.get("Regex")).and_then(Value::as_str);
            out.push(pattern.ok_or_else(|| format!("a split at {}", v["pattern"]))?);
            Ok(())
        }
        _ => Err(format!("{v}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::sync::OnceLock;
    use tokenizers::{
        OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
        pre_tokenizers::split::{Split, SplitPattern},
    };

    #[test]
    fn names_are_known_to_the_other_table() {
        names().for_each(|n| assert!(super::super::by_name(n).is_ok(), "{n}"));
    }

    #[test]
    fn patterns_make_names() {
        let level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": use_regex});
        let split =
            |p: &str| json!({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": false});
        let name = |v: &Value, ignore| by_json(v, ignore).map(|k| k.name);
        assert_eq!(name(&level(true), false), Ok("gpt-2"));
        let llama = json!({"type": "Sequence", "pretokenizers": [split(LLAMA3), level(false)]});
        assert_eq!(name(&llama, true), Ok("llama-bpe"));
        assert_eq!(name(&llama, false), Ok("smaug-bpe"));
        let digits = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true}, level(true)]});
        assert_eq!(name(&digits, false), Ok("smollm"));
        assert!(name(&split("[a-z]+"), false).unwrap_err().contains("[a-z]+"));
        let prefixed = json!({"type": "ByteLevel", "add_prefix_space": true, "use_regex": true});
        assert!(name(&prefixed, false).unwrap_err().contains("add_prefix_space"));
        assert!(name(&json!({"type": "BertPreTokenizer"}), false).unwrap_err().contains("Bert"));
    }

    /// The pieces of `text` by the patterns, run by the regex engine of the `tokenizers` crate, stage after stage.
    fn pieces_by_pattern(stages: &[Split], text: &str) -> Vec<String> {
        let mut pieces = PreTokenizedString::from(text);
        stages.iter().for_each(|stage| stage.pre_tokenize(&mut pieces).unwrap());
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(piece, ..)| piece.to_owned()).collect()
    }

    /// The known patterns with their engines, each built once.
    fn engines() -> &'static [(&'static Known, Vec<Split>)] {
        static ENGINES: OnceLock<Vec<(&Known, Vec<Split>)>> = OnceLock::new();
        ENGINES.get_or_init(|| {
            let engine = |p: &&str| {
                Split::new(SplitPattern::Regex((*p).into()), SplitDelimiterBehavior::Isolated, false).unwrap()
            };
            KNOWN.iter().map(|k| (k, k.patterns.iter().map(engine).collect())).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// The patterns of a `tokenizer.json` and the rules that are written by hand for their name split any text alike.
        #[test]
        fn rules_split_as_their_patterns(
            text in "\\PC{0,40}|[ \\t\\r\\n'a-zA-ZſТтǅʰन々0-9!/_éÀ漢ー\u{301}½٣<|>]{0,60}|(?s:.{0,40})",
        ) {
            for (known, stages) in engines() {
                let mut pieces = vec![];
                super::super::by_name(known.name).unwrap().split(&text, |p| pieces.push(p.to_owned()));
                prop_assert_eq!(pieces, pieces_by_pattern(stages, &text), "{}: {:?}", known.name, text);
            }
        }
    }
}
