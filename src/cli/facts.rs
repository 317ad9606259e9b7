//! What there is to say about a loaded or opened model: names, sizes, bytes a token.

pub use crate::session::needs::{
    attended_bytes, bytes_per_token, expert_bytes, kv_bytes, parameters, state_bytes, weight_bytes,
};
use crate::{
    backend::Program,
    file::Checkpoint,
    model::Definition,
    quant::{DType, mix::Mix},
};
use std::collections::BTreeMap;

/// Logits a position.
pub fn vocabulary(program: &Program) -> usize {
    let graph = &program.graph;
    graph.outputs.iter().find(|(name, _)| name == "logits").map_or(0, |(_, v)| graph.cols(*v))
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
