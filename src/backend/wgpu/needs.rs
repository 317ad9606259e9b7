//! What a model takes on a device, counted before anything is made there.

use super::{
    RunOptions, expert_slots,
    gpu::Gpu,
    runner::{Staging, planned},
    sampler::GpuSampler,
    schedules::params_bytes,
    upload::DeviceWeights,
};
use crate::{
    backend::{Roofline, runner::RunnerOptions},
    error::Result,
    ir::{Graph, WeightId},
    kernels::params::Frame,
    plan::{self, Plan},
    quant::DType,
};

/// Bytes on a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceBytes {
    /// Of each matrix, with the weights that are stacked in it.
    pub matrices: Vec<(Vec<WeightId>, u64)>,
    /// Of each matrix of experts that is kept where kernels read it more slowly, with its weights.
    pub away: Vec<(Vec<WeightId>, u64)>,
    /// Slots of such experts.
    pub slots: u64,
    /// Of each layer that has slots its number and theirs.
    pub expert_slots: Vec<(u32, usize)>,
    /// Norms, biases and other vectors.
    pub vectors: u64,
    /// Keys and values.
    pub kv: u64,
    /// Recurrent states.
    pub states: u64,
    /// Activations, tables, parameters, and buffers for what goes in and comes out.
    pub scratch: u64,
}

impl DeviceBytes {
    /// All of it, but for what is kept away.
    pub fn total(&self) -> u64 {
        self.weights() + self.kv + self.states + self.scratch
    }

    /// What is kept away.
    pub fn away_bytes(&self) -> u64 {
        self.away.iter().map(|m| m.1).sum()
    }

    /// Matrices, slots of experts, and vectors.
    pub fn weights(&self) -> u64 {
        self.vectors + self.slots + self.matrices.iter().map(|m| m.1).sum::<u64>()
    }
}

impl Gpu {
    /// What the weights that a graph reads and a runner of these options will take.
    ///
    /// # Errors
    /// As [`Gpu::load`] and [`crate::backend::Loaded::executor`], but for memory that is short.
    pub fn memory_of(
        &self,
        graph: &Graph,
        dtypes: &[DType],
        run: &RunOptions,
        options: &RunnerOptions,
    ) -> Result<DeviceBytes> {
        let graph = DeviceWeights::graph(graph, run);
        let weights = DeviceWeights::layout(&graph, dtypes, self, run)?;
        let away = expert_slots::kept_away(&weights, run)?;
        let plan = plan::plan(&graph, &weights, self.caps(), &planned(run, options))?;
        let bytes = |away_too: bool| {
            let all = (0..).zip(&weights.matrices).filter(|(i, _)| away.contains(i) == away_too);
            all.map(|(_, m)| (m.parts.clone(), held(m.segments.iter().map(|s| s.bytes)))).collect()
        };
        let slots =
            plan.expert_caches.iter().map(|c| held(c.matrices.iter().map(|m| m.segment.bytes).chain([c.bytes])));
        let parts = plan.caches.iter().flat_map(|c| &c.parts);
        Ok(DeviceBytes {
            matrices: bytes(false),
            away: bytes(true),
            slots: slots.sum(),
            expert_slots: plan.expert_caches.iter().map(|c| (c.layer.unwrap_or(0), c.slots)).collect(),
            vectors: held([weights.vector_bytes]),
            kv: held(parts.flat_map(|p| [p.keys, p.values])),
            states: held(plan.states.iter().copied()),
            scratch: held(plan.scratch_sizes()) + held(beside(&plan)),
        })
    }

    /// Refuses weights for which the device has no memory left.
    ///
    /// # Errors
    /// [`crate::Error::Device`] with both sizes.
    pub fn check_weights(&self, bytes: u64) -> Result<()> {
        let help = "experts left to the processor, a model of fewer bits a weight or the cpu backend helps";
        self.memory.check(self.name(), bytes, "the weights", help)
    }

    /// How programs are run on this device unless the caller says otherwise.
    pub fn run_options(&self) -> RunOptions {
        self.run
    }

    /// Whether the device computes in the processor's own memory: a part of a processor, or one that is emulated.
    pub fn shares_memory(&self) -> bool {
        !self.memory.own && self.memory.adapter.get_info().device_type != wgpu::DeviceType::DiscreteGpu
    }

    /// What the device could do at best. Takes some tenths of a second.
    ///
    /// # Errors
    /// [`crate::Error::Device`].
    #[doc(hidden)]
    pub fn roofline(&self) -> Result<Roofline> {
        super::profile::roofline(self)
    }
}

/// Memory is given to buffers in grains: no driver that was met has larger ones.
const GRAIN: u64 = 256;

/// What buffers of these sizes take.
fn held(sizes: impl IntoIterator<Item = u64>) -> u64 {
    sizes.into_iter().map(|bytes| bytes.max(1).next_multiple_of(GRAIN)).sum()
}

/// Bytes of each of a runner's buffers that a plan does not count: parameters, what goes in, what comes back, the sampler's.
fn beside(plan: &Plan) -> Vec<u64> {
    let schedules = plan.schedules().into_iter().filter_map(|s| s.1);
    let params = schedules.map(|s| params_bytes(&s.steps));
    let sampler = plan.sampling.iter().flat_map(GpuSampler::sizes);
    let rows = plan.prefill.max_tokens as u64;
    let host = Some(plan.host_read_bytes()).filter(|bytes| *bytes > 0);
    let others = [4 * rows, 8 * rows, size_of::<Frame>() as u64, plan::ZERO_BYTES, Staging::bytes(plan)];
    params.chain(sampler).chain(host).chain(others).collect()
}
