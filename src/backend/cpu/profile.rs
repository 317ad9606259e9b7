//! Time and bytes of every kind of op in a step.

use super::run::{CpuRunner, Frame, State};
use crate::{
    backend::{KernelTime, Step, check_step},
    error::Result,
    ir::{Node, Op, WeightId},
};
use std::time::Instant;

impl CpuRunner {
    /// A step with a clock around every op; its results are dropped, and recurrent states count as lost.
    ///
    /// # Errors
    /// As [`Runner::step`].
    pub(super) fn profile_step(&mut self, step: Step<'_>) -> Result<Vec<KernelTime>> {
        check_step(&step, &self.options)?;
        self.standing.lose();
        let model = self.model.clone();
        let frame = Frame { model: &model, step };
        self.state.begin(frame);
        let mut times: Vec<KernelTime> = vec![];
        for node in &model.graph.nodes {
            let start = Instant::now();
            self.state.run(frame, node)?;
            let seconds = start.elapsed().as_secs_f64();
            let (kernel, op) = (self.kernel(frame, node), node.op.name());
            let bytes = self.state.bytes_of(frame, node);
            match times.iter_mut().find(|t| t.op == op && t.kernel == kernel) {
                Some(t) => {
                    (t.dispatches, t.seconds, t.bytes) = (t.dispatches + 1, t.seconds + seconds, t.bytes + bytes);
                }
                None => times.push(KernelTime { kernel, op, dispatches: 1, seconds, bytes }),
            }
        }
        Ok(times)
    }

    /// What an op is computed from: the format of its matrix, or how keys and values are kept.
    fn kernel(&self, f: Frame<'_>, node: &Node) -> String {
        let matrix = node.op.weights().into_iter().find(|w| f.model.graph.weight(*w).shape.len() > 1);
        match (&node.op, matrix) {
            (Op::Attend(_), _) => format!("{:?}", self.options.kv),
            (_, Some(w)) => f.weight(w).tensor().dtype().to_string(),
            _ => "F32".into(),
        }
    }
}

impl State {
    /// Bytes of weights, keys and values that a node has read in the step that just ran it.
    fn bytes_of(&self, f: Frame<'_>, node: &Node) -> u64 {
        let tensor = |w: WeightId| f.weight(w).tensor();
        match &node.op {
            Op::Embed { table, .. } => (f.rows_of(node.outputs[0]) * tensor(*table).row_bytes()) as u64,
            Op::Attend(a) => {
                let (cache, end) = (&self.caches[a.cache.0 as usize], f.step.past + f.step.tokens.len());
                let seen = end - a.first_seen(f.step.past);
                (seen as u64 * cache.bytes()).checked_div(cache.ctx as u64).unwrap_or(0)
            }
            op => {
                let chosen = self.groups.chosen() as u64;
                let read = |w: WeightId| {
                    let bytes = tensor(w).byte_len() as u64;
                    let experts = tensor(w).shape()[0] as u64;
                    if op.is_routed() { bytes * chosen / experts.max(1) } else { bytes }
                };
                op.weights().into_iter().map(read).sum()
            }
        }
    }
}
