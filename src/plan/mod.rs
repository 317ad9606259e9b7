//! The plan: a fused graph and what a device can do, turned into buffers and a list of dispatches.
//!
//! A [`Plan`] is pure data, made without a GPU and equal for equal input, so it can be printed, counted and tested on any
//! machine. It holds [`Schedule`]s over the same weights and caches: one for a single token (decode), one for up to
//! `max_tokens` of them (prefill), and on GPUs one for the few tokens between. Row counts are symbolic: a schedule is made
//! once, and the grid of each dispatch is a function of T, O and P that is evaluated while encoding, without any allocation.
//!
//! # How it is made
//!
//! 1. [`weights`](Weights): parts of one `norm_linears` that share a format are stacked into one matrix, every matrix is
//!    cut by rows into segments that fit a binding, small vectors (norms, biases, sinks) are laid out in one f32 buffer.
//!    Depends on the graph, the formats and the device only, and is done once a model.
//! 2. nodes ([`KernelGraph`]): what is fused on this device for this number of tokens, as ops that say what they are.
//! 3. lowering: every node becomes one [`Step`], or one a weight segment. Each activation is a column range of a
//!    *transient*, a piece of scratch that is written once and read afterwards.
//! 4. memory: transients whose lives do not overlap share a [`Scratch`] buffer.
//! 5. [`check()`]: replays the steps and refuses a plan that reads what was overwritten, binds a buffer both read and
//!    written in one dispatch, or exceeds a limit of the device.
//!
//! Deliberately absent: wgpu types, clocks, environment variables.

mod attention;
mod check;
mod cost;
mod expert_cache;
mod experts;
mod limits;
mod lower;
mod memory;
mod nodes;
mod phase;
mod pieces;
mod print;
mod product;
mod recurrent;
mod routed;
mod routing;
pub mod sample;
mod schedule;
mod simple;
mod sizes;
mod target;
mod totals;
mod weights;

pub use check::{check, check_shaders, check_step_shader};
pub use cost::{Cost, Sizes};
pub use expert_cache::{CachedMatrix, ExpertCache};
pub use nodes::{Elementwise, Epilogue, KernelGraph, KernelNode, KernelOp, Pack, Route, SharedDown, VectorPart};
pub use pieces::{Depth, Pieces};
pub use recurrent::{STATE_FRESH, STATE_SLOTS};
pub use schedule::{
    Binding, Buffer, BufferView, CacheBytes, CachePart, Count, Grid, HostCall, HostInput, InputBuffer, OutputView,
    RopeTable, Schedule, Scratch, Step, TransientBuffer,
};
pub use sizes::SPAN_WORDS;
pub use totals::Totals;
pub use weights::{Matrix, Segment, Vector, Weights, matrix_in_segments};

/// How a kernel uses a binding.
pub use crate::kernels::Access;

use sizes::Resident;
use target::Target;

use crate::{
    error::Result,
    graph::ExpertSlots,
    ir::Graph,
    kernels::{Reduction, Tiles, tiles::DeviceFeatures},
    quant::{DType, KvType},
};

/// What a device can do, as far as the plan cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Bytes of a storage binding.
    pub max_binding: u64,
    /// Bytes of a buffer.
    pub max_buffer: u64,
    /// Workgroups a dimension of a dispatch.
    pub max_workgroups: u32,
    /// Invocations of a workgroup.
    pub max_invocations: u32,
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u32,
    /// Storage buffers a kernel may bind.
    pub storage_bindings: u32,
    /// Offsets of bindings are multiples of this.
    pub alignment: u64,
    /// Whether a processor emulates the device: it wants kernels without barriers.
    pub software: bool,
    /// What kernels may use beyond WebGPU's base.
    pub features: DeviceFeatures,
    /// How products of many rows store and multiply their tiles, unless [`Options::tiles`] says otherwise.
    pub tiles: Tiles,
}

impl Caps {
    /// The limits that every WebGPU device has (WebGPU, "Limits", the defaults).
    pub fn webgpu_defaults() -> Self {
        Caps {
            max_binding: 128 << 20,
            max_buffer: 256 << 20,
            max_workgroups: 65_535,
            max_invocations: 256,
            workgroup_bytes: 16 << 10,
            storage_bindings: 8,
            alignment: 256,
            software: false,
            features: DeviceFeatures::default(),
            tiles: Tiles::F32,
        }
    }

    /// The reduction that suits this device.
    pub fn reduction(&self) -> Reduction {
        if self.software { Reduction::Invocation } else { Reduction::Workgroup }
    }
}

/// What the plan is for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Positions of the KV caches.
    pub ctx: usize,
    /// Most tokens of a step. The plan may take fewer at a time where buffers would not fit; see
    /// [`Schedule::max_tokens`].
    pub ubatch: usize,
    /// Storage of keys and values.
    pub kv: KvType,
    /// The reduction to use; `None`: the one that suits the device.
    pub reduction: Option<Reduction>,
    /// How products of many rows store and multiply their tiles; `None`: as suits the device. Where a matrix's
    /// format is not taken, or the device cannot run it, the base is.
    pub tiles: Option<Tiles>,
    /// Whether sums of several invocations meet within subgroups first; `None`: where the device has them and reports the size that
    /// a kernel sees.
    pub subgroups: Option<bool>,
    /// Plan for rows of so many sequences with caches of their own, in any mixture: every row of a step names its sequence
    /// and its position ([`Buffer::Rows`]). `None`: one sequence, whose rows follow each other.
    pub sequences: Option<usize>,
    /// Slots for the experts of each layer, for weights of [`weights_by_expert`]: a single token finds its experts there, and brings those
    /// that are missing; so do few tokens ([`Plan::small_batch`]) where all experts that they can choose have slots at once. `None`: kernels
    /// read all experts where they lie, as [`Plan::prefill`] always does.
    pub expert_slots: Option<ExpertSlots>,
    /// Gives every transient a buffer of its own and [`CANARY_BYTES`] bytes behind it inside the binding, which a kernel that
    /// writes too far would hit. For tests.
    pub canaries: bool,
}

impl Options {
    /// Options without anything special.
    pub fn new(ctx: usize, ubatch: usize, kv: KvType) -> Self {
        Options {
            ctx,
            ubatch,
            kv,
            reduction: None,
            tiles: None,
            subgroups: None,
            sequences: None,
            expert_slots: None,
            canaries: false,
        }
    }
}

/// Most tokens of a step that [`Plan::small_batch`] takes: rows of x that a lane's registers hold beside its group of weights.
pub const SMALL_BATCH_TOKENS: usize = 8;

/// Bytes behind each transient where [`Options::canaries`] is on.
pub const CANARY_BYTES: u64 = 256;

/// Bytes between the uniforms of two steps, and the most that a uniform may have.
pub const PARAMS_STRIDE: u64 = 256;

/// Bytes of the buffer that stands in for operands that a dispatch does not have.
pub const ZERO_BYTES: u64 = 256;

/// What a schedule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// One token.
    Decode,
    /// Few tokens, which share each group of weights that is read.
    SmallBatch,
    /// Many tokens.
    Prefill,
}

impl Plan {
    /// Bytes of [`Buffer::Spans`].
    pub fn span_bytes(&self) -> u64 {
        sizes::span_bytes(self.sequences, self.prefill.max_tokens.max(self.decode.max_tokens))
    }

    /// Bytes of the buffer to which the host writes what it has computed.
    pub fn host_bytes(&self) -> u64 {
        4 * (self.prefill.max_tokens.max(self.decode.max_tokens) * self.host_stride) as u64
    }

    /// Bytes of the buffer in which the host reads what it computes with; 0 where it computes nothing.
    pub fn host_read_bytes(&self) -> u64 {
        let call = |c: &HostCall, rows: usize| c.inputs.iter().map(|i| i.bytes(rows)).sum::<u64>();
        let schedules = self.schedules().into_iter().filter_map(|s| s.1);
        let most = schedules.flat_map(|s| s.host_calls.iter().map(|c| call(c, s.max_tokens))).max();
        most.map_or(0, |bytes| bytes.next_multiple_of(8))
    }

    /// Bytes of all buffers that a runner needs beside the weights, but for those of sampling and of reading back.
    pub fn buffer_bytes(&self) -> u64 {
        let caches: u64 = self.caches.iter().map(|c| c.keys + c.values).sum();
        let states: u64 = self.states.iter().sum();
        self.scratch_sizes().iter().sum::<u64>() + caches + states + self.expert_cache_bytes()
    }

    /// Bytes of each of these buffers, without those of caches, states and slots of experts.
    pub fn scratch_sizes(&self) -> Vec<u64> {
        let schedules = self.schedules().into_iter().filter_map(|s| s.1);
        let scratch = schedules.flat_map(|s| &s.scratch).map(|s| s.bytes);
        let rows = self.prefill.max_tokens.max(self.decode.max_tokens) as u64;
        let inputs = self.inputs.iter().map(|i| 4 * rows * i.stride as u64);
        let ropes = self.ropes.iter().map(|r| r.bytes);
        let host = Some(self.host_bytes()).filter(|bytes| *bytes > 0);
        scratch.chain(inputs).chain(ropes).chain(host).chain([self.span_bytes()]).collect()
    }

    /// Bytes of the slots of experts, and of what says which experts are in them.
    pub fn expert_cache_bytes(&self) -> u64 {
        self.expert_caches.iter().map(ExpertCache::total_bytes).sum()
    }

    /// The schedule of a step of so many tokens and outputs: its number, as in [`Plan::schedules`].
    pub fn choose(&self, tokens: usize, outputs: usize) -> usize {
        let fits = |s: &Schedule| tokens <= s.max_tokens && outputs <= s.max_outputs;
        match tokens {
            1 => 0,
            _ if self.small_batch.as_ref().is_some_and(fits) => 1,
            _ => 2,
        }
    }

    /// Decode, small batch and prefill, by name.
    pub fn schedules(&self) -> [(&'static str, Option<&Schedule>); 3] {
        [("decode", Some(&self.decode)), ("small batch", self.small_batch.as_ref()), ("prefill", Some(&self.prefill))]
    }
}

/// Bytes of results that a step hands back at once, as a rule: more outputs are computed in several steps.
const READBACK: u64 = 32 << 20;

/// Everything that a backend needs to run a graph.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For T = 1.
    pub decode: Schedule,
    /// For T from 2 to [`Schedule::max_tokens`], at most [`SMALL_BATCH_TOKENS`]: each weight that is read serves all of them, and no
    /// tile is made that would be mostly empty. `None` where [`Plan::prefill`] suits few tokens as well.
    pub small_batch: Option<Schedule>,
    /// For T up to [`Schedule::max_tokens`].
    pub prefill: Schedule,
    /// Tables of the rotations.
    pub ropes: Vec<RopeTable>,
    /// Sizes of the caches.
    pub caches: Vec<CacheBytes>,
    /// Sequences that the plan is for.
    pub sequences: usize,
    /// Bytes of each recurrent state, in [`STATE_SLOTS`] slots for every sequence.
    pub states: Vec<u64>,
    /// Numbers that the caller gives.
    pub inputs: Vec<InputBuffer>,
    /// Elements of the longest row that the host computes; 0 where it computes none.
    pub host_stride: usize,
    /// Slots of experts, in the order of the layers.
    pub expert_caches: Vec<ExpertCache>,
    /// How tokens are chosen on the device; `None` for graphs without logits.
    pub sampling: Option<sample::Sampling>,
    /// Transformer layers, for averages.
    pub layers: usize,
}

/// Lays out the weights of a graph.
///
/// # Errors
/// [`crate::Error::Unsupported`] where a matrix's rows cannot be read by the kernels, [`crate::Error::Device`] where one
/// row does not fit a binding.
pub fn weights(graph: &Graph, dtypes: &[DType], caps: &Caps) -> Result<Weights> {
    weights::layout(graph, dtypes, caps, false)
}

/// As [`weights()`], the matrices of experts that a router chooses among cut between experts: for plans with [`Options::expert_slots`].
///
/// # Errors
/// As [`weights()`]; [`crate::Error::Device`] where an expert does not fit a binding.
pub fn weights_by_expert(graph: &Graph, dtypes: &[DType], caps: &Caps) -> Result<Weights> {
    weights::layout(graph, dtypes, caps, true)
}

/// Plans a graph: fused or not, any op is lowered.
///
/// # Errors
/// [`crate::Error::Unsupported`] for sizes that no kernel takes, [`crate::Error::Device`] where a buffer does not fit the
/// device's limits, by name and with what would help.
pub fn plan(graph: &Graph, weights: &Weights, caps: &Caps, options: &Options) -> Result<Plan> {
    let states = recurrent::states(graph, caps, options)?;
    let expert_caches = expert_cache::caches(graph, weights, caps, options)?;
    let resident = Resident::new(graph, states, expert_caches, caps, options)?;
    let schedule = |o: &Options, phase: Phase| lower::schedule(graph, weights, &resident, Target::new(caps, o, phase));
    let decode = schedule(&Options { ubatch: 1, ..*options }, Phase::Decode)?;
    let small_batch = match options.reduction.unwrap_or(caps.reduction()) {
        Reduction::Workgroup if options.ubatch > 1 => {
            Some(schedule(&Options { ubatch: options.ubatch.min(SMALL_BATCH_TOKENS), ..*options }, Phase::SmallBatch)?)
        }
        Reduction::Workgroup | Reduction::Invocation => None,
    };
    let prefill = schedule(options, Phase::Prefill)?;
    let Resident { ropes, caches, states, inputs, host_stride, expert_caches, .. } = resident;
    let plan = Plan {
        sampling: sample::sampling(
            graph,
            [Some(&decode), small_batch.as_ref(), Some(&prefill)],
            caps,
            options.sequences.unwrap_or(1),
        )?,
        decode,
        small_batch,
        prefill,
        ropes,
        caches,
        sequences: options.sequences.unwrap_or(1),
        states,
        inputs,
        host_stride,
        expert_caches,
        layers: graph.nodes.iter().filter_map(|n| n.layer).max().map_or(0, |l| l as usize + 1),
    };
    check(&plan, weights, caps)?;
    Ok(plan)
}
