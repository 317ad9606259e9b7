//! Sessions: a loaded model, and sequences that run on it.
//!
//! A [`Model`] is made once from a file; a [`Session`] is one sequence: a view of a `Runner` with its text. Feeding a
//! prompt is `prefill`, one token is `decode`; both leave the logits of the last token. The same without blocking: `begin_*`
//! queues, [`Session::poll`] does a slice of the work.
//!
//! Deliberately absent: kernels, stop rules.

mod batch;
mod feed;
#[cfg(feature = "gpu")]
mod fit;
mod hidden;
mod memory_plan;
mod model;
pub(crate) mod needs;
mod options;
mod place;
mod placement;
mod ranked;

pub use crate::backend::runner::{Budget, Chosen, ExpertSlotUse, RunnerOptions, Status};
/// Measurements, for the program's benchmark.
#[doc(hidden)]
pub use crate::backend::{KernelTime, Roofline};
pub use crate::model::Pooling;
pub use batch::{Batch, BatchTurn};
pub use hidden::Pooled;
pub use memory_plan::{MemoryPlan, PlaceBytes, WeightBytes};
/// The bytes of [`Model::demo`], for the program and the tests.
#[cfg(feature = "demo-model")]
#[doc(hidden)]
pub use model::DEMO_MODEL;
pub use model::Model;
pub use needs::MemoryNeeds;
pub use options::{BackendChoice, Experts, LoadOptions};
pub use placement::{ExpertPlacement, MemoryBudget, SlotOptions, TensorRule};

use crate::{
    backend::{
        Output,
        runner::{Row, Runner, Step, Token},
    },
    error::{Error, Result},
    ir::RESIDUAL,
    quant::KvType,
    routing::Trace,
};
use feed::Feed;

/// Size of a session.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// Positions in the KV cache.
    pub ctx: usize,
    /// Most tokens of one step of a prefill.
    pub ubatch: usize,
    /// Storage of keys and values.
    pub kv: KvType,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions { ctx: 2048, ubatch: 512, kv: KvType::default() }
    }
}

impl SessionOptions {
    /// The runner under so many such sessions.
    fn runner(&self, sequences: usize) -> RunnerOptions {
        let SessionOptions { ctx, ubatch, kv } = *self;
        RunnerOptions { ctx, sequences, ubatch: ubatch.min(ctx), kv }
    }
}

/// One sequence on a model.
pub struct Session {
    model: Model,
    runner: Runner,
    options: SessionOptions,
    /// The tokens in the context: what was fed, of queued steps only what was taken.
    text: Vec<u32>,
    feed: Feed,
    routing: Option<Trace>,
}

impl Session {
    /// Makes a session: allocates its KV cache and scratch. A micro-batch longer than the context is cut to it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a context or micro-batch of 0, [`Error::Device`] where memory is short.
    pub fn new(model: &Model, options: SessionOptions) -> Result<Session> {
        let options = SessionOptions { ubatch: options.ubatch.min(options.ctx), ..options };
        let SessionOptions { ctx, ubatch, kv } = options;
        let runner = model.loaded().runner(RunnerOptions { ctx, sequences: 1, ubatch, kv })?;
        let (text, feed, model) = (vec![], Feed::default(), model.clone());
        Ok(Session { model, runner, options, text, feed, routing: None })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Tokens in the context.
    pub fn position(&self) -> usize {
        self.text.len()
    }

    /// The tokens in the context.
    pub fn tokens(&self) -> &[u32] {
        &self.text
    }

    /// Positions in all.
    pub fn ctx(&self) -> usize {
        self.options.ctx
    }

    /// Most tokens of one step.
    pub fn ubatch(&self) -> usize {
        self.options.ubatch
    }

    /// Bytes of KV cache, recurrent states and scratch.
    pub fn memory_bytes(&self) -> u64 {
        self.runner.memory_bytes()
    }

    /// What slots of experts have done since the session was made, of each layer that has any: see
    /// [`ExpertPlacement::Slots`]. Tokens of prompts are not counted: they read all experts where they lie.
    ///
    /// # Errors
    /// [`Error::Invalid`] while something is queued, [`Error::Device`].
    pub fn expert_slots(&mut self) -> Result<Vec<ExpertSlotUse>> {
        self.runner.expert_slots()
    }

    /// Forgets all but the first `n` tokens, and what is queued. A model with recurrent states cannot go back by forgetting: the next
    /// tokens are then preceded by feeding again what lies between `n` and the last place before it whose states are known (the
    /// end of the last prompt that was fed, or the beginning). The results are the same.
    pub fn truncate(&mut self, n: usize) {
        self.cancel();
        self.text.truncate(n);
        self.feed.end = self.text.len();
        self.runner.truncate(0, n);
        if let Some(trace) = &mut self.routing {
            trace.truncate(n);
        }
    }

    /// Drops what is queued, at any slice. The context keeps the tokens of the steps that were done.
    pub fn cancel(&mut self) {
        self.feed.clear();
        self.feed.end = self.text.len();
        self.runner.cancel();
    }

    /// From here on keeps which experts every fed token takes, with which weights: `8 · k` bytes a token and layer, read
    /// back with each step. Starts over where it was on.
    ///
    /// # Errors
    /// [`Error::Invalid`] where tokens were fed already; [`Error::Unsupported`] for a model without experts, or one that was
    /// loaded without [`crate::model::Options::trace_router`].
    pub fn record_routing(&mut self) -> Result<()> {
        if self.position() > 0 {
            return Err(Error::Invalid("routing is recorded from the first token on: the session holds tokens".into()));
        }
        let trace = Trace::new(&self.model.definition().program.graph);
        self.routing = Some(trace.ok_or_else(|| {
            let what = if self.model.hyper().moe().is_none() {
                "the model has no experts"
            } else {
                "the model was loaded without trace_router"
            };
            Error::Unsupported(format!("no routing to record: {what}"))
        })?);
        Ok(())
    }

    /// What [`Session::record_routing`] has kept: one entry for each token in the cache.
    pub fn routing(&self) -> Option<&Trace> {
        self.routing.as_ref()
    }

    /// Feeds tokens, in micro-batches; gives the logits of the last one, `[V]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no tokens or an id beyond the vocabulary, [`Error::ContextFull`] (before anything is fed),
    /// [`Error::Device`]; [`Error::Model`] where the logits are no finite numbers.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.begin_prefill(tokens)?;
        self.finish()?;
        Ok(self.last_logits())
    }

    /// Feeds one token; gives its logits, `[V]`.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn decode(&mut self, token: u32) -> Result<&[f32]> {
        self.prefill(&[token])
    }

    /// Feeds tokens and hands every micro-batch's outputs (in the order of [`Session::output_names`], logits of all positions)
    /// to `each`, with the number of tokens before it.
    ///
    /// # Errors
    /// As [`Session::prefill`], and what `each` returns.
    pub fn feed_all(&mut self, tokens: &[u32], mut each: impl FnMut(usize, &[Output]) -> Result<()>) -> Result<()> {
        self.begin(tokens, feed::Want::AllLogits)?;
        loop {
            let before = self.position();
            let status = self.step(Budget::UNLIMITED)?;
            if self.position() > before
                && let Err(e) = each(before - self.feed.first, &self.runner.results().outputs)
            {
                self.cancel();
                return Err(e);
            }
            match status {
                Status::Done => return Ok(()),
                Status::Waiting => self.runner.wait()?,
                Status::Pending | Status::Idle => {}
            }
        }
    }

    /// Feeds tokens; gives the logits of all of them, row-major `[T, V]`.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn all_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let (mut all, at) = (Vec::new(), self.model.logits_output());
        self.feed_all(tokens, |_, out| {
            all.extend_from_slice(&out[at].f32);
            Ok(())
        })?;
        Ok(all)
    }

    /// Names of the graph's outputs: `logits`, and `router_ids_<layer>`, `router_weights_<layer>` where they are traced.
    pub fn output_names(&self) -> impl Iterator<Item = &str> {
        let outputs = &self.model.definition().program.graph.outputs;
        outputs.iter().map(|(n, _)| n.as_str()).filter(|n| *n != RESIDUAL)
    }

    /// Time of each kernel in a step of these tokens (a micro-batch at most) at this position, which stays where it is; `None`
    /// for backends without such a clock.
    ///
    /// # Errors
    /// As [`Session::prefill`]; [`Error::Unsupported`] where the device cannot.
    #[doc(hidden)]
    pub fn profile(&mut self, tokens: &[u32]) -> Result<Option<Vec<KernelTime>>> {
        self.check(tokens)?;
        let first = self.position();
        let rows: Vec<Row> = tokens.iter().enumerate().map(|(i, id)| Row::fed(*id, 0, first + i)).collect();
        let last = rows.len() - 1;
        let rows: Vec<Row> = rows.into_iter().enumerate().map(|(i, r)| Row { logits: i == last, ..r }).collect();
        self.runner.profile(&Step { rows: &rows, ..Step::default() })
    }

    /// What can be said of tokens before anything runs.
    fn check(&self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::Invalid("no tokens to feed: the prompt is empty".into()));
        }
        let needed = self.position() + tokens.len();
        if needed > self.options.ctx {
            return Err(Error::ContextFull { needed, capacity: self.options.ctx });
        }
        let vocab = self.model.vocab();
        if let Some(id) = tokens.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::Invalid(format!("token id {id} is not below the vocabulary's {vocab}")));
        }
        Ok(())
    }
}

/// Saving and restoring.
impl Session {
    /// The session's tokens with keys, values and recurrent states as bytes: what [`Session::restore`] takes.
    ///
    /// # Errors
    /// [`Error::Device`], and as [`Session::prefill`] where recurrent states have to be computed again.
    pub fn save(&mut self) -> Result<Vec<u8>> {
        self.cancel();
        self.settle()?;
        let saved = self.runner.save(0, self.position())?;
        let mut bytes = Vec::with_capacity(8 + saved.len() + 4 * self.text.len());
        bytes.extend_from_slice(&(saved.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&saved);
        self.text.iter().for_each(|id| bytes.extend_from_slice(&id.to_le_bytes()));
        Ok(bytes)
    }

    /// Another session with the same options that holds the same tokens: what each does from here on is its own.
    ///
    /// # Errors
    /// As [`Session::save`] and [`Session::new`].
    pub fn fork(&mut self) -> Result<Session> {
        let saved = self.save()?;
        let mut other = Session::new(&self.model, self.options)?;
        other.restore(&saved)?;
        Ok(other)
    }

    /// Puts a saved session in place of what this one holds.
    ///
    /// # Errors
    /// [`Error::Invalid`] for bytes that are damaged or belong to another model, KV type or backend, or while routing is recorded;
    /// [`Error::ContextFull`]; [`Error::Device`].
    pub fn restore(&mut self, bytes: &[u8]) -> Result<()> {
        if self.routing.is_some() {
            return Err(Error::Invalid("a saved session has no record of its routing".into()));
        }
        self.cancel();
        let damaged = || Error::Invalid("a saved session is cut short".into());
        let (len, rest) = bytes.split_first_chunk::<8>().ok_or_else(damaged)?;
        let len = usize::try_from(u64::from_le_bytes(*len)).unwrap_or(usize::MAX);
        let (saved, ids) = rest.split_at_checked(len).ok_or_else(damaged)?;
        let ids: Vec<u32> = ids.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let vocab = self.model.vocab();
        if ids.iter().any(|id| *id as usize >= vocab) {
            return Err(damaged());
        }
        let n = self.runner.restore(0, saved)?;
        self.text = ids;
        if self.text.len() == n {
            return Ok(());
        }
        self.truncate(0);
        Err(damaged())
    }
}
