//! The graph language: what a model computes, as a list of nodes in execution order.
//!
//! A [`Graph`] is plain data in static single assignment form. A [`Node`] applies an [`Op`] to values that earlier nodes
//! made and makes one or more new values. Weights and KV caches are declared in the graph and named by id inside ops; their
//! bytes live elsewhere. Every activation is two-dimensional, `[rows, cols]` row-major, where the rows are symbolic: all
//! tokens of the step, or only the positions whose logits are asked for. One graph therefore serves prefill and decode.
//!
//! Letters used everywhere: T tokens of this step, O output positions (the last O of the T), P tokens already in the
//! cache, E experts, k experts used a token, H hidden size, I expert width, D head dimension, V vocabulary.
//!
//! Deliberately absent: meaning (see [`crate::ops`]), buffers, kernels, devices.

mod describe;
mod describe_train;
mod grad;
mod math;
mod op;
mod parts;
mod print;
mod router;

pub use grad::*;
pub use math::*;
pub use op::*;
pub use parts::*;
pub use router::*;

/// A value: what a node makes. Index into [`Graph::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// A weight of the model. Index into [`Graph::weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub u32);

/// A KV cache, one a layer. Index into [`Graph::caches`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheId(pub u32);

/// A recurrent state. Index into [`Graph::states`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateId(pub u32);

/// A symbolic number of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rows {
    /// T: every token of this step.
    Tokens,
    /// O: the last O tokens of this step, those whose logits are wanted (0 in all but the last micro-batch of a prefill).
    Outputs,
    /// So many, whatever the step: scalars, and vectors with a number for each expert. In training only.
    Fixed(usize),
}

/// The name of an output `[T, H]`: what the last layer leaves of each token, before the final norm. Backends give it for the rows
/// that want their hidden states, and for no others.
pub const RESIDUAL: &str = "residual";

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// f32 `[rows, cols]`.
    F32(Rows, usize),
    /// u32 `[rows, cols]`: token ids (cols 1) and expert ids.
    U32(Rows, usize),
    /// The state of a KV cache after a write: an ordering edge, no data.
    Cache(CacheId),
    /// The gradient of a weight after an addition: an ordering edge, no data. In training only.
    Grad(WeightId),
}

impl Type {
    /// Rows and columns of data; `None` for edges without data.
    pub fn dims(self) -> Option<(Rows, usize)> {
        match self {
            Type::F32(r, c) | Type::U32(r, c) => Some((r, c)),
            Type::Cache(_) | Type::Grad(_) => None,
        }
    }
}

/// One application of an op.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// Its operands, in the order that the op's page gives.
    pub inputs: Vec<ValueId>,
    /// What it makes, in the order that the op's page gives.
    pub outputs: Vec<ValueId>,
    /// The transformer layer it belongs to, for printing and counting.
    pub layer: Option<u32>,
}

/// A weight that the graph reads: what a backend must be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightDecl {
    /// Canonical name (GGUF's names, such as `blk.0.attn_q.weight`), for messages and printing.
    pub name: String,
    /// Row-major shape: `[out, in]`, `[experts, out, in]`, or `[n]`.
    pub shape: Vec<usize>,
}

impl WeightDecl {
    /// Rows: all dimensions but the last, multiplied.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// Columns: the last dimension; 0 without dimensions.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }
}

/// A KV cache that the graph uses: per position `kv_heads * k_dim` numbers of keys and `kv_heads * v_dim` of values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheDecl {
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Length of a key.
    pub k_dim: usize,
    /// Length of a value.
    pub v_dim: usize,
    /// Whether a value is the first `v_dim` numbers of its key, stored with it once (latent attention).
    pub v_in_k: bool,
}

impl CacheDecl {
    /// A cache of keys and values.
    pub fn new(kv_heads: usize, k_dim: usize, v_dim: usize) -> CacheDecl {
        CacheDecl { kv_heads, k_dim, v_dim, v_in_k: false }
    }

    /// Length of a value that is stored beside its key.
    pub fn stored_v_dim(&self) -> usize {
        if self.v_in_k { 0 } else { self.v_dim }
    }
}

/// A recurrent state that the graph uses: f32 numbers of a sequence that one node reads and overwrites in every step, zeros
/// before the first token. Its size does not grow with the context; going back means knowing an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDecl {
    /// Numbers.
    pub len: usize,
}

/// A program: nodes in execution order, and everything they refer to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// Nodes, each after the makers of its inputs.
    pub nodes: Vec<Node>,
    /// Type of every value, indexed by [`ValueId`].
    pub values: Vec<Type>,
    /// Weights, indexed by [`WeightId`].
    pub weights: Vec<WeightDecl>,
    /// Caches, indexed by [`CacheId`].
    pub caches: Vec<CacheDecl>,
    /// Recurrent states, indexed by [`StateId`].
    pub states: Vec<StateDecl>,
    /// What the caller reads, by name: `logits`, and when asked for `router_ids_<layer>`, `router_weights_<layer>`.
    pub outputs: Vec<(String, ValueId)>,
}

impl Graph {
    /// The type of `v`.
    pub fn ty(&self, v: ValueId) -> Type {
        self.values[v.0 as usize]
    }

    /// Columns of `v`; 0 for a cache.
    pub fn cols(&self, v: ValueId) -> usize {
        self.ty(v).dims().map_or(0, |d| d.1)
    }

    /// The declaration of `w`.
    pub fn weight(&self, w: WeightId) -> &WeightDecl {
        &self.weights[w.0 as usize]
    }
}
