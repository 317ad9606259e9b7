//! What a model needs, counted before anything is loaded: bytes of weights, of keys and values, of recurrent states.

use super::SessionOptions;
use crate::{
    backend::Program,
    error::Result,
    file,
    graph::{self, RankRegion},
    ir::{Attention, CacheDecl, Op, Type, WeightId},
    model,
    quant::KvType,
};
use std::{collections::BTreeMap, path::Path};

/// What a model and a session on it take, in bytes. Scratch, some tens of megabytes for most models, is not counted: it depends on
/// the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryNeeds {
    /// Weights in the form in which the file stores them.
    pub weights: u64,
    /// Keys and values of all positions of the context.
    pub kv: u64,
    /// Recurrent states.
    pub states: u64,
    /// The weights that one token reads: of the experts, those used.
    pub read_per_token: u64,
}

impl MemoryNeeds {
    /// Weights, keys and values, and states together.
    pub fn total(&self) -> u64 {
        self.weights + self.kv + self.states
    }
}

impl MemoryNeeds {
    /// Counts what a file or folder needs with a session of these options. Reads headers alone, no weights.
    ///
    /// # Errors
    /// [`crate::Error`] for what cannot be read or run.
    pub fn of(path: &Path, options: &SessionOptions) -> Result<MemoryNeeds> {
        let program = model::build(&file::open(path)?, &model::Options::default())?.program;
        Ok(MemoryNeeds {
            weights: weight_bytes(&program),
            kv: kv_bytes(&program, options.kv) * options.ctx as u64,
            states: state_bytes(&program),
            read_per_token: bytes_per_token(&program),
        })
    }
}

/// Bytes of weights that one generated token reads, in the form in which the file stores them: all matrices once, of the
/// embedding table a row, of the experts those used. No engine makes a token faster than it reads these.
pub fn bytes_per_token(program: &Program) -> u64 {
    bytes_per_token_of_rank(program, &[])
}

/// The same of one of several processes that share the experts of these layers, where a token's experts are spread evenly over them.
pub fn bytes_per_token_of_rank(program: &Program, shared: &[RankRegion]) -> u64 {
    let graph = &program.graph;
    let mut bytes = 0.0;
    for node in &graph.nodes {
        // An op on experts has their ids among its inputs, one column an expert used.
        let used = node.inputs.iter().find_map(|v| match graph.ty(*v) {
            Type::U32(_, k) => Some(k as f64),
            _ => None,
        });
        for w in node.op.weights() {
            let Some(tensor) = program.weights.get(w.0 as usize) else { continue };
            let part = match (&node.op, tensor.shape(), used) {
                (Op::Embed { .. }, [rows, ..], _) => 1.0 / (*rows as f64).max(1.0),
                (_, [experts, _, _], Some(k)) => {
                    let of_all = shared.iter().find(|r| Some(r.layer) == node.layer).map_or(*experts, |r| r.experts);
                    k / (of_all as f64).max(1.0)
                }
                _ => 1.0,
            };
            bytes += tensor.byte_len() as f64 * part;
        }
    }
    bytes as u64
}

/// Of each layer with routed experts how many it has, and the bytes of all of them, in the form in which the file stores them.
pub fn expert_bytes(program: &Program) -> BTreeMap<usize, (usize, u64)> {
    let of = |(layer, weights): (u32, Vec<WeightId>)| {
        let tensors = || weights.iter().filter_map(|w| program.weights.get(w.0 as usize));
        let experts = tensors().filter_map(|t| t.shape().first().copied()).max().unwrap_or(0);
        (layer as usize, (experts, tensors().map(|t| t.byte_len() as u64).sum()))
    };
    graph::expert_weights(&program.graph).into_iter().map(of).collect()
}

/// Bytes of all weights that the graph reads; a table that serves twice counts once.
pub fn weight_bytes(program: &Program) -> u64 {
    program.weights.iter().map(|t| t.byte_len() as u64).sum()
}

/// Number of weights.
pub fn parameters(program: &Program) -> u64 {
    program.weights.iter().map(|t| t.rows() as u64 * t.cols() as u64).sum()
}

/// Bytes of keys and values of one position.
pub fn kv_bytes(program: &Program, kv: KvType) -> u64 {
    program.graph.caches.iter().map(|c| position_bytes(c, kv)).sum()
}

/// Bytes of keys and values that one token reads which sees `positions` others and itself, less where windows slide.
pub fn attended_bytes(program: &Program, kv: KvType, positions: usize) -> u64 {
    let attentions = program.graph.nodes.iter().filter_map(|n| match &n.op {
        Op::Attend(a) => Some(a),
        _ => None,
    });
    let of = |a: &Attention| {
        let cache = &program.graph.caches[a.cache.0 as usize];
        let seen = a.window.unwrap_or(usize::MAX).min(positions);
        seen as u64 * position_bytes(cache, kv)
    };
    attentions.map(of).sum()
}

fn position_bytes(c: &CacheDecl, kv: KvType) -> u64 {
    (c.kv_heads * (kv.cpu_row_bytes(c.k_dim) + kv.cpu_row_bytes(c.stored_v_dim()))) as u64
}

/// Bytes of recurrent states of a sequence: as they stand, and as they were kept.
pub fn state_bytes(program: &Program) -> u64 {
    program.graph.states.iter().map(|s| 8 * s.len as u64).sum()
}
