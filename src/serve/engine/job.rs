//! What the engine is asked for, and what it answers.

use crate::{
    error::{Error, Result},
    generate::{FinishReason, Logprobs, Piece},
    sampler::SamplerOptions,
    session::Pooled,
};
use std::{fmt, sync::Arc, time::Instant};
use tokio::sync::{mpsc::UnboundedSender, oneshot};

/// Restricts which tokens may come: a grammar.
pub trait Constraint: Send {
    /// The tokens that may come next, one bit each from the lowest bit of the first word on, over the model's logits; `None`
    /// for all. Asked for before every choice.
    ///
    /// # Errors
    /// Where no token can follow.
    fn allowed(&mut self) -> Result<Option<&[u32]>>;

    /// Takes in the chosen token.
    ///
    /// # Errors
    /// Where the token was not allowed.
    fn accept(&mut self, id: u32) -> Result<()>;

    /// Whether the text is complete and nothing can follow.
    fn is_complete(&mut self) -> bool;
}

/// One text to generate, or to make a vector of.
pub struct Job {
    /// Which of its request's texts it is.
    pub index: usize,
    /// When the request came.
    pub arrived: Instant,
    /// Whose it is, for fairness.
    pub client: u64,
    /// The prompt, at least one token and at most the context's length.
    pub prompt: Arc<[u32]>,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampler: SamplerOptions,
    /// Subtracted from the logits of tokens of the answer, once and for every time that they occur (OpenAI's presence and
    /// frequency penalty).
    pub presence_penalty: f32,
    /// See [`Job::presence_penalty`].
    pub frequency_penalty: f32,
    /// Added to the logits of tokens, each named at most once.
    pub bias: Vec<(u32, f32)>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Never choose an end-of-generation token.
    pub ignore_eos: bool,
    /// Log-probabilities of every token, and of so many of the most probable ones.
    pub logprobs: Option<usize>,
    /// Log-probabilities of the prompt's tokens too.
    pub prompt_logprobs: bool,
    /// A grammar.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Nothing is generated: the prompt's hidden states are gathered to one vector.
    pub pooled: Option<Pooled>,
    /// Where events go, with [`Job::index`].
    pub events: UnboundedSender<(usize, Event)>,
}

impl Job {
    /// Whether the whole prompt must be read, whatever of it is in a cache.
    pub fn reads_all(&self) -> bool {
        self.prompt_logprobs || self.pooled.as_ref().is_some_and(|p| p.wants(0, self.prompt.len()))
    }

    /// Whether nobody waits for it any more.
    pub fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Sends an event; a receiver that is gone is noticed between steps.
    pub fn send(&self, event: Event) {
        let _ = self.events.send((self.index, event));
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (index, client, prompt) = (self.index, self.client, self.prompt.len());
        f.debug_struct("Job").field("index", &index).field("client", &client).field("prompt", &prompt).finish()
    }
}

/// What becomes of a job.
#[derive(Debug)]
pub enum Event {
    /// It has a sequence: so many tokens of its prompt were there already, and are not read.
    Started {
        /// Tokens.
        cached: usize,
    },
    /// Log-probabilities of the prompt's tokens; the first has none.
    Prompt(Vec<Option<Logprobs>>),
    /// A token of the answer. Comes once its text is known to belong to it.
    Piece(Piece),
    /// The end of the answer.
    Finished(Finished),
    /// The vector of the prompt, of length 1: the end of a job that asked for it.
    Embedding(Vec<f32>),
    /// It has failed.
    Failed(Error),
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// Tokens that were generated, those of a stop string included, an end-of-generation token not.
    pub generated: usize,
    /// Tokens of the prompt that were not read.
    pub cached: usize,
    /// How long it took.
    pub timings: Timings,
}

/// Seconds of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// From the request to the sequence.
    pub queued: f64,
    /// From there to the first token.
    pub prompt: f64,
    /// From the first token to the last.
    pub generation: f64,
}

/// What comes into an engine.
pub enum Message {
    Jobs(Vec<Job>),
    Order(Order),
}

/// What is to be done with a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderKind {
    /// Gives its text as bytes.
    Save,
    /// Puts a saved text in place of its own, which goes to the prefix cache.
    Restore(Vec<u8>),
    /// Forgets its text.
    Erase,
}

/// An order, and who waits for it.
pub struct Order {
    pub sequence: usize,
    pub kind: OrderKind,
    pub reply: oneshot::Sender<Result<Done>>,
}

/// What became of an order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Tokens that were saved, restored or forgotten.
    pub tokens: usize,
    /// What was saved.
    pub bytes: Vec<u8>,
}
