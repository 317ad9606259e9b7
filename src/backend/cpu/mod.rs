//! The CPU backend: fuses and lays out a graph once, then runs its steps on threads with SIMD kernels.
//!
//! Reading order. Foundations: [`pool`] (threads), `simd_level` and `simd` (instruction sets and vectors), `prefetch` (loading
//! memory into caches ahead of its use), `buffer` (aligned memory). Matrix products: `act` (activations as int8 quants),
//! `kernel` (dot products by weight format), `weight` (a weight and its kernels), `weight_roles` (what each weight is for).
//! Ops: `parallel` (how ops share threads), `row_ops`, `matmul`, `router`, `experts`, `recurrent`, `cache` and `kv_quants` (the
//! KV cache), `attend`. Steps: `layout` (which value lives in which buffer), `sequence` (the memory of one sequence), `run` (the
//! nodes of a step), `profile` (their times), `runner` (steps and their rows); `host_experts` (experts that a GPU leaves to the
//! processor).
//!
//! A step reads the weights of routed experts only. Weights stay in the memory map as the file has them, or, where that is
//! faster, in a packed copy made at load, whose pages of the map are released. Quantised weights are multiplied in integers:
//! an activation becomes one int8 quant, or two on request. Float weights, norms, routers and attention are computed in f32.
//! Results do not depend on the number of threads.
//!
//! Deliberately absent: model architectures, the plan of the GPU backend.

// Kernels walk several arrays with one index, and iterators over registers hide what is computed.
#![allow(clippy::needless_range_loop)]

mod act;
mod attend;
mod buffer;
mod cache;
mod kv_quants;
mod experts;
mod host_experts;
mod kernel;
mod simd;
mod layout;
pub mod pool;
mod matmul;
mod needs;
mod packing;
mod parallel;
mod profile;
mod recurrent;
mod router;
mod row_ops;
mod run;
mod runner;
mod sequence;
mod prefetch;
mod simd_level;
mod training;
mod weight;
mod weight_roles;

pub use host_experts::load_experts;
pub use needs::{HostBytes, memory_of};
pub use simd_level::{SimdLevel, best as best_simd_level};
pub use training::train;

use super::{
    Loaded, OnProgress, Program, Progress,
    arena::Arena,
    host::HostExperts,
    runner::{Executor, RunnerOptions},
};
use crate::{
    error::{Error, Result},
    file::Tensor,
    graph,
    ir::{Graph, Linear, Node, Op, RESIDUAL, ValueId, WeightId},
    ops::linear::Activations,
};
use layout::Layout;
use parallel::Env;
use pool::Pool;
use std::sync::Arc;
use weight::Weight;

/// How a model is loaded onto the CPU.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The number of threads that compute, the calling thread included; by default one for each physical core. Workers spin for
    /// about 60 µs after a job and then sleep. With 1 there are no workers: all work runs on the calling thread, for hosts that
    /// schedule the processor themselves. Results do not depend on this number.
    pub threads: Option<usize>,
    /// The instruction set of all kernels; by default the fastest one that the processor has.
    pub simd_level: Option<SimdLevel>,
    /// How activations are rounded before they are multiplied with quantised weights. The default, [`Activations::Int8`] with a
    /// scale for every 32 activations, is as precise as llama.cpp with formats of 32 weights a block, and more precise than
    /// llama.cpp with k-quants (a scale for every 256). The output matrix, whose rounding errors reach the logits undamped,
    /// always gets 16 bits ([`Activations::of`]). On the demo model and Shakespeare's text the distribution of the next token
    /// differs from exact arithmetic by a Kullback-Leibler divergence of 5e-4 in Q4_K_M (llama.cpp: 14e-4) and in Q8_0
    /// (llama.cpp: 5e-4). [`Activations::Int16`] keeps products within 1e-7 of f32 arithmetic (divergence 1e-7) at half the
    /// prefill speed. [`Activations::F32`] counts as [`Activations::Int16`].
    pub activations: Activations,
    /// Whether quantised weights are copied at load to a layout that kernels read faster, where the SIMD level has one. The copy
    /// takes a second a gigabyte or less and as much memory as the file, whose own pages are released. Otherwise weights are
    /// read from the memory map. Copies that do not fit into `memory` are not made, with a warning: weights that every token reads are
    /// copied first, then the experts of as many layers as there is room for.
    pub repack: bool,
    /// Bytes of memory for weights; by default nine tenths of what the system has free when the model is loaded. Copies of `repack`
    /// take no more; where the weights that stay in the memory map are larger than what is left, the chosen experts are asked for
    /// ahead of their use, for the system will have dropped some.
    pub memory: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Options { threads: None, simd_level: None, activations: Activations::Int8, repack: true, memory: None }
    }
}

/// A loaded model, which all its runners share.
struct Model {
    pool: Pool,
    simd_level: SimdLevel,
    activations: Activations,
    program: Program,
    /// The program's graph, fused.
    graph: Graph,
    layout: Layout,
    /// The output that hidden states are made of, by its place among the graph's.
    residual: Option<usize>,
    weights: Vec<Weight>,
    /// Who computes the experts that are not here.
    host: Option<Arc<dyn HostExperts>>,
    /// Ids of experts among which some are not here.
    local_ids: Vec<ValueId>,
    /// Where weights do not stay in memory: what is asked for ahead.
    ahead: Option<packing::Ahead>,
    /// By weight id, the dequantised f32 values of weights that ops read as vectors; empty for matrices.
    vectors: Vec<Vec<f32>>,
}

/// Loads a program onto the CPU; `progress` hears of every weight.
///
/// # Errors
/// [`Error::Invalid`] for 0 threads; [`Error::Unsupported`] for a SIMD level that the processor lacks; [`Error::Model`] for a weight
/// without elements.
pub fn load(program: Program, options: &Options, progress: OnProgress<'_>) -> Result<Box<dyn Loaded>> {
    graph::inference_only(&program.graph)?;
    Ok(Box::new(Handle(Arc::new(prepare(program, options, progress)?))))
}

/// As [`load`], of a graph with regions that `host` computes.
///
/// # Errors
/// As [`load`].
pub fn load_with_host(
    program: Program,
    host: Arc<dyn HostExperts>,
    options: &Options,
    progress: OnProgress<'_>,
) -> Result<Box<dyn Loaded>> {
    graph::inference_only(&program.graph)?;
    let model = Model { host: Some(host), ..prepare(program, options, progress)? };
    Ok(Box::new(Handle(Arc::new(model))))
}

/// Weights in place, packed where that is wanted.
fn prepare(program: Program, options: &Options, progress: OnProgress<'_>) -> Result<Model> {
    let simd_level = options.simd_level.unwrap_or_else(simd_level::best);
    check_available(simd_level)?;
    let pool = Pool::new(options.threads.unwrap_or_else(pool::default_threads))?;
    let graph = graph::fuse(&program.graph);
    let roles = weight_roles::roles(&graph);
    let total: u64 = program.weights.iter().map(|t| t.byte_len() as u64).sum();
    let packing = packing::Packing::new(&program, &graph, &roles, simd_level, options);
    let ahead = packing.larger_than_memory.then(|| packing::Ahead::new(&program, &graph, &packing));
    let (mut done, mut arena) = (0, Arena::default());
    let (mut weights, mut vectors) = (vec![], vec![]);
    for (i, ((decl, tensor), role)) in graph.weights.iter().zip(program.weights.iter()).zip(&roles).enumerate() {
        if tensor.rows() == 0 || tensor.cols() == 0 {
            return Err(Error::Model(format!("{} has no elements", decl.name)));
        }
        vectors.push(if role.vector { dequantized(tensor)? } else { vec![] });
        // Router logits choose experts, so they are computed from f32 activations, whatever the format of the router matrix.
        let exact = if role.router && !tensor.dtype().is_float() { Some(as_f32_tensor(tensor)?) } else { None };
        let mut weight = Weight::new(exact.unwrap_or_else(|| tensor.clone()), simd_level);
        if packing.copied[i] {
            weight.pack(simd_level, &pool, &mut arena, &mut |n| {
                progress(Progress { phase: "packing weights", done: done + n, total })
            })?;
        }
        weights.push(weight);
        done += tensor.byte_len() as u64;
        progress(Progress { phase: "packing weights", done, total })?;
    }
    let layout = Layout::new(&graph);
    let residual = graph.outputs.iter().position(|(name, _)| name == RESIDUAL);
    tracing::debug!(
        threads = pool.threads(),
        simd_level = simd_level.name(),
        nodes = graph.nodes.len(),
        "cpu backend loaded"
    );
    let activations = options.activations;
    let local = |n: &Node| matches!(n.op, Op::LocalIds { .. }).then(|| n.outputs[0]);
    let local_ids = graph.nodes.iter().filter_map(local).collect();
    let host = None;
    Ok(Model {
        pool,
        simd_level,
        activations,
        program,
        graph,
        layout,
        residual,
        weights,
        host,
        local_ids,
        ahead,
        vectors,
    })
}

fn check_available(simd_level: SimdLevel) -> Result<()> {
    if simd_level.is_available() {
        return Ok(());
    }
    let have: Vec<&str> = SimdLevel::available().into_iter().map(SimdLevel::name).collect();
    Err(Error::Unsupported(format!("this processor has no {}; it has {}", simd_level.name(), have.join(", "))))
}

/// A tensor's values as f32, row after row.
fn dequantized(tensor: &Tensor) -> Result<Vec<f32>> {
    let mut out = vec![0.0; tensor.rows() * tensor.cols()];
    for (r, row) in out.chunks_exact_mut(tensor.cols()).enumerate() {
        crate::quant::dequantize(tensor.dtype(), tensor.row(r), row)?;
    }
    Ok(out)
}

/// The same tensor stored as f32.
fn as_f32_tensor(tensor: &Tensor) -> Result<Tensor> {
    Tensor::from_f32(tensor.shape().to_vec(), dequantized(tensor)?)
}

struct Handle(Arc<Model>);

impl Model {
    fn describe(&self) -> String {
        let n = self.pool.threads();
        let own = format!("cpu ({n} thread{}, {})", if n == 1 { "" } else { "s" }, self.simd_level.name());
        match &self.host {
            None => own,
            Some(host) => format!("{own}, experts on {}", host.describe()),
        }
    }

    fn weight_bytes(&self) -> u64 {
        self.weights.iter().map(Weight::packed_bytes).sum()
    }
}

impl Loaded for Handle {
    fn describe(&self) -> String {
        self.0.describe()
    }

    fn program(&self) -> &Program {
        &self.0.program
    }

    fn executor(&self, options: RunnerOptions) -> Result<Box<dyn Executor>> {
        Ok(Box::new(runner::CpuExecutor::new(self.0.clone(), options)?))
    }

    fn weight_bytes(&self) -> u64 {
        self.0.weight_bytes()
    }
}

/// One matrix product by itself, as the ops compute it: `weight` `[rows, cols]` times the rows of `x` `[T, cols]` → `[T, rows]`,
/// with the instructions of `simd_level`. With `repack` the weight is packed first, where the SIMD level has packed kernels
/// (see [`Options::repack`]).
///
/// # Errors
/// [`Error::Unsupported`] for a SIMD level that the processor lacks; [`Error::Invalid`] where `x` is no whole number of rows.
pub fn multiply(
    weight: &Tensor,
    x: &[f32],
    simd_level: SimdLevel,
    activations: Activations,
    repack: bool,
    pool: &Pool,
) -> Result<Vec<f32>> {
    check_available(simd_level)?;
    if weight.cols() == 0 || x.len() % weight.cols() != 0 {
        return Err(Error::Invalid(format!("{} activations for rows of {}", x.len(), weight.cols())));
    }
    let tokens = x.len() / weight.cols();
    let mut weights = [Weight::new(weight.clone(), simd_level)];
    if repack {
        weights[0].pack(simd_level, pool, &mut Arena::default(), &mut |_| Ok(()))?;
    }
    let all_tokens: Vec<u32> = (0..tokens as u32).collect();
    let scratch = weight::ScratchPool::new(pool.threads());
    let env = Env { pool, simd_level, scratch: &scratch, weights: &weights, vectors: &[], all_tokens: &all_tokens };
    let mut acts = act::Acts::default();
    if weights[0].is_quantised() {
        acts.fill(pool, simd_level, activations, x, weight.cols())?;
    }
    let mut outs = [buffer::Aligned::zeroed(tokens * weight.rows())];
    let part = [Linear { weight: WeightId(0), bias: None }];
    let input = weight::Input { floats: x, acts: &acts };
    matmul::linears(env, input, tokens, &part, &mut outs, matmul::Epilogue::Plain)?;
    Ok(outs[0][..tokens * weight.rows()].to_vec())
}

/// The memory bandwidth that `threads` threads reach together, in bytes a second: the best of a few sweeps over 256 MiB. It is
/// the roofline of decoding: a token cannot take less time than reading its weights.
///
/// # Errors
/// As `Pool::new`.
pub fn measure_bandwidth(threads: usize) -> Result<f64> {
    const BLOCK: usize = 1 << 16;
    let pool = Pool::new(threads)?;
    let simd_level = simd_level::best();
    let data = vec![1.0f32; 64 << 20];
    let sums: Vec<std::sync::atomic::AtomicU32> = (0..threads).map(|_| Default::default()).collect();
    let mut best = 0.0f64;
    for _ in 0..6 {
        let start = std::time::Instant::now();
        pool.run(data.len() / BLOCK, &|w, i| {
            // SAFETY: the SIMD level is this processor's; the slice is a whole number of steps.
            let s = unsafe { simd_level::dispatch(simd_level, row_ops::Sum(&data[i * BLOCK..(i + 1) * BLOCK])) };
            // Keeps the reading from being optimised away.
            sums[w].fetch_add(s as u32, std::sync::atomic::Ordering::Relaxed);
        })?;
        best = best.max((data.len() * 4) as f64 / start.elapsed().as_secs_f64());
    }
    Ok(best)
}
