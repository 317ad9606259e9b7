//! Pre-tokenizers: where a byte-level BPE may not merge across.
//!
//! A GGUF file only names its pre-tokenizer (`tokenizer.ggml.pre`); the names are llama.cpp's (`src/llama-vocab.cpp`,
//! `src/unicode.cpp`, <https://github.com/ggml-org/llama.cpp>). Where its code is a short cut of the pattern in the models' own
//! `tokenizer.json` (which it quotes), as for letters' cases and combining marks of other scripts than Latin, [`TABLE`] follows
//! the pattern: that is how the model was trained. A pre-tokenizer is a list of stages, each of which splits every piece that the stage before it left; text between the matches of a stage
//! stays together as a piece of its own.

mod cased;
pub(crate) mod patterns;
mod ranges;
mod rules;
pub(super) mod unicode;

use crate::error::{Error, Result};
use cased::*;
use rules::*;

/// One pass over the text.
enum Stage {
    /// Alternatives, tried in order at every position.
    Rules(&'static [Rule]),
    /// Splits a whole segment into pieces of these lengths.
    Whole(fn(&Seg, &mut Vec<usize>)),
}
use Stage::{Rules, Whole};

/// What a pre-tokenizer's name stands for.
pub(crate) struct PreTokenizer {
    names: &'static [&'static str],
    stages: &'static [Stage],
    /// A piece that is a token as it stands is that token, whatever the merges make of it.
    pub(crate) ignore_merges: bool,
    /// Whether a BOS token goes before the text where the file does not say.
    pub(crate) add_bos: bool,
}

const GPT2: Stage = Rules(&[contraction, spaced_letters, spaced_numbers, spaced_symbols, blanks]);
const LLAMA3: Stage = Rules(&[contraction_any_case, word, three_digits, spaced_symbols_newlines, line_ends, blanks]);
const QWEN2: Stage = Rules(&[contraction_any_case, word, digit, spaced_symbols_newlines, line_ends, blanks]);
const GPT4O: Stage = Rules(&[cased_word_contracted, three_digits, spaced_symbols_newlines_slashes, line_ends, blanks]);
const MARKED_WORDS: Stage =
    Rules(&[ascii_symbol_word, marked_word_after_blank, spaced_punctuation_newlines, line_ends, blanks]);
const LINES: Stage = Rules(&[lines]);
const DIGIT: Stage = Rules(&[digit]);
const THREE_DIGITS: Stage = Rules(&[three_digits]);
const THREE_ASCII_DIGITS: Stage = Rules(&[exactly_three_ascii_digits]);
const NEWLINE: Stage = Rules(&[one_newline]);
const CJK_WIDE: Stage = Rules(&[cjk_wide]);
const CJK_KANA: Stage = Rules(&[cjk_kana]);

const fn pre(names: &'static [&'static str], stages: &'static [Stage]) -> PreTokenizer {
    PreTokenizer { names, stages, ignore_merges: false, add_bos: false }
}

/// All pre-tokenizers, the usual ones first.
static TABLE: &[PreTokenizer] = &[
    pre(
        &[
            "gpt-2",
            "phi-2",
            "olmo",
            "mpt",
            "jais",
            "gigachat",
            "mellum",
            "a.x-4.0",
            "modern-bert",
            "exaone4",
            "trillion",
            "granite-docling",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
        ],
        &[GPT2],
    ),
    PreTokenizer {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        stages: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    pre(
        &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "hunyuan", "solar-open", "grok-2", "stablelm2"],
        &[QWEN2],
    ),
    pre(
        &["qwen35"],
        &[Rules(&[contraction_any_case, marked_word, digit, spaced_unmarked_symbols_newlines, line_ends, blanks])],
    ),
    pre(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[DIGIT, GPT2],
    ),
    pre(&["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], &[LLAMA3]),
    pre(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]),
    pre(&["deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"], &[THREE_DIGITS, CJK_KANA, MARKED_WORDS]),
    pre(
        &["deepseek-llm"],
        &[
            NEWLINE,
            Rules(&[blank_cased_letters]),
            Rules(&[blank_signs]),
            Rules(&[trailing_blanks]),
            CJK_WIDE,
            Rules(&[digits]),
        ],
    ),
    pre(&["deepseek-coder"], &[NEWLINE, Rules(&[blank_letters]), Rules(&[blank_punctuation]), CJK_WIDE, DIGIT]),
    PreTokenizer {
        names: &["tekken"],
        stages: &[Rules(&[cased_word, digit, spaced_symbols_newlines_slashes, line_ends, blanks])],
        ignore_merges: true,
        add_bos: true,
    },
    pre(
        &["kimi-k2"],
        &[Rules(&[han, cased_word_not_han_contracted, three_digits, spaced_symbols_newlines, line_ends, blanks])],
    ),
    // `'(?i:[sdmt]|ll|ve|re)` and `\s*[\r\n]` differ from Qwen2's spelling, not in what they match.
    pre(&["bailingmoe", "bailingmoe2", "llada-moe"], &[QWEN2]),
    pre(&["seed-coder"], &[Rules(&[contraction_any_case, word, digit, spaced_symbols, line_ends, blanks])]),
    pre(
        &["exaone-moe"],
        &[Rules(&[contraction_any_case, joined_words, digit, spaced_symbols_one_newline, line_ends, blanks])],
    ),
    pre(&["afmoe"], &[Whole(text_and_thousands), Rules(&[asian]), MARKED_WORDS]),
    pre(&["laguna"], &[LINES, QWEN2]),
    pre(
        &["tiny_aya", "cohere2moe"],
        &[
            Whole(thousands),
            Rules(&[cased_word_contracted, three_digits, spaced_symbols_newlines_slashes, line_ends, blanks]),
        ],
    ),
    PreTokenizer {
        names: &["youtu"],
        stages: &[
            Rules(&[hangul, cjk_signs, bopomofo, cjk_kana]),
            Rules(&[cased_word_contracted, digit, spaced_symbols_newlines_slashes, line_ends, blanks]),
        ],
        ignore_merges: true,
        add_bos: false,
    },
    PreTokenizer {
        names: &["minicpm5"],
        stages: &[
            THREE_DIGITS,
            Rules(&[contraction_any_case, word, digits, spaced_symbols_newlines, line_ends, blanks]),
        ],
        ignore_merges: true,
        add_bos: false,
    },
    pre(
        &["spark2_5"],
        &[
            THREE_DIGITS,
            CJK_KANA,
            Rules(&[ascii_symbol_word, marked_word_after_blank, spaced_punctuation, one_newline, blanks]),
            DIGIT,
        ],
    ),
    pre(&["falcon"], &[Rules(&[signs_and_backtick]), GPT2, THREE_ASCII_DIGITS]),
    pre(&["default"], &[Rules(&[signs]), GPT2, Rules(&[digits]), THREE_ASCII_DIGITS]),
];

/// The pre-tokenizer that a GGUF file calls `name`.
///
/// # Errors
/// [`Error::Unsupported`] that names it and lists the known ones.
pub(crate) fn by_name(name: &str) -> Result<&'static PreTokenizer> {
    TABLE.iter().find(|p| p.names.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = names().collect();
        Error::Unsupported(format!(
            "the pre-tokenizer {name:?} (tokenizer.ggml.pre): another one would split the text differently from what the \
             model was trained on; known are {}",
            known.join(", ")
        ))
    })
}

/// All known names.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().flat_map(|p| p.names.iter().copied())
}

impl PreTokenizer {
    /// Calls `emit` with every piece of `text`, in order; the pieces joined are the text.
    pub(crate) fn split<'t>(&self, text: &'t str, mut emit: impl FnMut(&'t str)) {
        let chars: Vec<char> = text.chars().collect();
        let class: Vec<unicode::Class> = chars.iter().map(|c| unicode::class(*c)).collect();
        let mut pieces = vec![chars.len()];
        for stage in self.stages {
            let mut next = Vec::with_capacity(pieces.len());
            let mut at = 0;
            for len in pieces {
                let seg = Seg { chars: &chars[at..at + len], class: &class[at..at + len] };
                match stage {
                    Rules(rules) => apply(rules, &seg, &mut next),
                    Whole(split) => split(&seg, &mut next),
                }
                at += len;
            }
            pieces = next;
        }
        let (mut char_at, mut byte_at) = (0, 0);
        for len in pieces.into_iter().filter(|len| *len > 0) {
            let bytes: usize = chars[char_at..char_at + len].iter().map(|c| c.len_utf8()).sum();
            emit(&text[byte_at..byte_at + bytes]);
            char_at += len;
            byte_at += bytes;
        }
    }
}

/// Splits a segment by alternatives; what none of them matches stays together between the matches.
fn apply(rules: &[Rule], seg: &Seg, out: &mut Vec<usize>) {
    let (mut at, mut gap) = (0, 0);
    while at < seg.chars.len() {
        match rules.iter().map(|rule| rule(seg, at)).find(|len| *len > 0) {
            Some(len) => {
                if gap > 0 {
                    out.push(gap);
                    gap = 0;
                }
                out.push(len);
                at += len;
            }
            None => {
                gap += 1;
                at += 1;
            }
        }
    }
    if gap > 0 {
        out.push(gap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(name: &str, text: &str) -> Vec<String> {
        let mut out = Vec::new();
        by_name(name).unwrap().split(text, |p| out.push(p.to_owned()));
        assert_eq!(out.concat(), text);
        out
    }

    #[test]
    fn gpt2_as_in_its_pattern() {
        assert_eq!(
            split("gpt-2", "I'll  go\n\n to 12 places!"),
            ["I", "'ll", " ", " go", "\n\n", " to", " 12", " places", "!"]
        );
    }

    #[test]
    fn llama3_groups_digits_by_three_from_the_left() {
        assert_eq!(split("llama-bpe", "a1234567"), ["a", "123", "456", "7"]);
        assert_eq!(split("llama-bpe", "x \n\n y"), ["x", " \n\n", " y"]);
    }

    #[test]
    fn tiny_aya_groups_digits_from_the_right() {
        assert_eq!(split("tiny_aya", "1234567 12a"), ["1", "234", "567", " ", "12", "a"]);
        assert_eq!(split("tiny_aya", "1234a"), ["123", "4", "a"], "no boundary, no thousands");
    }

    #[test]
    fn cased_words_split_at_humps() {
        assert_eq!(split("gpt-4o", "camelCase HTTPServer ÀÀAB"), ["camel", "Case", " HTTPServer", " ÀÀAB"]);
        assert_eq!(split("gpt-4o", "тТа नमस्ते"), ["т", "Та", " नमस्ते"]);
        assert_eq!(split("kimi-k2", "a漢字ひ"), ["a", "漢字", "ひ"]);
    }

    #[test]
    fn unknown_names_are_named_with_the_known() {
        let text = by_name("klingon").err().unwrap().to_string();
        assert!(text.contains("klingon") && text.contains("llama-bpe") && text.contains("qwen2"), "{text}");
    }

    #[test]
    fn no_name_comes_twice() {
        let mut all: Vec<_> = names().collect();
        all.sort_unstable();
        assert!(all.windows(2).all(|w| w[0] != w[1]));
    }
}
