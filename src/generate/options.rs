//! What is asked of a generation, and how it answers.

use super::Logprobs;
use crate::sampler::SamplerOptions;

/// What to generate and when to stop.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Most tokens.
    pub max_tokens: usize,
    /// Texts that end the generation and are not part of it. The text of a control token (`<|im_start|>`) stands for that
    /// token, although it is not shown.
    pub stop: Vec<String>,
    /// Tokens that end the generation and are not part of it, beside those that the model has for that.
    pub stop_tokens: Vec<u32>,
    /// Tokens to whose logits a number is added before everything else; minus infinity keeps one out.
    pub logit_bias: Vec<(u32, f32)>,
    /// Gives every piece the logarithm of its token's probability, and those of this many of the most probable tokens. The
    /// logits then come to the host for every token, which costs some speed on a GPU.
    pub logprobs: Option<usize>,
    /// Never choose an end-of-generation token.
    pub ignore_eos: bool,
    /// How tokens are chosen.
    pub sampler: SamplerOptions,
    /// Tokens that are already in the context, for the repetition penalty.
    pub history: Vec<u32>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_tokens: 256,
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            logit_bias: Vec::new(),
            logprobs: None,
            ignore_eos: false,
            sampler: SamplerOptions::default(),
            history: Vec::new(),
        }
    }
}

/// One token of the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// The token.
    pub id: u32,
    /// Its text: empty without a tokenizer, for a control token, and for a token in the middle of a UTF-8 sequence. The texts
    /// of all pieces, joined, are the answer, with U+FFFD for bytes that are no UTF-8.
    pub text: String,
    /// Log-probabilities, where [`GenerateOptions::logprobs`] asks for them.
    pub logprobs: Option<Logprobs>,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model chose this end-of-generation token.
    EndOfText(u32),
    /// The stop string with this index appeared.
    StopString(usize),
    /// The model chose this token of [`GenerateOptions::stop_tokens`].
    StopToken(u32),
    /// As many tokens as were asked for.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// The caller cancelled.
    Cancelled,
    /// An error, which the iterator yielded.
    Failed,
}

impl FinishReason {
    /// One word: `eos`, `stop`, `length`, `context`, `cancelled`, `error`.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::EndOfText(_) => "eos",
            FinishReason::StopString(_) | FinishReason::StopToken(_) => "stop",
            FinishReason::MaxTokens => "length",
            FinishReason::ContextFull => "context",
            FinishReason::Cancelled => "cancelled",
            FinishReason::Failed => "error",
        }
    }
}
