//! Backends: where a graph becomes numbers.
//!
//! `reference` is the oracle: every op's own reference code, nothing else. `cpu` is fast on any processor, `wgpu` runs a
//! plan on a GPU. All three take the same [`Program`] and answer through the same two traits: a [`Loaded`] model (weights
//! where the backend wants them) and the [`runner::Executor`] under its runners (KV caches, states and scratch of some sequences).
//!
//! Deliberately absent: model architectures, tokens' text, sampling.

mod arena;
pub mod cpu;
pub mod host;
pub mod ranks;
pub mod reference;
pub mod runner;
pub mod stages;
pub mod training;
#[cfg(feature = "gpu")]
pub mod wgpu;

pub use crate::graph::Program;
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

/// Who hears of a load's progress, and stops it by an error.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress) -> Result<()>;

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
    fn executor(&self, options: runner::RunnerOptions) -> Result<Box<dyn runner::Executor>>;

    /// Makes a runner: allocates KV caches, recurrent states and scratch of its sequences.
    ///
    /// # Errors
    /// As [`Loaded::executor`].
    fn runner(&self, options: runner::RunnerOptions) -> Result<runner::Runner> {
        Ok(runner::Runner::new(self.executor(options)?, self.program(), options))
    }

    /// Bytes that the weights occupy where the backend keeps them (0 for weights read from the memory map).
    fn weight_bytes(&self) -> u64;

    /// Measures what the device could do at best; `None` where the backend has no device of its own.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn roofline(&self) -> Result<Option<Roofline>> {
        Ok(None)
    }
}

/// What a device could do at best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roofline {
    /// Bytes a second, read and written, of a kernel that copies.
    pub bandwidth: f64,
    /// Seconds of a dispatch that does next to nothing and waits for the one before it.
    pub dispatch: f64,
}

/// Refuses sizes of 0.
///
/// # Errors
/// [`Error::Invalid`].
pub(crate) fn check_size(o: &runner::RunnerOptions) -> Result<()> {
    if o.ctx == 0 || o.ubatch == 0 || o.sequences == 0 {
        return Err(Error::Invalid(
            "a context and a step have at least one token, and a runner has at least one sequence".into(),
        ));
    }
    Ok(())
}

/// Refuses sizes of 0, and contexts whose KV caches, stored as `kv`, the system would not give memory for: asking for it in
/// earnest would end the process.
///
/// # Errors
/// [`Error::Invalid`] for a size of 0, [`Error::Device`] where memory is short.
pub(crate) fn check_cache_memory(graph: &crate::ir::Graph, o: &runner::RunnerOptions, kv: KvType) -> Result<()> {
    check_size(o)?;
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
    let gib = |n: usize| n as f64 / (1u64 << 30) as f64;
    let size = total.map_or("more bytes than can be counted".into(), |n| match gib(n) {
        x if x >= 1024.0 => format!("{:.1} TiB", x / 1024.0),
        x => format!("{x:.1} GiB"),
    });
    Err(Error::Device(format!(
        "the KV cache of {} positions takes {size}, which this machine does not give; ask for a shorter context",
        o.ctx.saturating_mul(o.sequences)
    )))
}
