//! What a model takes in the processor's memory, counted before anything is made.

use super::{Options, kernel::packed::packed_bytes, layout::Layout, packing::Packing, simd_level, weight_roles};
use crate::{
    backend::{Program, runner::RunnerOptions},
    graph,
    ir::{CacheDecl, Rows, WeightId},
};

/// Bytes in the processor's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostBytes {
    /// Weights that are copied, packed for the kernels, by weight.
    pub copied: Vec<(WeightId, u64)>,
    /// Weights that are read where the file's memory map has them: memory that the system takes back when it is short.
    pub mapped: Vec<(WeightId, u64)>,
    /// Keys and values.
    pub kv: u64,
    /// Recurrent states with their snapshots.
    pub states: u64,
    /// Activations.
    pub scratch: u64,
}

/// What a program's weights and a runner of these options will take, as [`super::load`] does it with these options.
pub fn memory_of(program: &Program, options: &Options, runner: &RunnerOptions) -> HostBytes {
    let graph = graph::fuse(&program.graph);
    let roles = weight_roles::roles(&graph);
    let level = options.simd_level.unwrap_or_else(simd_level::best);
    let packing = Packing::new(program, &graph, &roles, level, options);
    let mut bytes = HostBytes::default();
    for ((i, tensor), role) in program.weights.iter().enumerate().zip(&roles) {
        let id = WeightId(i as u32);
        let packed = if packing.copied[i] { packed_bytes(tensor, level) } else { 0 };
        let floats = if role.vector { 4 * (tensor.rows() * tensor.cols()) as u64 } else { 0 };
        match packed + floats {
            0 if graph.nodes.iter().any(|n| n.op.weights().contains(&id)) => {
                bytes.mapped.push((id, tensor.byte_len() as u64));
            }
            0 => {}
            n => bytes.copied.push((id, n)),
        }
    }
    let kv = |d: &CacheDecl| {
        let row = runner.kv.cpu_row_bytes(d.k_dim) + runner.kv.cpu_row_bytes(d.stored_v_dim());
        row as u64 * d.kv_heads as u64 * runner.ctx as u64
    };
    let sequences = runner.sequences as u64;
    bytes.kv = sequences * graph.caches.iter().map(kv).sum::<u64>();
    bytes.states = sequences * graph.states.iter().map(|s| 8 * s.len as u64).sum::<u64>();
    let rows = |r: Rows| match r {
        Rows::Tokens => runner.ubatch,
        Rows::Outputs => 1,
        Rows::Fixed(n) => n,
    };
    bytes.scratch = Layout::new(&graph).buffers.iter().map(|b| 4 * (rows(b.rows) * b.cols) as u64).sum();
    bytes
}
