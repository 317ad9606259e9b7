//! Sessions: a loaded model, and sequences that run on it.
//!
//! A [`Model`] is made once from a file; a [`Session`] is one sequence: its KV cache and how far it is. Feeding a prompt is
//! `prefill`, one token is `decode`; both leave the logits of the last token.
//!
//! Deliberately absent: kernels, sampling.

use crate::{
    backend::{self, Loaded, Output, Progress, Runner, RunnerOptions, Step},
    error::{Error, Result},
    file::{self, Checkpoint},
    model::{self, Decoder, Definition},
    quant::KvType,
    routing::Trace,
    tokenizer::Tokenizer,
};
use std::{path::Path, sync::Arc};

pub use backend::{Floor, KernelTime, Sampling};

/// Where a model runs.
#[derive(Clone, Debug, Default)]
pub enum BackendChoice {
    /// The best real GPU; the CPU where there is none or where the model does not fit it. A software Vulkan device is
    /// never chosen.
    #[default]
    Auto,
    /// The same with these options for the GPU.
    Prefer(backend::wgpu::Options),
    /// A GPU through wgpu.
    Wgpu(backend::wgpu::Options),
    /// The CPU.
    Cpu(backend::cpu::Options),
    /// The oracle: slow.
    Reference,
}

/// How to load a model.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Where it runs.
    pub backend: BackendChoice,
    /// What the graph gives beyond logits.
    pub model: model::Options,
}

/// A model in place. Cheap to clone; clones share the weights.
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {
    definition: Definition,
    loaded: Box<dyn Loaded>,
    tokenizer: Option<Tokenizer>,
    /// Why there is no tokenizer, for who asks for it.
    no_tokenizer: String,
    vocab: usize,
}

impl Model {
    /// Loads a `.gguf` file (or a shard of several) or a folder of safetensors.
    ///
    /// # Errors
    /// Any of [`Error`]: what is wrong with the file, the model, or the device.
    pub fn load(path: &Path, options: &LoadOptions, progress: &mut dyn FnMut(Progress)) -> Result<Model> {
        Self::from_checkpoint(&file::open(path)?, options, progress)
    }

    /// Loads an opened checkpoint.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_checkpoint(
        ckpt: &Checkpoint,
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Model> {
        let definition = model::build(ckpt, &options.model)?;
        let loaded = place(&definition, &options.backend, progress)?;
        let (tokenizer, no_tokenizer) = match Tokenizer::from_checkpoint(ckpt) {
            Ok(t) => (Some(t), String::new()),
            Err(e) => {
                tracing::info!("no tokenizer: {e}");
                let why = if let Error::Tokenizer(why) = e { why } else { e.to_string() };
                (None, why)
            }
        };
        let vocab = vocab(&definition)?;
        Ok(Model { inner: Arc::new(Inner { definition, loaded, tokenizer, no_tokenizer, vocab }) })
    }

    /// The tokenizer, where the file has one that is understood.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.inner.tokenizer.as_ref()
    }

    /// The tokenizer, or why there is none.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] with the reason.
    pub fn require_tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer().ok_or_else(|| Error::Tokenizer(self.inner.no_tokenizer.clone()))
    }

    /// Sizes and switches.
    pub fn hyper(&self) -> &Decoder {
        &self.inner.definition.decoder
    }

    /// The architecture, graph and weights.
    pub fn definition(&self) -> &Definition {
        &self.inner.definition
    }

    /// The backend and device.
    pub fn describe(&self) -> String {
        self.inner.loaded.describe()
    }

    /// Bytes of weights that the backend holds beside the file.
    pub fn weight_bytes(&self) -> u64 {
        self.inner.loaded.weight_bytes()
    }

    /// Measures what the device could do at best; `None` for backends without a device.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn floor(&self) -> Result<Option<Floor>> {
        self.inner.loaded.floor()
    }

    /// What the backend made of it.
    pub(crate) fn loaded(&self) -> &dyn Loaded {
        &*self.inner.loaded
    }

    /// Logits a position, V.
    pub fn vocab(&self) -> usize {
        self.inner.vocab
    }
}

fn vocab(d: &Definition) -> Result<usize> {
    let graph = &d.program.graph;
    let logits = graph.outputs.iter().find(|(n, _)| n == "logits");
    logits.map(|(_, v)| graph.cols(*v)).ok_or_else(|| Error::Graph("the graph gives no logits".into()))
}

/// Loads on the chosen backend; without a choice on the best GPU, and on the CPU where that is refused.
fn place(d: &Definition, choice: &BackendChoice, progress: &mut dyn FnMut(Progress)) -> Result<Box<dyn Loaded>> {
    let program = d.program.clone();
    match choice {
        BackendChoice::Reference => backend::reference::load(program),
        BackendChoice::Cpu(o) => backend::cpu::load(program, o, progress),
        BackendChoice::Wgpu(o) => backend::wgpu::load(program, o, progress),
        BackendChoice::Auto => place(d, &BackendChoice::Prefer(backend::wgpu::Options::default()), progress),
        BackendChoice::Prefer(o) => {
            match backend::wgpu::load(program.clone(), o, progress) {
                Ok(loaded) => return Ok(loaded),
                Err(e @ (Error::Device(_) | Error::Unsupported(_))) => tracing::info!("using the CPU: {e}"),
                Err(e) => return Err(e),
            }
            backend::cpu::load(program, &backend::cpu::Options::default(), progress)
        }
    }
}

/// Size of a session.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// Positions in the KV cache.
    pub ctx: usize,
    /// Most tokens of one step of a prefill.
    pub chunk: usize,
    /// Storage of keys and values.
    pub kv: KvType,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions { ctx: 2048, chunk: 512, kv: KvType::default() }
    }
}

/// One sequence on a model.
pub struct Session {
    model: Model,
    runner: Box<dyn Runner>,
    options: SessionOptions,
    position: usize,
    out: Vec<Output>,
    logits: usize,
    /// Tokens in the cache once all queued steps are done, where the backend chooses tokens.
    queued: usize,
    routing: Option<Trace>,
    /// The tokens that were fed, where the model has recurrent states: going back feeds some of them again.
    fed: Option<Vec<u32>>,
}

impl Session {
    /// Makes a session: allocates its KV cache and scratch. A chunk longer than the context is cut to it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a context or chunk of 0, [`Error::Device`] where memory is short.
    pub fn new(model: &Model, options: SessionOptions) -> Result<Session> {
        let options = SessionOptions { chunk: options.chunk.min(options.ctx), ..options };
        let runner_options = RunnerOptions { ctx: options.ctx, chunk: options.chunk, kv: options.kv };
        let runner = model.inner.loaded.runner(runner_options)?;
        let graph = &model.inner.definition.program.graph;
        let (outputs, fed) = (&graph.outputs, (!graph.states.is_empty()).then(Vec::new));
        let logits = outputs.iter().position(|(n, _)| n == "logits").unwrap_or(0);
        let model = model.clone();
        Ok(Session { model, runner, options, position: 0, out: vec![], logits, queued: 0, routing: None, fed })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Tokens in the cache.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Positions in all.
    pub fn ctx(&self) -> usize {
        self.options.ctx
    }

    /// Most tokens of one step.
    pub fn chunk(&self) -> usize {
        self.options.chunk
    }

    /// Bytes of KV cache and scratch.
    pub fn memory_bytes(&self) -> u64 {
        self.runner.memory_bytes()
    }

    /// Forgets all but the first `n` tokens. A model with recurrent states cannot go back by forgetting: the next tokens are
    /// then preceded by feeding again what lies between `n` and the last place before it whose states are known (the end of
    /// the last prompt that was fed, or the beginning). The results are the same.
    pub fn truncate(&mut self, n: usize) {
        self.position = self.position.min(n);
        if let Some(fed) = &mut self.fed {
            fed.truncate(n);
        }
        if let Some(trace) = &mut self.routing {
            trace.truncate(n);
        }
    }

    /// From here on keeps which experts every fed token takes, with which weights: `8 · k` bytes a token and layer, read
    /// back with each step. Starts over where it was on.
    ///
    /// # Errors
    /// [`Error::Invalid`] where tokens were fed already; [`Error::Unsupported`] for a model without experts, or one that was
    /// loaded without [`model::Options::trace_router`].
    pub fn record_routing(&mut self) -> Result<()> {
        if self.position > 0 {
            return Err(Error::Invalid("routing is recorded from the first token on: the session holds tokens".into()));
        }
        let trace = Trace::new(&self.model.inner.definition.program.graph);
        self.routing = Some(trace.ok_or_else(|| {
            let what =
                if self.model.hyper().moe().is_none() { "the model has no experts" } else { "not asked for at load" };
            Error::Unsupported(format!("no routing to record: {what} (trace_router)"))
        })?);
        Ok(())
    }

    /// What [`Session::record_routing`] has kept: one entry for each token in the cache.
    pub fn routing(&self) -> Option<&Trace> {
        self.routing.as_ref()
    }

    /// Feeds tokens, in chunks; gives the logits of the last one, `[V]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no tokens or an id beyond the vocabulary, [`Error::ContextFull`] (before anything is fed),
    /// [`Error::Device`]; [`Error::Model`] where the logits are no finite numbers.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.feed(tokens, 1, |_, _| Ok(()))?;
        Ok(&self.out[self.logits].f32)
    }

    /// Feeds one token; gives its logits, `[V]`.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn decode(&mut self, token: u32) -> Result<&[f32]> {
        self.prefill(&[token])
    }

    /// Feeds tokens and hands every chunk's outputs (in the order of [`Session::output_names`], logits of all positions)
    /// to `each`, with the number of tokens before the chunk.
    ///
    /// # Errors
    /// As [`Session::prefill`], and what `each` returns.
    pub fn feed_all(&mut self, tokens: &[u32], each: impl FnMut(usize, &[Output]) -> Result<()>) -> Result<()> {
        self.feed(tokens, usize::MAX, each)
    }

    /// Feeds tokens; gives the logits of all of them, row-major `[T, V]`.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn all_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let (mut all, at) = (Vec::new(), self.logits);
        self.feed_all(tokens, |_, out| {
            all.extend_from_slice(&out[at].f32);
            Ok(())
        })?;
        Ok(all)
    }

    /// Names of the graph's outputs: `logits`, and `router_ids_<layer>`, `router_weights_<layer>` where they are traced.
    pub fn output_names(&self) -> impl Iterator<Item = &str> {
        self.model.inner.definition.program.graph.outputs.iter().map(|(n, _)| n.as_str())
    }

    /// Time of each kernel in a step of these tokens (a chunk at most) at this position, which stays where it is; `None` for
    /// backends without such a clock.
    ///
    /// # Errors
    /// As [`Session::prefill`]; [`Error::Unsupported`] where the device cannot.
    pub fn profile(&mut self, tokens: &[u32]) -> Result<Option<Vec<KernelTime>>> {
        self.check(tokens)?;
        self.runner.profile(Step { tokens, past: self.position, outputs: 1, inputs: &[] })
    }

    /// Begins to let the backend choose tokens, see [`backend::Picker`]: `false` where it cannot, or not with these options.
    /// `recent` are the tokens so far, for the repetition penalty.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn pick_begin(&mut self, sampling: &Sampling<'_>, recent: &[u32]) -> Result<bool> {
        self.queued = self.position;
        if self.routing.is_some() {
            // What is recorded has to be read back from every step.
            return Ok(false);
        }
        self.runner.picker().map_or(Ok(false), |p| p.begin(sampling, recent))
    }

    /// Feeds tokens in chunks; after the last the backend chooses one, which [`Session::pick_take`] gives. `draw` is where in
    /// [0, 2^32) the draw falls. `go_on` is asked before every chunk.
    ///
    /// # Errors
    /// As [`Session::prefill`], and what `go_on` returns. Where the backend chooses no tokens, [`Error::Invalid`].
    pub fn pick_feed(&mut self, tokens: &[u32], draw: u32, mut go_on: impl FnMut() -> Result<()>) -> Result<()> {
        self.check(tokens)?;
        let last = (tokens.len() - 1) / self.options.chunk * self.options.chunk;
        let mut at = 0;
        while at < tokens.len() {
            go_on()?;
            let chunk = &tokens[at..(at + self.options.chunk).min(tokens.len())];
            let step = Step { tokens: chunk, past: self.position, outputs: usize::from(at == last), inputs: &[] };
            match self.runner.picker() {
                None => return Err(Error::Invalid("this backend leaves the choice of tokens to the caller".into())),
                Some(p) if at == last => p.feed(step, draw)?,
                Some(_) => self.runner.step(step, &mut self.out)?,
            }
            at += chunk.len();
            self.position += chunk.len();
            self.queued = self.position;
        }
        Ok(())
    }

    /// Queues a step of the token that was chosen last. [`Session::position`] moves when its own choice is taken.
    ///
    /// # Errors
    /// [`Error::ContextFull`], [`Error::Device`].
    pub fn pick_advance(&mut self, draw: u32) -> Result<()> {
        let queued = self.queued;
        match self.runner.picker() {
            None => Err(Error::Invalid("this backend leaves the choice of tokens to the caller".into())),
            Some(p) => p.advance(queued, draw),
        }?;
        self.queued += 1;
        Ok(())
    }

    /// Steps that were queued and whose choice was not taken.
    pub fn pick_pending(&mut self) -> usize {
        self.runner.picker().map_or(0, |p| p.pending())
    }

    /// Positions that are taken once all queued steps are done.
    pub fn pick_queued(&self) -> usize {
        self.queued
    }

    /// Waits for the oldest queued step and gives the token that it chose. The token is not in the context yet.
    ///
    /// # Errors
    /// As [`backend::Picker::take`].
    pub fn pick_take(&mut self) -> Result<u32> {
        let Some(p) = self.runner.picker() else {
            return Err(Error::Invalid("this backend leaves the choice of tokens to the caller".into()));
        };
        let id = p.take()?;
        self.position = self.queued - p.pending();
        Ok(id)
    }

    /// Forgets queued steps whose choice was not taken.
    pub fn pick_discard(&mut self) {
        if let Some(p) = self.runner.picker() {
            p.discard();
        }
        self.queued = self.position;
    }

    /// What can be said of tokens before anything runs.
    fn check(&self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::Invalid("no tokens to feed: the prompt is empty".into()));
        }
        let needed = self.position + tokens.len();
        if needed > self.options.ctx {
            return Err(Error::ContextFull { needed, capacity: self.options.ctx });
        }
        if let Some(id) = tokens.iter().find(|id| **id as usize >= self.model.inner.vocab) {
            let vocab = self.model.inner.vocab;
            return Err(Error::Invalid(format!("token id {id} is not below the vocabulary's {vocab}")));
        }
        Ok(())
    }

    /// Runs `tokens` in chunks. `outputs` is how many positions' logits the last chunk gives; `usize::MAX` stands for all
    /// positions of every chunk.
    fn feed(
        &mut self,
        tokens: &[u32],
        outputs: usize,
        mut each: impl FnMut(usize, &[Output]) -> Result<()>,
    ) -> Result<()> {
        self.check(tokens)?;
        self.catch_up()?;
        let chunks = tokens.len().div_ceil(self.options.chunk);
        for (i, chunk) in tokens.chunks(self.options.chunk).enumerate() {
            let last = i + 1 == chunks;
            let outputs = if outputs == usize::MAX {
                chunk.len()
            } else if last {
                outputs
            } else {
                0
            };
            let step = Step { tokens: chunk, past: self.position, outputs, inputs: &[] };
            self.runner.step(step, &mut self.out)?;
            self.position += chunk.len();
            if let Some(fed) = &mut self.fed {
                fed.extend_from_slice(chunk);
            }
            if let Some(trace) = &mut self.routing {
                trace.push(&self.out)?;
            }
            // Damaged block scales and overflows end up here: better an error than a wrong number.
            if self.out[self.logits].f32.iter().any(|x| !x.is_finite()) {
                let at = self.position;
                return Err(Error::Model(format!(
                    "the logits after {at} tokens hold NaN or infinity: the weights are damaged, or numbers overflow"
                )));
            }
            each(i * self.options.chunk, &self.out)?;
        }
        // The end of a prompt is where conversations go back to.
        if self.fed.is_some() && tokens.len() > 1 {
            self.runner.keep_states()?;
        }
        Ok(())
    }

    /// Brings recurrent states to the session's position, by feeding tokens again where it went back.
    fn catch_up(&mut self) -> Result<()> {
        let Some(fed) = &self.fed else { return Ok(()) };
        let mut at = self.runner.resume_at(self.position);
        if at < self.position {
            tracing::info!("feeding {} tokens again: recurrent states cannot go back", self.position - at);
        }
        while at < self.position {
            let end = (at + self.options.chunk).min(self.position);
            self.runner.step(Step { tokens: &fed[at..end], past: at, outputs: 0, inputs: &[] }, &mut self.out)?;
            at = end;
        }
        Ok(())
    }
}
