//! The vocabulary of a GGUF file: texts, kinds, special tokens, and which of them end a generation.

use crate::error::{Error, Result};
use std::collections::HashMap;

/// The number of an ordinary token in `tokenizer.ggml.token_type`.
pub(super) const NORMAL: i32 = 1;

/// What a GGUF file says of its tokenizer, key by key (`tokenizer.ggml.*`, see the GGUF specification,
/// <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>). A missing key is `None`.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab {
    /// `general.name`: llama.cpp strips blanks after special tokens for Phi-3 by this name.
    pub name: Option<String>,
    /// `model`: `gpt2` (byte-level BPE), `llama` (SentencePiece with scores) or `gemma4` (merges on characters).
    pub model: String,
    /// `pre`: the pre-tokenizer of a `gpt2` model.
    pub pre: Option<String>,
    /// `tokens`: texts by id.
    pub tokens: Vec<String>,
    /// `token_type`: kinds by id, numbered as in the specification.
    pub token_types: Option<Vec<i32>>,
    /// `scores`: the scores of a `llama` model's tokens by id; the pair with the higher score is merged first.
    pub scores: Option<Vec<f32>>,
    /// `merges`: of a `gpt2` or `gemma4` model, two texts with a blank between, the first merge first.
    pub merges: Option<Vec<String>>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `eot_token_id`: end of turn.
    pub eot: Option<u32>,
    /// `eom_token_id`: end of message.
    pub eom: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `padding_token_id`.
    pub pad: Option<u32>,
    /// `fim_pad_token_id`, `fim_rep_token_id`, `fim_sep_token_id`: fill-in-the-middle tokens that end a generation too.
    pub fim_ends: Vec<u32>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`: of a `llama` model.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

/// The kind of a token, numbered as in `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Ordinary text.
    Normal,
    /// The token for text that no other token spells.
    Unknown,
    /// A token that steers the model and is no text, such as BOS and role markers.
    Control,
    /// Text that is always one token.
    UserDefined,
    /// An id that no text becomes.
    Unused,
    /// One byte, spelled `<0x41>`.
    Byte,
}

impl Kind {
    /// Which of several tokens with one text the text becomes: that with the least.
    fn preference(self) -> u8 {
        match self {
            Kind::Normal | Kind::UserDefined | Kind::Byte => 0,
            Kind::Control | Kind::Unknown => 1,
            Kind::Unused => 2,
        }
    }
}

/// Texts that mean the end of a generation in some model family (llama.cpp, `special_eog_ids`).
const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Texts of fill-in-the-middle tokens that a model writes when it is done: padding, the next repository, the next file.
const FIM_END_TEXTS: [&[&str]; 3] = [
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    &["<|file_sep|>"],
];

/// Texts of the other fill-in-the-middle tokens, which are control tokens whatever the file says.
const FIM_TEXTS: &[&str] = &[
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
];

/// Tokens of gpt-oss and its kin that structure an answer and are worth showing.
const SHOWN_CONTROLS: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Which tokens end a generation: those of `ids`, and those whose texts mean it. `id_of` is from text to id.
///
/// As in llama.cpp, `<|end|>` ends a message, not the generation, where `<|return|>` and `<|call|>` exist (gpt-oss), and
/// `</s>` is text where `<|tool_response>` exists. The same holds where `<|return|>` stands beside channels: a message of
/// thinking ends there, and the answer follows.
pub(crate) fn end_ids(mut ids: Vec<u32>, id_of: impl Fn(&str) -> Option<u32>) -> Vec<u32> {
    let has = |text: &str| id_of(text).is_some();
    let calls = has("<|call|>") || has("<|calls|>");
    let mut kept = Vec::new();
    let channels = has("<|channel|>") && has("<|message|>");
    if calls && has("<|flush|>") || (calls || channels) && has("<|return|>") {
        kept.extend(id_of("<|end|>"));
    }
    if has("<|tool_response>") {
        kept.extend(id_of("</s>"));
    }
    ids.extend(END_TEXTS.iter().filter_map(|t| id_of(t)));
    ids.retain(|id| !kept.contains(id));
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// A checked vocabulary.
pub(crate) struct Vocab {
    pub(crate) texts: Vec<String>,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) by_text: HashMap<String, u32>,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) unk: Option<u32>,
    /// The ids that end a generation, ascending.
    pub(crate) ends: Vec<u32>,
}

impl Vocab {
    /// Reads texts, kinds and special ids. `defaults` are the BOS, EOS and unknown ids where the file names none.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where there is no token, there are fewer kinds than tokens, a kind is
    /// unknown, or a special id is out of range.
    pub(crate) fn new(v: &mut GgufVocab, defaults: [Option<u32>; 3]) -> Result<Self> {
        let texts = std::mem::take(&mut v.tokens);
        if texts.is_empty() || u32::try_from(texts.len()).is_err() {
            return Err(bad(format!("a vocabulary of {} tokens (tokenizer.ggml.tokens)", texts.len())));
        }
        let kinds = kinds(texts.len(), v.token_types.take())?;
        let mut by_text = HashMap::with_capacity(texts.len());
        for (id, text) in texts.iter().enumerate() {
            // llama.cpp gives empty tokens a made-up name; nothing can match them.
            if text.is_empty() {
                continue;
            }
            // Several ids may have one text, most often among unused ones: a text becomes the first that it may become.
            let at = by_text.entry(text.clone()).or_insert(id as u32);
            if kinds[id].preference() < kinds[*at as usize].preference() {
                *at = id as u32;
            }
        }
        let in_range = |key: &str, id: Option<u32>| match id {
            Some(i) if i as usize >= texts.len() => {
                Err(bad(format!("tokenizer.ggml.{key} = {i}, but the vocabulary has {} tokens", texts.len())))
            }
            id => Ok(id),
        };
        let default = |i: usize| defaults[i].filter(|id| (*id as usize) < texts.len());
        let bos = in_range("bos_token_id", v.bos)?.or(default(0));
        let eos = in_range("eos_token_id", v.eos)?.or(default(1));
        let unk = in_range("unknown_token_id", v.unk)?.or(default(2));
        let mut ends = vec![eos, in_range("eot_token_id", v.eot)?, in_range("eom_token_id", v.eom)?];
        for id in &v.fim_ends {
            ends.push(in_range("fim_pad/rep/sep_token_id", Some(*id))?);
        }
        let mut vocab = Vocab { texts, kinds, by_text, bos, eos, unk, ends: Vec::new() };
        vocab.find_ends(ends.into_iter().flatten().collect());
        Ok(vocab)
    }

    /// Completes the end-of-generation ids by text and corrects the kinds of tokens that look like control tokens.
    fn find_ends(&mut self, mut ends: Vec<u32>) {
        for texts in FIM_END_TEXTS {
            ends.extend(texts.iter().find_map(|t| self.by_text.get(*t)));
        }
        self.ends = end_ids(ends, |t| self.by_text.get(t).copied());
        // Not all of these end the generation (`<|end|>` of gpt-oss does not), but none of them is text. `</s>` is the
        // exception: it may be HTML.
        let look =
            END_TEXTS.iter().filter(|t| **t != "</s>").chain(FIM_TEXTS).chain(FIM_END_TEXTS.iter().copied().flatten());
        let look: Vec<u32> = look.filter_map(|t| self.by_text.get(*t).copied()).collect();
        for id in self.ends.iter().chain(&look) {
            self.kinds[*id as usize] = Kind::Control;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.texts.len()
    }

    pub(crate) fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize).map(String::as_str)
    }

    pub(crate) fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(id as usize).copied()
    }

    /// Whether decoding omits the token unless special tokens are asked for.
    pub(crate) fn is_hidden(&self, id: u32) -> bool {
        matches!(self.kind(id), Some(Kind::Control | Kind::Unknown))
            && !self.text(id).is_some_and(|t| SHOWN_CONTROLS.contains(&t))
    }

    /// The token that ordinary text may become: not a control token that happens to be spelled like it.
    pub(crate) fn ordinary(&self, text: &str) -> Option<u32> {
        self.by_text.get(text).copied().filter(|id| !matches!(self.kind(*id), Some(Kind::Control | Kind::Unknown)))
    }
}

/// The kinds of so many tokens.
///
/// # Errors
/// [`Error::Tokenizer`] for too few or unknown numbers.
pub(crate) fn kinds(tokens: usize, types: Option<Vec<i32>>) -> Result<Vec<Kind>> {
    let Some(types) = types else { return Ok(vec![Kind::Normal; tokens]) };
    if types.len() < tokens {
        return Err(bad(format!("{} token types for {tokens} tokens (tokenizer.ggml.token_type)", types.len())));
    }
    types
        .into_iter()
        .take(tokens)
        .map(|t| match t {
            1 => Ok(Kind::Normal),
            2 => Ok(Kind::Unknown),
            3 => Ok(Kind::Control),
            4 => Ok(Kind::UserDefined),
            // 0 is "undefined": llama.cpp prints nothing for it, as for unused tokens.
            0 | 5 => Ok(Kind::Unused),
            6 => Ok(Kind::Byte),
            other => Err(bad(format!("token type {other}; the GGUF specification knows 1 to 6"))),
        })
        .collect()
}

/// The byte that a token such as `<0x41>` stands for.
pub(crate) fn byte_of(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

pub(crate) fn bad(what: impl Into<String>) -> Error {
    Error::Tokenizer(what.into())
}

/// The error for a tokenizer that a GGUF vocabulary cannot describe.
pub(super) fn cannot(what: impl std::fmt::Display) -> Error {
    Error::Unsupported(format!(
        "tokenizer.json has {what}, which the vocabulary of a GGUF file cannot say; the model can be run from its folder"
    ))
}
