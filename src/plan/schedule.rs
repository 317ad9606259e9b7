//! What a plan is made of, as plain data: buffers and where values lie in them, dispatches and their grids, and the schedule of
//! one step of the model.

use super::{Cost, Depth, KernelGraph, Sizes};
use crate::{
    ir::{Rope, Rows},
    kernels::{Access, Variant},
};
use std::ops::Range;

/// A buffer of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Buffer {
    /// The uniform that changes with every step: [`crate::kernels::params::Frame`].
    Frame,
    /// The uniforms of all steps, [`super::PARAMS_STRIDE`] apart. One buffer a schedule.
    Params,
    /// Token ids of the step, u32 `[T]`.
    Tokens,
    /// Sequence and position of each row, u32 `[T, 2]`; see [`super::Options::sequences`].
    Rows,
    /// For each sequence the slots of its recurrent states and its rows in the step: [`crate::kernels::params::Span`] for each,
    /// then u32 rows.
    Spans,
    /// Zeros, for operands that a dispatch does not have.
    Zero,
    /// All vectors: [`super::Weights::vectors`].
    Vectors,
    /// A segment of a matrix: [`super::Weights::matrices`].
    Matrix {
        /// Which matrix.
        matrix: u32,
        /// Which of its segments.
        segment: u32,
    },
    /// Slots of a matrix of experts: [`super::ExpertCache::matrices`].
    ExpertSlots {
        /// Which of [`super::Plan::expert_caches`].
        cache: u32,
        /// Which of its matrices.
        part: u32,
    },
    /// Which experts are in slots, and the biases of these: [`super::Plan::expert_caches`].
    ExpertCache(u32),
    /// Cosines and sines of a rotation: [`super::Plan::ropes`].
    Rope(u32),
    /// Numbers that the caller gives: [`super::Plan::inputs`].
    Input(u32),
    /// What the host has computed for a region of the graph: [`HostCall`]. One buffer for all regions, one after the other.
    Host(u32),
    /// Keys of a part of a cache, `[units, ctx, k_dim]`: [`CachePart`].
    Keys {
        /// Which cache.
        cache: u32,
        /// Which of its parts.
        part: u32,
    },
    /// Values of a part of a cache, `[units, ctx, v_dim]`.
    Values {
        /// Which cache.
        cache: u32,
        /// Which of its parts.
        part: u32,
    },
    /// A recurrent state, `[sequences, slots, ...]`: [`super::Plan::states`].
    State(u32),
    /// Working memory of one schedule: [`Schedule::scratch`].
    Scratch(u32),
    /// What sampling on the device needs: [`super::Plan::sampling`].
    Sampling(Part),
}

/// The buffers of sampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// What each sequence wants: [`super::sample::Settings`] and [`super::sample::FORBIDDEN`] ids, `[sequences]`.
    Settings,
    /// u32 `[sequences, STATE_WORDS]`: how many tokens so far, the last choice (0 where it failed), two words of room, then the ring
    /// of [`super::sample::RING`] recent tokens.
    State,
    /// [`super::sample::Choice`] `[choices]`, written for every step.
    Choices,
    /// Bits of tokens that are allowed, u32 `[choices, ceil(V / 32)]`.
    Masks,
    /// Keys of the logits, u32 `[choices, V]`.
    Keys,
    /// The largest key of each 64, u32 `[choices, ceil(V / 64)]`.
    Maxima,
    /// Ids that were chosen, [`super::sample::NOTHING`] or [`super::sample::BROKEN`], u32 `[choices]`.
    Chosen,
}

impl Part {
    /// All parts, in order.
    pub const ALL: [Part; 7] =
        [Part::Settings, Part::State, Part::Choices, Part::Masks, Part::Keys, Part::Maxima, Part::Chosen];

    /// A label for the buffer.
    pub fn name(self) -> &'static str {
        match self {
            Part::Settings => "sampler settings",
            Part::State => "recent tokens",
            Part::Choices => "choices",
            Part::Masks => "token masks",
            Part::Keys => "logit keys",
            Part::Maxima => "largest keys",
            Part::Chosen => "chosen",
        }
    }
}

/// Where a value lies: a column range of a buffer of rows. In elements (of 4 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferView {
    /// The buffer; for scratch, until memory is assigned, the transient.
    pub buffer: Buffer,
    /// First column.
    pub offset: u32,
    /// From row to row.
    pub stride: u32,
}

/// A buffer given to a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The name in the shader.
    pub name: &'static str,
    /// The buffer.
    pub buffer: Buffer,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// Uniform, read, or read and write.
    pub access: Access,
    /// For scratch: which transient the kernel expects there, or puts there.
    pub transient: Option<u32>,
}

/// What a count of rows follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// T.
    Tokens,
    /// O.
    Outputs,
    /// 1.
    One,
    /// So many.
    Fixed(u32),
}

impl From<Rows> for Count {
    fn from(r: Rows) -> Self {
        match r {
            Rows::Tokens => Count::Tokens,
            Rows::Outputs => Count::Outputs,
            Rows::Fixed(n) => Count::Fixed(n as u32),
        }
    }
}

/// Workgroups of a dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// `(x, ceil(count * per_row / tile), z)`.
    Direct {
        /// Workgroups in x.
        x: u32,
        /// What the rows follow.
        count: Count,
        /// Rows of the kernel for each of these.
        per: u32,
        /// Rows of a workgroup.
        tile: u32,
        /// Workgroups in z.
        z: Depth,
    },
    /// Read by the device from a buffer.
    Indirect {
        /// The buffer.
        buffer: Buffer,
        /// First byte.
        offset: u64,
        /// The transient expected there.
        transient: u32,
    },
}

impl Grid {
    /// The workgroups for these sizes; `None` where the device reads them from a buffer.
    pub fn eval(&self, s: Sizes) -> Option<[u32; 3]> {
        let Grid::Direct { x, count, per, tile, z } = *self else { return None };
        let rows = match count {
            Count::Tokens => s.tokens,
            Count::Outputs => s.outputs,
            Count::One => 1,
            Count::Fixed(n) => n,
        };
        Some([x, (rows * per).div_ceil(tile.max(1)), z.eval(s)])
    }
}

/// One dispatch.
#[derive(Clone, Debug)]
pub struct Step {
    /// The op that it is part of, for printing.
    pub op: &'static str,
    /// The op's layer.
    pub layer: Option<u32>,
    /// Kernel, formats, numbers.
    pub variant: Variant,
    /// Every binding of the kernel but the uniforms.
    pub bindings: Vec<Binding>,
    /// The uniform `p`.
    pub params: Vec<u8>,
    /// Workgroups.
    pub grid: Grid,
    /// Bytes that it has to read.
    pub reads: Cost,
    /// Bytes that it writes.
    pub writes: Cost,
}

impl Step {
    /// Of a dispatch whose work exceeds `most`, and which can be cut: its workgroups in y from `first` on that stay within. `None`
    /// where it is run as a whole.
    pub fn part(&self, s: Sizes, first: u32, most: u64) -> Option<Range<u32>> {
        // Attention alone grows with the context beyond all bounds.
        let Grid::Direct { z: Depth::Pieces(_), .. } = self.grid else { return None };
        let (work, rows) = (self.reads.work(s), self.grid.eval(s)?[1]);
        if work <= most && first == 0 {
            return None;
        }
        let fit = u128::from(rows) * u128::from(most) / u128::from(work.max(1));
        let fit = u32::try_from(fit).unwrap_or(u32::MAX).max(1);
        Some(first..first.saturating_add(fit).min(rows))
    }
}

/// Working memory that several transients share one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// Bytes.
    pub bytes: u64,
    /// Whether dispatches read their workgroups from it.
    pub indirect: bool,
}

/// A piece of scratch that is written, then read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransientBuffer {
    /// Bytes, canary included.
    pub bytes: u64,
    /// Which scratch buffer holds it.
    pub scratch: u32,
    /// Whether dispatches read their workgroups from it.
    pub indirect: bool,
    /// Whether the caller reads it after the last step.
    pub output: bool,
}

/// A result that the caller reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputView {
    /// Its name in the graph.
    pub name: String,
    /// T or O.
    pub rows: Rows,
    /// Columns.
    pub cols: usize,
    /// Whether it is u32.
    pub ids: bool,
    /// Whether it is [`crate::ir::RESIDUAL`], of which single rows are asked for.
    pub residual: bool,
    /// Where it lies.
    pub view: BufferView,
    /// The transient expected there, where it is scratch.
    pub transient: Option<u32>,
}

/// Something that the host reads of a step that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostInput {
    /// Where it lies.
    pub view: BufferView,
    /// Columns.
    pub cols: usize,
    /// The transient expected there, where it is scratch.
    pub transient: Option<u32>,
}

impl HostInput {
    /// Bytes of so many rows, from the first row's start to the last one's end, padding included.
    pub fn bytes(&self, rows: usize) -> u64 {
        4 * rows as u64 * u64::from(self.view.stride)
    }
}

/// What the host computes between two dispatches: it reads rows of T tokens, and leaves one row for each in [`Buffer::Host`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCall {
    /// The number of the region of the graph.
    pub region: u32,
    /// The transformer layer.
    pub layer: Option<u32>,
    /// The first dispatch behind those that make what it reads.
    pub before: usize,
    /// The first dispatch that reads its result: those between the two run while the host computes.
    pub needed: usize,
    /// What it reads, in the order of the region's inputs.
    pub inputs: Vec<HostInput>,
    /// Columns of a row of the result.
    pub cols: usize,
    /// Elements from row to row of the result.
    pub stride: usize,
}

/// The dispatches of one step of the model.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// T is at most this.
    pub max_tokens: usize,
    /// O is at most this.
    pub max_outputs: usize,
    /// What is computed: of each node one step or a few.
    pub nodes: KernelGraph,
    /// In order.
    pub steps: Vec<Step>,
    /// What the host computes between them, in order; none as a rule.
    pub host_calls: Vec<HostCall>,
    /// Working memory.
    pub scratch: Vec<Scratch>,
    /// What lies in it over time.
    pub transients: Vec<TransientBuffer>,
    /// In the order of the graph's outputs.
    pub outputs: Vec<OutputView>,
}

/// A rotation's table, f32 `[ctx, dims / 2, 2]`: cosine and sine of position times angle, times the rotation's scale.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Of which rotation.
    pub rope: Rope,
    /// Bytes.
    pub bytes: u64,
}

/// A KV cache's buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheBytes {
    /// Of all keys.
    pub keys: u64,
    /// Of all values.
    pub values: u64,
    /// Buffers of keys and of values; one each unless that is more than the device binds at a time.
    pub parts: Vec<CachePart>,
}

/// The keys and values of some heads of some sequences. A unit is a head of keys of a sequence, `sequence * kv_heads + head`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachePart {
    /// The first unit.
    pub first: u32,
    /// Units.
    pub units: u32,
    /// Bytes of keys.
    pub keys: u64,
    /// Bytes of values.
    pub values: u64,
}

/// An input of the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputBuffer {
    /// Its name in the graph.
    pub name: String,
    /// Columns.
    pub cols: usize,
    /// Elements from row to row.
    pub stride: usize,
}
