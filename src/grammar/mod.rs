//! Grammars: which tokens may come next, so that an answer has a given form.
//!
//! A [`Grammar`] says the form: JSON, JSON of a schema, text of a regular expression, a Lark grammar, or calls of tools in the
//! syntax of the model. A [`GrammarEngine`] is made once for a model's vocabulary (some hundred milliseconds) and compiles
//! grammars; a [`Matcher`] then gives a mask of the allowed tokens before each choice, and takes the token that was chosen.
//! The crate `llguidance` does the work: a lexer of derivatives and an Earley parser over a trie of the vocabulary's bytes.
//!
//! A grammar speaks of the answer, not of what precedes it: where the model thinks first, or writes its answer into a
//! channel, that may come before. Keywords of a schema that are not enforced are errors with their place.
//!
//! Reading order: `vocab` (tokens as bytes), `schema` (what is supported), `marks`, `source` (grammars as texts), `calls`.
//!
//! Deliberately absent: logits, models, sampling.

mod calls;
mod marks;
mod schema;
mod source;
mod vocab;

use crate::{
    error::{Error, Result},
    tokenizer::{Prompt, Tokenizer},
    tools::{Tool, ToolSyntax},
};
use llguidance::{ParserFactory, api::TopLevelGrammar, toktrie::TokEnv};
use std::sync::Arc;

/// The form of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// A JSON object.
    JsonObject,
    /// JSON that this schema allows (drafts 4 to 2020-12, as far as `llguidance` enforces them).
    JsonSchema(serde_json::Value),
    /// A text that this regular expression matches as a whole, in the syntax of the crate `regex`.
    Regex(String),
    /// A text of a grammar in `llguidance`'s variant of Lark, whose first rule is `start`.
    Lark(String),
    /// One call of one of these tools, or several.
    Calls {
        /// How the model writes calls.
        syntax: ToolSyntax,
        /// What may be called.
        tools: Vec<Tool>,
        /// Whether there may be more than one call.
        several: bool,
    },
}

/// Compiles grammars for a vocabulary. Threads may share it.
#[derive(Clone)]
pub struct GrammarEngine {
    tokenizer: Tokenizer,
    factory: Arc<ParserFactory>,
    vocab: usize,
}

impl std::fmt::Debug for GrammarEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GrammarEngine({} tokens)", self.vocab)
    }
}

/// States of the lexer that a grammar may come to, 1 to 2 kB each.
const MOST_STATES: usize = 50_000;
/// The longest grammar, in bytes.
const LONGEST: usize = 1 << 20;

fn invalid(e: impl std::fmt::Display) -> Error {
    Error::Invalid(format!("grammar: {e}"))
}

impl GrammarEngine {
    /// An engine for a model with logits `[vocab]`, which may be more than the tokenizer has tokens.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the bytes of tokens depend on their neighbours, no token ends a generation, or the
    /// vocabulary is larger than a trie can be.
    pub fn new(tokenizer: &Tokenizer, vocab: usize) -> Result<Self> {
        let env: TokEnv = Arc::new(vocab::Vocab::new(tokenizer)?);
        let mut factory = ParserFactory::new_simple(&env).map_err(invalid)?;
        factory.quiet();
        factory.limits_mut().max_lexer_states = MOST_STATES;
        factory.limits_mut().verbose_errors = false;
        Ok(GrammarEngine { tokenizer: tokenizer.clone(), factory: Arc::new(factory), vocab })
    }

    /// A matcher of answers to `prompt`, before the first token.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the reason, and the place in a schema, where the grammar is wrong, too large, or asks for what
    /// is not supported.
    pub fn compile(&self, grammar: &Grammar, prompt: &Prompt) -> Result<Matcher> {
        let source = source::lark(grammar, &self.tokenizer, prompt)?;
        if source.len() > LONGEST {
            return Err(invalid(format!("{} bytes are too long", source.len())));
        }
        let make = || self.factory.create_parser(TopLevelGrammar::from_lark(source));
        // The crate answers a wrong grammar with an error; should it panic on one, that is an error as well.
        let parser = llguidance::panic_utils::catch_unwind(std::panic::AssertUnwindSafe(make));
        let mut inner = llguidance::Matcher::new(parser);
        if let Some(e) = inner.get_error() {
            return Err(invalid(first_line(&e)));
        }
        // Some faults of a grammar show only when the first mask is asked for.
        inner.compute_mask_or_eos().map_err(|e| invalid(first_line(&e.to_string())))?;
        Ok(Matcher { inner, vocab: self.vocab, tokenizer: self.tokenizer.clone() })
    }
}

fn first_line(text: &str) -> &str {
    text.trim().lines().next().unwrap_or_default()
}

/// A grammar at a place of an answer.
#[derive(Clone)]
pub struct Matcher {
    inner: llguidance::Matcher,
    vocab: usize,
    tokenizer: Tokenizer,
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matcher({} tokens)", self.vocab)
    }
}

impl Matcher {
    /// Writes which tokens may come next: bit `t % 32` of word `t / 32` for token t, ⌈V / 32⌉ words, as
    /// [masks of a step](crate::session::Batch) have them. Where the answer is whole, the tokens that end it are among them, and once
    /// nothing else may come they are all.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the grammar takes too many steps or too much memory at this place.
    pub fn mask(&mut self, words: &mut Vec<u32>) -> Result<()> {
        let mask = self.inner.compute_mask_or_eos().map_err(|e| invalid(first_line(&e.to_string())))?;
        let n = self.vocab.div_ceil(32);
        words.clear();
        words.extend(mask.as_slice().iter().take(n));
        words.resize(n, 0);
        Ok(())
    }

    /// Takes the token that was chosen.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a token that was not allowed.
    pub fn accept(&mut self, id: u32) -> Result<()> {
        if self.is_finished() && self.tokenizer.eos_ids().contains(&id) {
            return Ok(());
        }
        self.inner.consume_token(id).map_err(|e| invalid(first_line(&e.to_string())))
    }

    /// Whether the answer is whole and nothing but its end may follow.
    pub fn is_finished(&self) -> bool {
        self.inner.is_stopped()
    }

    /// Whether the answer may end here.
    ///
    /// # Errors
    /// As [`Matcher::mask`].
    pub fn may_end(&mut self) -> Result<bool> {
        if self.is_finished() {
            return Ok(true);
        }
        self.inner.is_accepting().map_err(|e| invalid(first_line(&e.to_string())))
    }

    /// The matcher as a [logits hook](crate::generate::Generation::with_logits_hook): tokens that are not allowed get minus
    /// infinity. Where the grammar fails at some place, all do, which ends the generation with an error.
    pub fn into_logits_hook(mut self) -> impl FnMut(&[u32], &mut [f32]) + Send + 'static {
        let mut read: Option<usize> = None;
        let mut words = vec![];
        move |tokens, logits| {
            let from = *read.get_or_insert(tokens.len());
            read = Some(tokens.len());
            let taken = tokens.get(from..).unwrap_or_default().iter().try_for_each(|id| self.accept(*id));
            if taken.and_then(|()| self.mask(&mut words)).is_err() {
                words.clear();
            }
            for (id, logit) in logits.iter_mut().enumerate() {
                if words.get(id / 32).is_none_or(|w| w >> (id % 32) & 1 == 0) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}
