//! Several sequences on the device: a plan whose rows name their sequence and position, one step for all of them, so that a
//! weight is read once for all.

use super::{runner::GpuRunner, upload::DeviceWeights};
use crate::{
    backend::{BatchOptions, BatchRow, BatchRunner, Output, RunnerOptions, Step, check_batch},
    error::{Error, Result},
};
use std::sync::Arc;

/// See [`crate::backend::BatchRunner`].
pub(super) struct GpuBatch {
    runner: GpuRunner,
    options: BatchOptions,
    tokens: Vec<u32>,
    places: Vec<[u32; 2]>,
}

impl GpuBatch {
    pub fn new(weights: Arc<DeviceWeights>, options: BatchOptions) -> Result<Self> {
        if options.sequences == 0 {
            return Err(Error::Invalid("a batch has at least one sequence".into()));
        }
        let one = RunnerOptions { ctx: options.ctx, chunk: options.rows, kv: options.kv };
        let runner = GpuRunner::new(weights, one, Some(options.sequences))?;
        Ok(GpuBatch { runner, options, tokens: vec![], places: vec![] })
    }
}

impl BatchRunner for GpuBatch {
    fn step(&mut self, rows: &[BatchRow], outputs: usize, out: &mut Vec<Output>) -> Result<()> {
        check_batch(rows, outputs, &self.options)?;
        self.tokens.clear();
        self.tokens.extend(rows.iter().map(|r| r.token));
        self.places.clear();
        self.places.extend(rows.iter().map(|r| [r.sequence as u32, r.position as u32]));
        // The rows carry their positions: the step itself has none.
        let step = Step { tokens: &self.tokens, past: 0, outputs, inputs: &[] };
        self.runner.run(step, &self.places, out)
    }

    fn memory_bytes(&self) -> u64 {
        self.runner.bytes()
    }
}
