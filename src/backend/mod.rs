//! Backends: where a graph becomes numbers.
//!
//! `reference` is the oracle: every op's own reference code, nothing else. `cpu` is fast on any processor, `wgpu` runs a
//! plan on a GPU. All three take the same [`Program`] and answer through the same two traits: a [`Loaded`] model (weights
//! where the backend wants them) and its [`Runner`]s (KV caches and scratch of one sequence).
//!
//! Deliberately absent: model architectures, tokens' text, sampling.

mod batch;
mod bridge;
pub mod cpu;
pub mod reference;
pub mod runner;
pub(crate) mod state;
pub mod wgpu;

pub use crate::graph::Program;
pub use batch::{BatchOptions, BatchRow, BatchRunner, OneByOne, check_batch};
pub use runner::{KernelTime, Output};

use crate::{
    error::{Error, Result},
    quant::KvType,
};

/// How far a long operation has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// What is being done: `loading weights`, `compiling shaders`.
    pub phase: &'static str,
    /// How much of it is done, in `total`'s unit (bytes as a rule).
    pub done: u64,
    /// How much there is.
    pub total: u64,
}

/// Size of a runner: fixed when it is made.
#[derive(Clone, Copy, Debug)]
pub struct RunnerOptions {
    /// Positions in the KV cache.
    pub ctx: usize,
    /// Most tokens of one step (longer prompts are fed in chunks by the session).
    pub chunk: usize,
    /// Storage of keys and values.
    pub kv: KvType,
}

/// One step's input.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Token ids of this step, T ≤ chunk of them. Also gives T where the graph has only named inputs.
    pub tokens: &'a [u32],
    /// P: positions already in the cache. Going back is passing a smaller number; on a graph with recurrent states it must be
    /// one that [`Runner::resume_at`] gives.
    pub past: usize,
    /// O: how many of the last tokens' outputs are wanted, 0 ..= T.
    pub outputs: usize,
    /// The numbers of `Op::Input` nodes by name, row-major `[T, cols]`.
    pub inputs: &'a [(&'a str, &'a [f32])],
}

/// A backend's model: weights in place, ready to make runners. Shared by sessions.
pub trait Loaded: Send + Sync {
    /// `reference`, `cpu` or `wgpu`, with the device where there is one: for the closing line of a run.
    fn describe(&self) -> String;

    /// What was loaded.
    fn program(&self) -> &Program;

    /// Makes what executes the steps of a [`runner::Runner`]: allocates KV caches, recurrent states and scratch.
    ///
    /// # Errors
    /// [`Error::Device`] where memory is short; [`Error::Invalid`] for a size of 0; [`Error::Unsupported`] where the graph has
    /// ops that are not made for several sequences.
    fn executor(&self, options: runner::RunnerOptions) -> Result<Box<dyn runner::Executor>> {
        bridge::check_size(&options)?;
        if options.sequences == 1 {
            let one = RunnerOptions { ctx: options.ctx, chunk: options.ubatch, kv: options.kv };
            return Ok(Box::new(bridge::Bridge::one(self.old_runner(one)?)));
        }
        let all = BatchOptions { ctx: options.ctx, sequences: options.sequences, rows: options.ubatch, kv: options.kv };
        Ok(Box::new(bridge::Bridge::several(self.old_batch(all)?)))
    }

    /// Makes a runner: allocates KV caches, recurrent states and scratch of its sequences.
    ///
    /// # Errors
    /// As [`Loaded::executor`].
    fn runner(&self, options: runner::RunnerOptions) -> Result<runner::Runner> {
        Ok(runner::Runner::new(self.executor(options)?, self.program(), options))
    }

    /// A runner of the old form, under the bridge.
    ///
    /// # Errors
    /// As [`Loaded::executor`].
    fn old_runner(&self, _options: RunnerOptions) -> Result<Box<dyn Runner>> {
        Err(Error::Unsupported("this backend has no runners of the old form".into()))
    }

    /// A batch of the old form, under the bridge.
    ///
    /// # Errors
    /// As [`Loaded::executor`].
    fn old_batch(&self, _options: BatchOptions) -> Result<Box<dyn BatchRunner>> {
        Err(Error::Unsupported("this backend has no batches of the old form".into()))
    }

    /// Bytes that the weights occupy where the backend keeps them (0 for weights read from the memory map).
    fn weight_bytes(&self) -> u64;

    /// Measures what the device could do at best; `None` where the backend has no device of its own.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn floor(&self) -> Result<Option<Floor>> {
        Ok(None)
    }
}

/// The state of one sequence.
pub trait Runner: Send {
    /// Runs one step and leaves the graph's outputs in `out`, in the order of `graph.outputs` (the vectors are reused).
    /// Positions `past .. past + T` of the caches are written.
    ///
    /// # Errors
    /// [`Error::ContextFull`], [`Error::Invalid`] (no tokens, more than the chunk, a token id beyond the table, a missing
    /// input), [`Error::Device`].
    fn step(&mut self, step: Step<'_>, out: &mut Vec<Output>) -> Result<()>;

    /// Bytes of KV cache, recurrent states (with the copy that [`Runner::keep_states`] makes) and scratch.
    fn memory_bytes(&self) -> u64;

    /// The largest position up to `past` at which a step may begin: `past` itself, but where the graph has recurrent states
    /// it is where they stand, or where they were kept, or 0.
    fn resume_at(&self, past: usize) -> usize {
        past
    }

    /// Keeps a copy of the recurrent states as they stand, in place of the one before, so that a step may begin there again.
    /// Does nothing for graphs without states.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn keep_states(&mut self) -> Result<()> {
        Ok(())
    }

    /// Runs a step with a clock around every kernel, slower than [`Runner::step`] and without its results; `None` where the
    /// backend has no such clock.
    ///
    /// # Errors
    /// As [`Runner::step`]; [`Error::Unsupported`] where the device cannot.
    fn profile(&mut self, _step: Step<'_>) -> Result<Option<Vec<KernelTime>>> {
        Ok(None)
    }

    /// Choosing tokens without the host, where this runner can.
    fn picker(&mut self) -> Option<&mut dyn Picker> {
        None
    }
}

/// What a device could do at best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floor {
    /// Bytes a second, read and written, of a kernel that copies.
    pub bandwidth: f64,
    /// Seconds of a dispatch that does next to nothing and waits for the one before it.
    pub dispatch: f64,
}

/// How tokens are chosen, as [`crate::sampler`] means it.
#[derive(Clone, Copy, Debug)]
pub struct Sampling<'a> {
    /// 0: the best token.
    pub temperature: f32,
    /// 0: all.
    pub top_k: usize,
    /// 1: all.
    pub top_p: f32,
    /// 0: all.
    pub min_p: f32,
    /// 1: none.
    pub repeat_penalty: f32,
    /// How many of the last tokens the penalty looks at.
    pub repeat_last_n: usize,
    /// Never chosen.
    pub forbidden: &'a [u32],
}

/// A runner that chooses tokens where the logits are, and feeds them without the host in between: token t + 1 is queued
/// while t is computed. The host learns the tokens in order through [`Picker::take`], one or more steps later.
pub trait Picker {
    /// Begins a generation: drops what is on its way. `recent` are the tokens so far, for the repetition penalty. `false`
    /// where these options are beyond what the device does: the caller then chooses tokens from logits itself.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn begin(&mut self, sampling: &Sampling<'_>, recent: &[u32]) -> Result<bool>;

    /// Queues a step whose `outputs` are 1 and chooses a token after it. `draw` is where in [0, 2^32) the draw falls.
    ///
    /// # Errors
    /// As [`Runner::step`].
    fn feed(&mut self, step: Step<'_>, draw: u32) -> Result<()>;

    /// Queues a step of the token that was chosen last, `past` being the positions before it, and chooses another.
    ///
    /// # Errors
    /// As [`Runner::step`].
    fn advance(&mut self, past: usize, draw: u32) -> Result<()>;

    /// Steps whose token was not taken.
    fn pending(&self) -> usize;

    /// Waits for the oldest of them and gives its token.
    ///
    /// # Errors
    /// [`Error::Device`]; [`Error::Invalid`] where no step is on its way or no token can be chosen, [`Error::Model`]
    /// where the logits are no finite numbers.
    fn take(&mut self) -> Result<u32>;

    /// Forgets what was not taken. The cache keeps what was written; the next step says where it begins.
    fn discard(&mut self);
}

/// Checks that every backend makes before a step.
///
/// # Errors
/// [`Error::Invalid`] and [`Error::ContextFull`], as [`Runner::step`] says.
pub fn check_step(step: &Step<'_>, options: &RunnerOptions) -> Result<()> {
    let t = step.tokens.len();
    if t == 0 || t > options.chunk {
        return Err(Error::Invalid(format!("a step takes 1 to {} tokens, not {t}", options.chunk)));
    }
    if step.outputs > t {
        return Err(Error::Invalid(format!("{} outputs of {t} tokens", step.outputs)));
    }
    match step.past.checked_add(t) {
        Some(n) if n <= options.ctx => Ok(()),
        n => Err(Error::ContextFull { needed: n.unwrap_or(usize::MAX), capacity: options.ctx }),
    }
}

/// Refuses sizes of 0, and contexts whose KV caches, stored as `kv`, the system would not give memory for: asking for it in
/// earnest would end the process.
///
/// # Errors
/// [`Error::Invalid`] for a size of 0, [`Error::Device`] where memory is short.
pub(crate) fn check_cache_memory(graph: &crate::ir::Graph, o: &runner::RunnerOptions, kv: KvType) -> Result<()> {
    bridge::check_size(o)?;
    // A state is there twice: as it stands, and as its snapshot.
    let states = graph.states.iter().try_fold(0usize, |sum, s| sum.checked_add(s.len.checked_mul(8)?));
    let one = graph.caches.iter().try_fold(states.unwrap_or(usize::MAX), |sum, d| {
        let bytes =
            kv.cpu_row_bytes(d.k_dim).checked_add(kv.cpu_row_bytes(d.stored_v_dim()))?.checked_mul(d.kv_heads)?;
        sum.checked_add(o.ctx.checked_mul(bytes)?)
    });
    let total = one.and_then(|n| n.checked_mul(o.sequences));
    // Reserving touches no memory; a request beyond what the machine has is refused here.
    let given = total.is_some_and(|n| Vec::<u8>::new().try_reserve_exact(n).is_ok());
    if given {
        return Ok(());
    }
    let size = total.map_or("more bytes than can be counted".into(), |n| format!("{} MiB", n >> 20));
    Err(Error::Device(format!(
        "the KV cache of {} positions takes {size}, which this machine does not give; ask for a shorter context (--ctx)",
        o.ctx.saturating_mul(o.sequences)
    )))
}
