//! The nodes of a plan: what is dispatched, as ops that say what they are.
//!
//! A [`KernelGraph`] is to the GPU what [`Graph`] is to every backend. It is made in two passes, each linear in the number
//! of nodes:
//!
//! 1. `from_graph`: once a model. Ops of the graph become nodes; matrices that are read together are stacked into one
//!    (`norm_linears`, and the router's matrix with the gate of a shared expert). The layout of the weights follows from it.
//! 2. [`super::phase`]: once a schedule. What its kernels can do in one dispatch is folded together (a norm into the product
//!    behind it, the shared expert into the routed ones, the choice of experts into their first product), what they cannot do
//!    is taken apart (a norm before a product of many rows, a pair of matrices that are cut into segments, a rotation of
//!    operands that do not lie side by side), and tokens are sorted by expert where there are many of them.
//!
//! Lowering is then one to one: each node is one dispatch, or one for each segment of its matrices. [`KernelGraph::check`]
//! holds what the passes promise, and the text of a plan shows its nodes.

mod check;
mod from_graph;
mod operands;
mod print;

pub(super) use from_graph::from_graph;
pub use operands::VectorPart;
pub(super) use operands::{NormSpan, Operand, glu_bias, norm_span, pair_bias, router_numbers, stacked, stacked_bias};

use crate::error::{Error, Result};
use crate::ir::{
    Activation, Attention, CacheId, DeltaNet, Linear, Norm, Rope, Router, Rows, ShortConv, Type, ValueId, WeightId,
};
use std::sync::Arc;

/// The nodes of a plan, in execution order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelGraph {
    /// Nodes, each after the makers of its inputs.
    pub nodes: Vec<KernelNode>,
    /// Type of every value: those of the graph under their ids, then those that the passes add.
    pub values: Vec<Type>,
    /// Values that lie side by side in the rows of one transient buffer.
    pub packs: Vec<Pack>,
    /// Of each value, its pack and its first column there.
    pack_of: Vec<Option<(u32, u32)>>,
    /// Names of the graph's weights, for printing.
    weight_names: Arc<[String]>,
}

/// Values that lie side by side in the rows of one transient buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Pack {
    /// The values, by their first column.
    pub values: Vec<ValueId>,
    /// What the number of rows follows.
    pub rows: Rows,
    /// Columns of a row.
    pub cols: usize,
}

/// What is computed by one dispatch, or by one for each segment of its matrices.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelNode {
    /// What is computed.
    pub op: KernelOp,
    /// Operands, in the order that the op says.
    pub inputs: Vec<ValueId>,
    /// Results, in the order that the op says.
    pub outputs: Vec<ValueId>,
    /// Name of the graph's op that it is a part of, for printing and profiles.
    pub part_of: &'static str,
    /// The transformer layer that it belongs to.
    pub layer: Option<u32>,
}

/// What follows a product, in this order: the bias of its matrices, the activation, the gate, the factor, the residual.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Epilogue {
    /// An activation of the product and its bias.
    pub act: Option<Activation>,
    /// Whether the sigmoid of the last input multiplies.
    pub gated: bool,
    /// A factor.
    pub factor: f32,
    /// Whether the second input is added.
    pub residual: bool,
}

impl Epilogue {
    /// Nothing follows.
    pub const NONE: Epilogue = Epilogue { act: None, gated: false, factor: 1.0, residual: false };
}

/// How the kernel of a product finds the expert of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// One row of a workgroup's grid for each token and slot.
    Slots,
    /// From the tables of an [`KernelOp::ExpertSort`], dispatched indirectly.
    Sorted {
        /// The number of the sort.
        sort: u32,
        /// Which of the sort's arguments the dispatch takes.
        slot: u32,
    },
}

/// An op of one dispatch, or of one for each segment of its matrices. T, O, k, E: see [`crate::ir`].
#[derive(Clone, Debug, PartialEq)]
pub enum KernelOp {
    /// `() → ids [T, 1]`: the token ids of this step. No dispatch.
    Tokens,
    /// `() → x [T, cols]`: the caller's input of this number. No dispatch.
    Input(u32),
    /// `(ids) → x [T, H]`.
    Embed {
        /// `[V, H]`.
        table: WeightId,
        /// Factor on the embedding.
        scale: f32,
    },
    /// `(x) → norm(x)`.
    Norm(Norm),
    /// `(a [, b]) → y`.
    Elementwise(Elementwise),
    /// `(x [T, n], weights [T, k]) → (y [T, k·n], ones [T, k])`, packed.
    ScaleExpertInputs,
    /// `() → ids [T, heads]`.
    HeadIds {
        /// How many heads.
        heads: usize,
    },
    /// `(ids [T, k]) → [T, k]`: the numbers of the experts that are here, `count` for the others.
    LocalIds {
        /// The first expert that is here.
        first: u32,
        /// How many are.
        count: u32,
    },
    /// `(a, b) → [T, heads·(m + n)]`.
    JoinHeads {
        /// How many heads.
        heads: usize,
    },
    /// `(x) → y`.
    Rope(Rope),
    /// `(k [, v]) → cache`.
    KvStore {
        /// Where to.
        cache: CacheId,
    },
    /// `(q, k, v) → (q', cache)`: q, k and v are packed.
    RopeStore {
        /// Norms of q and of k, of each head or of the whole row.
        norms: [Option<Norm>; 2],
        /// The rotation of both.
        rope: Rope,
        /// Whether the norms come after the rotation.
        qk_norm_after_rope: bool,
        /// Where k and v go.
        cache: CacheId,
    },
    /// `(q, cache) → y`: with many positions a second dispatch adds up the pieces.
    Attend(Attention),
    /// `(x) → y`.
    ShortConv(ShortConv),
    /// `(qkv, a, b) → y`.
    DeltaNet(DeltaNet),
    /// `(x [, residual] [, gate]) → one for each part, packed where there are several [, norm(x), packed with them]`.
    Linear {
        /// Matrices of one format and their biases, stacked by rows.
        parts: Vec<Linear>,
        /// A norm of x inside the product's kernel.
        norm: Option<Norm>,
        /// Whether norm(x) is a result too.
        keep_normed: bool,
        /// What follows the product.
        epilogue: Epilogue,
    },
    /// `(x) → one for each part, those of the first matrix first; all packed`: two matrices of any formats.
    LinearPair {
        /// Of each of the two matrices its parts.
        parts: [Vec<Linear>; 2],
        /// A norm of x inside the product's kernel.
        norm: Option<Norm>,
    },
    /// `(x) → act(G norm(x)) · (U norm(x))`.
    LinearGlu {
        /// `[I, in]`.
        gate: WeightId,
        /// `[I, in]`.
        up: WeightId,
        /// The activation of the gate.
        act: Activation,
        /// A norm of x inside the product's kernel.
        norm: Option<Norm>,
    },
    /// `(logits [T, E]) → (ids [T, k], weights [T, k])`.
    Router(Router),
    /// `(logits [1, E]) → (ids [1, k], weights [1, k], slots [1, k])`: a token's experts and the slots that they have, or take.
    RouterCached {
        /// The choice.
        router: Router,
        /// The number of the cache.
        cache: u32,
        /// Rows of an expert's matrix whose kernel would choose, were there no slots: the choice is computed as it would.
        beside: Option<usize>,
    },
    /// `(ids [T, k]) → slots [T, k]`: the slots that the experts of a few tokens have, or take.
    ExpertPlaces {
        /// The number of the cache.
        cache: u32,
    },
    /// `(slots [T, k]) → ()`: experts that have just taken a slot are copied to it.
    ExpertFill {
        /// The number of the cache.
        cache: u32,
    },
    /// `(ids [T, k]) → ()`: tables of the tokens of each expert, for later dispatches.
    ExpertSort {
        /// Its number, by which [`Route::Sorted`] names it.
        sort: u32,
        /// E.
        experts: usize,
        /// Rows of x that a workgroup of the dispatches takes.
        tile: u32,
        /// Workgroups in x of the dispatches, one or two different numbers.
        blocks: Vec<u32>,
    },
    /// `(x [T, in] or [T, k·in], ids) → [T, k·out]`.
    ExpertLinear {
        /// `[E, out, in]` and its biases.
        linear: Linear,
        /// What follows.
        act: Option<Activation>,
        /// How a row finds its expert.
        route: Route,
    },
    /// `(x, ids) → h [T, k·I] [, shared h]`; choosing: `(x, logits) → h [, shared h], ids, weights`, x and logits packed.
    ExpertGlu {
        /// `[E, I, H]` and its biases.
        gate: Linear,
        /// `[E, I, H]` and its biases.
        up: Linear,
        /// The activation of the gate.
        act: Activation,
        /// How a row finds its expert.
        route: Route,
        /// Gate and up matrices `[Is, H]` of a shared expert, whose unit is computed beside the others; its h is packed
        /// behind theirs.
        shared: Option<[WeightId; 2]>,
        /// The kernel chooses the experts itself.
        choose: Option<Router>,
    },
    /// `(h [T, k·I], ids, weights, residual [, shared h] [, gate]) → residual + factor · weighted sum [+ shared expert]`.
    ExpertDown {
        /// `[E, H, I]` and its biases.
        linear: Linear,
        /// A factor on the weighted sum.
        factor: f32,
        /// The last matrix of a shared expert.
        shared: Option<SharedDown>,
    },
    /// `(x, ids, weights, ...) → y [T, cols]`: what the host computes between two dispatches. No dispatch.
    HostExperts {
        /// The number of the region of the graph.
        region: u32,
    },
    /// `(x [T, k·n], weights [, residual]) → [residual +] factor · weighted sum`.
    ExpertCombine {
        /// A factor on the weighted sum, where there is a residual.
        residual: Option<f32>,
    },
}

/// The last product of a shared expert, added to that of the routed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedDown {
    /// `[H, Is]`.
    pub down: WeightId,
    /// Whether the sigmoid of the last input multiplies it.
    pub gated: bool,
}

/// Ops of one row at a time that do no sums.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Elementwise {
    /// `(a, b) → a + b`.
    Add,
    /// `(x) → factor · x`.
    Scale(f32),
    /// `(gate, up) → act(gate) · up`.
    Glu(Activation),
    /// `(x) → act(x)`.
    Act(Activation),
    /// `(x, g [R, 1]) → x · sigmoid(g)`.
    SigmoidGate,
    /// `(x [T, n]) → [O, n]`.
    TakeOutputs,
}

impl KernelGraph {
    /// The type of a value.
    pub fn ty(&self, v: ValueId) -> Type {
        self.values[v.0 as usize]
    }

    /// Rows and columns of a value.
    ///
    /// # Errors
    /// [`Error::Graph`] for a cache.
    pub(super) fn dims(&self, v: ValueId) -> Result<(Rows, usize)> {
        self.ty(v).dims().ok_or_else(|| Error::Graph(format!("%{} is a cache", v.0)))
    }

    /// Columns of a value; 0 for a cache.
    pub fn cols(&self, v: ValueId) -> usize {
        self.ty(v).dims().map_or(0, |d| d.1)
    }

    /// The pack of a value and its first column there.
    pub fn packed(&self, v: ValueId) -> Option<(u32, u32)> {
        self.pack_of[v.0 as usize]
    }

    /// Whether two values lie in the rows of one transient buffer.
    pub(super) fn together(&self, a: ValueId, b: ValueId) -> bool {
        a == b || matches!((self.packed(a), self.packed(b)), (Some((a, _)), Some((b, _))) if a == b)
    }

    /// Adds a value.
    pub(super) fn value(&mut self, ty: Type) -> ValueId {
        self.values.push(ty);
        self.pack_of.push(None);
        ValueId(self.values.len() as u32 - 1)
    }

    /// Puts values side by side, each at its column.
    pub(super) fn pack(&mut self, rows: Rows, columns: &[(ValueId, usize)]) {
        let number = self.packs.len() as u32;
        for (v, column) in columns {
            self.pack_of[v.0 as usize] = Some((number, *column as u32));
        }
        let cols = columns.iter().map(|(v, column)| column + self.cols(*v)).max().unwrap_or(0);
        self.packs.push(Pack { values: columns.iter().map(|c| c.0).collect(), rows, cols });
    }

    /// Takes the last value of a pack out of it, as it gets a buffer of its own.
    pub(super) fn unpack_last(&mut self, v: ValueId) {
        let Some((number, _)) = self.pack_of[v.0 as usize].take() else { return };
        let left: Vec<ValueId> = self.packs[number as usize].values.iter().copied().filter(|x| *x != v).collect();
        let end = |x: &ValueId| self.pack_of[x.0 as usize].map_or(0, |(_, c)| c as usize) + self.cols(*x);
        let cols = left.iter().map(end).max().unwrap_or(0);
        let pack = &mut self.packs[number as usize];
        (pack.values, pack.cols) = (left, cols);
    }
}
