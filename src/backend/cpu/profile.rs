//! The time that each kind of op takes in a step, and the bytes that it reads.

use super::run::{State, StepContext};
use crate::{
    backend::KernelTime,
    error::Result,
    ir::{Node, Op, WeightId},
    quant::KvType,
};
use std::time::Instant;

/// Runs all nodes of a step and times each; nodes of one op and one kernel are added up.
///
/// # Errors
/// As [`State::run`].
pub fn times(state: &mut State, f: StepContext<'_>, kv: KvType) -> Result<Vec<KernelTime>> {
    let mut times: Vec<KernelTime> = vec![];
    for node in &f.model.graph.nodes {
        let start = Instant::now();
        state.run(f, node)?;
        let seconds = start.elapsed().as_secs_f64();
        let (kernel, op, bytes) = (kernel(f, node, kv), node.op.name(), bytes(state, f, node));
        match times.iter_mut().find(|t| t.op == op && t.kernel == kernel) {
            Some(t) => (t.dispatches, t.seconds, t.bytes) = (t.dispatches + 1, t.seconds + seconds, t.bytes + bytes),
            None => times.push(KernelTime { kernel, op, dispatches: 1, seconds, bytes }),
        }
    }
    Ok(times)
}

/// The name of a node's kernel: the format of its matrix, or the storage of keys and values.
fn kernel(f: StepContext<'_>, node: &Node, kv: KvType) -> String {
    let matrix = node.op.weights().into_iter().find(|w| f.model.graph.weight(*w).shape.len() > 1);
    match (&node.op, matrix) {
        (Op::Attend(_), _) => format!("{kv:?}"),
        (_, Some(w)) => f.weight(w).tensor().dtype().to_string(),
        (_, None) => "F32".into(),
    }
}

/// The bytes of weights, keys and values that a node read in the step that has just run it.
fn bytes(state: &State, f: StepContext<'_>, node: &Node) -> u64 {
    let tensor = |w: WeightId| f.weight(w).tensor();
    match &node.op {
        Op::Embed { table, .. } => (f.rows_of(node.outputs[0]) * tensor(*table).row_bytes()) as u64,
        Op::Attend(a) => {
            let of_segment = |s: &super::sequence::Segment| {
                let cache = &state.sequences[s.sequence].caches[a.cache.0 as usize];
                let seen = (s.end() - a.first_seen(s.past)) as u64;
                seen * cache.bytes() / cache.ctx as u64
            };
            f.segments.iter().map(of_segment).sum()
        }
        op => {
            let chosen = state.slots_by_expert.chosen() as u64;
            let read = |w: WeightId| {
                let (bytes, experts) = (tensor(w).byte_len() as u64, tensor(w).shape()[0] as u64);
                if op.is_routed() { bytes * chosen / experts.max(1) } else { bytes }
            };
            op.weights().into_iter().map(read).sum()
        }
    }
}
