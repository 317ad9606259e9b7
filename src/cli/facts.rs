//! What there is to say about a loaded or opened model: names, sizes, bytes a token.

use crate::{
    backend::Program,
    file::Checkpoint,
    ir::{Attention, CacheDecl, Op, Type},
    model::Definition,
    quant::{DType, KvType, mix::Mix},
};
use std::collections::BTreeMap;

/// Bytes of weights that one generated token reads, in the form in which the file stores them: all matrices once, of the
/// embedding table a row, of the experts those used. No engine makes a token faster than it reads these.
pub fn bytes_per_token(program: &Program) -> u64 {
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
                (_, [experts, _, _], Some(k)) => k / (*experts as f64).max(1.0),
                _ => 1.0,
            };
            bytes += tensor.byte_len() as f64 * part;
        }
    }
    bytes as u64
}

/// Bytes of all weights that the graph reads; a table that serves twice counts once.
pub fn weight_bytes(program: &Program) -> u64 {
    program.weights.iter().map(|t| t.byte_len() as u64).sum()
}

/// Number of weights.
pub fn parameters(program: &Program) -> u64 {
    program.weights.iter().map(|t| t.rows() as u64 * t.cols() as u64).sum()
}

/// Logits a position.
pub fn vocabulary(program: &Program) -> usize {
    let graph = &program.graph;
    graph.outputs.iter().find(|(name, _)| name == "logits").map_or(0, |(_, v)| graph.cols(*v))
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

/// The mix that the file names, or else the type of most of its bytes.
pub fn weight_type(checkpoint: &Checkpoint) -> String {
    let named = checkpoint.meta().u64("general.file_type");
    if let Some(mix) = named.and_then(|id| Mix::ALL.into_iter().find(|m| u64::from(m.file_type()) == id)) {
        return mix.name().into();
    }
    let mut bytes: BTreeMap<DType, usize> = BTreeMap::new();
    for (_, t) in checkpoint.tensors() {
        *bytes.entry(t.dtype()).or_default() += t.byte_len();
    }
    bytes.iter().max_by_key(|(_, n)| **n).map_or_else(|| "?".into(), |(d, _)| d.to_string())
}

/// Architecture and experts in a few words: `Qwen2-MoE, 8 experts, top 2`.
pub fn shape(d: &Definition) -> String {
    match &d.decoder.moe() {
        Some(m) => format!("{}, {} experts, top {}", d.title, m.router.experts, m.router.used),
        None => d.title.to_string(),
    }
}

/// The processor's name, where the system tells it.
pub fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|l| l.starts_with("model name"));
    let name = line.and_then(|l| l.split_once(':')).map(|(_, name)| name.trim().to_string());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_string())
}
