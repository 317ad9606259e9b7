//! A runner on the device: its plan, its buffers, and the steps that were begun. `submit` encodes and submits them, `fetch` brings
//! their results back, `executor` is what the host sees.

use super::{
    RunOptions,
    begun::{Begun, Ubatch},
    device::{Device, Submission},
    gpu::Gpu,
    host::{HostRead, HostSide},
    mapping::Signal,
    sampler::GpuSampler,
    schedules::{PreparedSchedule, SequenceBuffers},
    slices::{Pace, SliceTime},
    states::StateSlots,
    upload::DeviceWeights,
};
use crate::{
    backend::{
        Output, check_size,
        runner::{Results, RunnerOptions},
    },
    error::{Error, Result},
    ir::Rows,
    plan::{self, OutputView, Plan, Schedule, Sizes},
};
use std::{collections::VecDeque, sync::Arc};

/// Steps that may be begun before the first is done: one is encoded while another runs.
pub(super) const DEPTH: usize = 2;

/// Submissions that may be on the device at once.
pub(super) const MOST_FLIGHTS: usize = 2;

/// See [`Executor`].
pub(super) struct GpuRunner {
    pub weights: Arc<DeviceWeights>,
    pub plan: Plan,
    pub options: RunnerOptions,
    pub buffers: SequenceBuffers,
    /// By number, as in [`Plan::schedules`].
    pub prepared: [Option<PreparedSchedule>; 3],
    pub sampler: Option<GpuSampler>,
    /// The device's compiler refuses the sampler's kernels: tokens are chosen on the host.
    pub no_sampler: bool,
    pub states: StateSlots,
    /// The sequence whose token that was chosen last lies in each row of the buffer of token ids.
    pub held: Vec<Option<usize>>,
    /// Sequences whose chosen tokens went with a cancelled step: they need new rules.
    pub stale: Vec<bool>,
    pub staging: Staging,
    /// Experts that the host computes.
    pub host: Option<HostSide>,
    pub begun: VecDeque<Begun>,
    pub spare: Vec<Begun>,
    pub flights: VecDeque<Flight>,
    /// What has come of the oldest step.
    pub results: Results,
    pub pace: Pace,
    /// What the frame on the device says of the part of a dispatch.
    pub first_block: u32,
    /// Words while they are written to the device.
    pub words: Vec<u32>,
}

/// Where results are mapped for reading, those of one ubatch at a time.
pub(super) struct Staging {
    pub buffer: wgpu::Buffer,
    pub signal: Signal,
    pub busy: bool,
}

/// A submission that was not seen to be done.
pub(super) struct Flight {
    pub submission: Submission,
    pub read: Option<Readback>,
    /// What the host computes with once it has come back.
    pub host: Option<HostRead>,
    pub measured: Option<SliceTime>,
}

/// What comes back from an ubatch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Readback {
    pub ubatch: Ubatch,
    /// Number of the schedule.
    pub which: usize,
    /// Bytes of results in the staging buffer; 0: none.
    pub bytes: u64,
    /// Slot and bytes of chosen tokens.
    pub chosen: Option<(usize, u64)>,
}

impl GpuRunner {
    /// Plans, and makes all buffers.
    ///
    /// # Errors
    /// As [`crate::backend::Loaded::executor`].
    pub fn new(weights: Arc<DeviceWeights>, options: RunnerOptions) -> Result<Self> {
        check_size(&options)?;
        let (gpu, run) = (&weights.gpu, &weights.run);
        gpu.device.errors.take()?;
        let plan = plan::plan(&weights.graph, &weights.weights, &gpu.device.caps, &planned(run, &options))?;
        let help = "a shorter context, fewer sequences, keys and values in q8_0 or a smaller micro-batch helps";
        gpu.memory.check(gpu.name(), plan.buffer_bytes(), "keys, values and working memory", help)?;
        let buffers = SequenceBuffers::new(gpu, &plan, run.poison)?;
        let prepare = |s: Option<&Schedule>| s.map(|s| PreparedSchedule::new(gpu, s)).transpose();
        let [decode, small, prefill] = plan.schedules().map(|s| s.1);
        let prepared = [prepare(decode)?, prepare(small)?, prepare(prefill)?];
        // Decoding starts without delay, whatever came before.
        if let [Some(decode), ..] = &prepared {
            decode.steps(&weights, &plan.decode, &buffers)?;
        }
        let staging = Staging::new(gpu, &plan)?;
        let host = weights.host.as_ref().map(|h| HostSide::new(gpu, &plan, &**h)).transpose()?;
        let held = vec![None; plan.prefill.max_tokens.max(plan.decode.max_tokens)];
        gpu.device.wait_idle("the buffers of a runner")?;
        let mut runner = GpuRunner {
            states: StateSlots::new(options.sequences, !weights.graph.states.is_empty()),
            stale: vec![false; options.sequences],
            weights,
            plan,
            options,
            buffers,
            prepared,
            sampler: None,
            no_sampler: false,
            held,
            staging,
            host,
            begun: VecDeque::with_capacity(DEPTH),
            spare: vec![],
            flights: VecDeque::with_capacity(MOST_FLIGHTS),
            results: Results::default(),
            pace: Pace::default(),
            first_block: 0,
            words: vec![],
        };
        runner.clear_results();
        Ok(runner)
    }

    pub fn gpu(&self) -> &Gpu {
        &self.weights.gpu
    }

    pub fn device(&self) -> Arc<Device> {
        self.weights.gpu.device.clone()
    }

    /// The schedule of a number and its buffers.
    pub fn schedule(&self, which: usize) -> Result<(&Schedule, &PreparedSchedule)> {
        let schedule = self.plan.schedules().get(which).and_then(|s| s.1);
        let prepared = self.prepared.get(which).and_then(Option::as_ref);
        let missing = || Error::Graph(format!("there is no schedule {which}"));
        schedule.zip(prepared).ok_or_else(missing)
    }

    /// The ubatch of a step that begins at row `first`.
    pub fn ubatch(&self, step: &Begun, first: usize) -> Ubatch {
        let choices = self.plan.sampling.as_ref().map_or(0, |s| s.choices);
        step.ubatch(first, &self.plan.prefill, choices)
    }

    /// Sizes of an ubatch of a step.
    pub fn sizes(&self, step: &Begun, u: Ubatch) -> Sizes {
        let rows = &step.rows[u.first..u.end()];
        let first = rows.first().map_or(0, |r| r.position);
        // With several sequences kernels read the position of each row; this says how far they reach together.
        let furthest = rows.iter().map(|r| r.position + 1).max().unwrap_or(0);
        let past = if self.options.sequences == 1 { first } else { furthest.saturating_sub(u.rows) };
        Sizes { tokens: u.rows as u32, outputs: u.outputs as u32, past: past as u32 }
    }

    /// Empties the results for the next step.
    pub fn clear_results(&mut self) {
        self.results.tokens.clear();
        self.results.outputs.resize_with(self.plan.decode.outputs.len(), Output::default);
        for (o, place) in self.results.outputs.iter_mut().zip(&self.plan.decode.outputs) {
            (o.rows, o.cols) = (0, place.cols);
            o.f32.clear();
            o.u32.clear();
        }
    }

    /// Bytes of caches, states, scratch, and of what is read back.
    pub fn bytes(&self) -> u64 {
        let prepared: u64 = self.prepared.iter().flatten().map(|p| p.bytes).sum();
        let sampler = self.sampler.as_ref().map_or(0, |s| s.bytes);
        let host = self.host.as_ref().map_or(0, HostSide::bytes);
        self.buffers.bytes + prepared + self.staging.buffer.size() + sampler + host
    }
}

/// What a runner's plan is for.
pub(super) fn planned(run: &RunOptions, options: &RunnerOptions) -> plan::Options {
    plan::Options {
        reduction: run.reduction,
        tiles: run.tiles,
        subgroups: run.subgroups,
        canaries: run.canaries,
        sequences: (options.sequences > 1).then_some(options.sequences),
        expert_slots: run.expert_slots,
        ..plan::Options::new(options.ctx, options.ubatch, options.kv)
    }
}

impl Staging {
    /// Bytes of the results of the largest ubatch of any schedule.
    pub fn bytes(plan: &Plan) -> u64 {
        let results = |s: &Schedule| -> u64 {
            let rows = |o: &OutputView| if o.rows == Rows::Tokens { s.max_tokens } else { s.max_outputs };
            s.outputs.iter().map(|o| row_bytes(o) * rows(o) as u64).sum()
        };
        let all = plan.schedules().into_iter().filter_map(|s| s.1);
        all.map(results).fold(16, u64::max).next_multiple_of(8)
    }

    fn new(gpu: &Gpu, plan: &Plan) -> Result<Self> {
        let bytes = Self::bytes(plan);
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        Ok(Staging { buffer: gpu.device.buffer("results", bytes, usage)?, signal: Signal::default(), busy: false })
    }
}

/// Bytes of a row of a result in its buffer, padding included.
pub(super) fn row_bytes(place: &OutputView) -> u64 {
    4 * u64::from(place.view.stride)
}

/// Runs of rows of an ubatch's result that are wanted, counted in the result's own rows: of results for every token all where the
/// step is traced; of what the last layer leaves those whose hidden states are wanted; of results for outputs those whose logits
/// are.
pub(super) fn wanted_rows<'a>(
    place: &OutputView,
    step: &'a Begun,
    u: Ubatch,
) -> impl Iterator<Item = std::ops::Range<usize>> + 'a {
    let first = if place.rows == Rows::Tokens { u.first } else { u.first_output() };
    let (all, trace, residual) = (place.rows == Rows::Tokens, step.trace, place.residual);
    let wanted = move |i: usize| match () {
        () if residual => step.rows[i].hidden,
        () if all => trace,
        () => step.rows[i].logits,
    };
    let mut at = first;
    std::iter::from_fn(move || {
        while at < u.end() && !wanted(at) {
            at += 1;
        }
        let begin = at;
        while at < u.end() && wanted(at) {
            at += 1;
        }
        (at > begin).then_some(begin - first..at - first)
    })
}
