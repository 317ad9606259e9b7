//! What steps need on the device (buffers, pipelines, bind groups), and their encoding.

use super::{
    canary::{self, POISON},
    gpu::Gpu,
    pipeline::Pipeline,
    upload::DeviceWeights,
};
use crate::{
    error::{Error, Result},
    kernels::params::Frame,
    ops,
    plan::{self, Buffer, Grid, PARAMS_STRIDE, Plan, RopeTable, Schedule, Sizes, check_step_shader},
};
use std::sync::{Arc, OnceLock};

/// Buffers that both schedules use.
pub(super) struct SequenceBuffers {
    pub frame: wgpu::Buffer,
    pub tokens: wgpu::Buffer,
    /// Sequence and position of each row, where there are several sequences.
    pub rows: wgpu::Buffer,
    pub inputs: Vec<wgpu::Buffer>,
    pub ropes: Vec<wgpu::Buffer>,
    pub caches: Vec<[wgpu::Buffer; 2]>,
    pub states: Vec<wgpu::Buffer>,
    /// Copies that `keep_states` made.
    pub kept: Vec<wgpu::Buffer>,
    pub bytes: u64,
}

/// A schedule's buffers, and what else encoding it needs: made when it is first used, for the driver's compiler takes its
/// time and a prompt's first token should not wait for what it does not need.
pub(super) struct PreparedSchedule {
    pub scratch: Vec<wgpu::Buffer>,
    params: wgpu::Buffer,
    steps: OnceLock<Vec<PreparedStep>>,
    pub bytes: u64,
}

/// What a step needs to be encoded.
pub(super) type PreparedStep = (Arc<Pipeline>, wgpu::BindGroup);

impl SequenceBuffers {
    pub fn new(gpu: &Gpu, plan: &Plan, poison: bool) -> Result<Self> {
        use wgpu::BufferUsages as U;
        let data = U::STORAGE | U::COPY_DST | U::COPY_SRC;
        let most = plan.prefill.max_tokens;
        let mut bytes = 0;
        let mut make = |label: &str, size: u64, usage: U| {
            bytes += size;
            gpu.device.buffer(label, size, usage)
        };
        let frame = make("frame", size_of::<Frame>() as u64, U::UNIFORM | U::COPY_DST)?;
        let tokens = make("tokens", 4 * most as u64, data)?;
        let rows = make("rows", 8 * most as u64, data)?;
        let input = |p: &plan::InputBuffer| make(&p.name, (4 * most * p.stride) as u64, data);
        let inputs = plan.inputs.iter().map(input).collect::<Result<_>>()?;
        let rope = |t: &RopeTable| make("rotations", t.bytes, U::STORAGE | U::COPY_DST);
        let ropes: Vec<wgpu::Buffer> = plan.ropes.iter().map(rope).collect::<Result<_>>()?;
        for (t, b) in plan.ropes.iter().zip(&ropes) {
            gpu.device.queue.write_buffer(b, 0, bytemuck::cast_slice(&rope_table(t)));
        }
        let cache = |c: &plan::CacheBytes| Ok([make("keys", c.keys, data)?, make("values", c.values, data)?]);
        let caches: Vec<[wgpu::Buffer; 2]> = plan.caches.iter().map(cache).collect::<Result<_>>()?;
        if poison {
            caches.iter().flatten().for_each(|b| canary::fill(&gpu.device, b, 0, b.size(), POISON));
        }
        let state = |bytes: &u64| make("state", *bytes, data);
        let states: Vec<wgpu::Buffer> = plan.states.iter().map(state).collect::<Result<_>>()?;
        let copy = |bytes: &u64| make("kept state", *bytes, U::COPY_DST | U::COPY_SRC);
        let kept = plan.states.iter().map(copy).collect::<Result<_>>()?;
        if poison {
            states.iter().for_each(|b| canary::fill(&gpu.device, b, 0, b.size(), POISON));
        }
        Ok(SequenceBuffers { frame, tokens, rows, inputs, ropes, caches, states, kept, bytes })
    }
}

/// Cosine and sine of every position and pair.
fn rope_table(t: &RopeTable) -> Vec<f32> {
    let pairs = t.rope.dims / 2;
    let positions = if pairs == 0 { 0 } else { t.bytes as usize / (8 * pairs) };
    let at = |i: usize| ops::rope::cos_sin(&t.rope, i / pairs, i % pairs);
    (0..positions * pairs).map(at).flat_map(|(cos, sin)| [cos, sin]).collect()
}

impl PreparedSchedule {
    pub fn new(gpu: &Gpu, s: &Schedule) -> Result<Self> {
        use wgpu::BufferUsages as U;
        let scratch = |x: &plan::Scratch| {
            let usage = U::STORAGE | U::COPY_SRC | U::COPY_DST | if x.indirect { U::INDIRECT } else { U::empty() };
            gpu.device.buffer("scratch", x.bytes, usage)
        };
        let scratch: Vec<wgpu::Buffer> = s.scratch.iter().map(scratch).collect::<Result<_>>()?;
        let params = params_buffer(gpu, &s.steps)?;
        let bytes = s.scratch.iter().map(|s| s.bytes).sum::<u64>() + params.size();
        Ok(PreparedSchedule { scratch, params, steps: OnceLock::new(), bytes })
    }

    /// Pipelines and bind groups.
    pub fn prepared(&self, weights: &DeviceWeights, s: &Schedule, shared: &SequenceBuffers) -> Result<&[PreparedStep]> {
        let find = |b: Buffer| match b {
            Buffer::Params => &self.params,
            other => buffer_of(weights, shared, &self.scratch, other),
        };
        prepared_once(&self.steps, || {
            tracing::debug!("{} steps of up to {} tokens are made", s.steps.len(), s.max_tokens);
            prepare_steps(&weights.gpu, &s.steps, &find)
        })
    }
}

/// What a cell holds, made where it holds nothing.
pub(super) fn prepared_once(
    cell: &OnceLock<Vec<PreparedStep>>,
    make: impl FnOnce() -> Result<Vec<PreparedStep>>,
) -> Result<&[PreparedStep]> {
    match cell.get() {
        Some(made) => Ok(made),
        None => {
            let made = make()?;
            Ok(cell.get_or_init(|| made))
        }
    }
}

/// Encodes steps into a compute pass. `scratch` is that of their schedule, for indirect dispatches.
pub(super) fn encode(
    pass: &mut wgpu::ComputePass<'_>,
    steps: &[plan::Step],
    made: &[PreparedStep],
    scratch: &[wgpu::Buffer],
    sizes: Sizes,
) {
    let mut current: Option<&Arc<Pipeline>> = None;
    for (step, (pipeline, group)) in steps.iter().zip(made) {
        let grid = step.grid.eval(sizes);
        if grid.is_some_and(|g| g.contains(&0)) {
            continue;
        }
        if !current.is_some_and(|c| Arc::ptr_eq(c, pipeline)) {
            pass.set_pipeline(&pipeline.pipeline);
            current = Some(pipeline);
        }
        pass.set_bind_group(0, group, &[]);
        match (grid, step.grid) {
            (Some([x, y, z]), _) => pass.dispatch_workgroups(x, y, z),
            (None, Grid::Indirect { buffer: Buffer::Scratch(i), offset, .. }) => {
                pass.dispatch_workgroups_indirect(&scratch[i as usize], offset);
            }
            (None, _) => {}
        }
    }
}

/// The uniforms of steps, one after the other.
pub(super) fn params_buffer(gpu: &Gpu, steps: &[plan::Step]) -> Result<wgpu::Buffer> {
    let mut uniforms = vec![0u8; steps.len().max(1) * PARAMS_STRIDE as usize];
    for (step, to) in steps.iter().zip(uniforms.chunks_mut(PARAMS_STRIDE as usize)) {
        to[..step.params.len()].copy_from_slice(&step.params);
    }
    let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
    let params = gpu.device.buffer("parameters", uniforms.len() as u64, usage)?;
    gpu.device.queue.write_buffer(&params, 0, &uniforms);
    Ok(params)
}

/// Pipelines and bind groups of steps.
pub(super) fn prepare_steps<'a>(
    gpu: &Gpu,
    steps: &[plan::Step],
    find: &dyn Fn(Buffer) -> &'a wgpu::Buffer,
) -> Result<Vec<PreparedStep>> {
    gpu.pipelines.prepare(&gpu.device, steps.iter().map(|s| &s.variant));
    let make = |(i, step): (usize, &plan::Step)| {
        let pipeline = gpu.pipelines.get(&gpu.device, &step.variant)?;
        check_step_shader(step, &pipeline.reflection)?;
        let group = bind_group(gpu, step, i, &pipeline, find)?;
        Ok((pipeline, group))
    };
    steps.iter().enumerate().map(make).collect()
}

/// A buffer of the plan that is neither the parameters nor sampling's.
pub(super) fn buffer_of<'a>(
    weights: &'a DeviceWeights,
    shared: &'a SequenceBuffers,
    scratch: &'a [wgpu::Buffer],
    b: Buffer,
) -> &'a wgpu::Buffer {
    match b {
        Buffer::Frame => &shared.frame,
        Buffer::Tokens => &shared.tokens,
        Buffer::Rows => &shared.rows,
        Buffer::Vectors => &weights.vectors,
        Buffer::Matrix { matrix, segment } => &weights.matrices[matrix as usize][segment as usize],
        Buffer::Rope(i) => &shared.ropes[i as usize],
        Buffer::Input(i) => &shared.inputs[i as usize],
        Buffer::Keys(c) => &shared.caches[c as usize][0],
        Buffer::Values(c) => &shared.caches[c as usize][1],
        Buffer::State(i) => &shared.states[i as usize],
        Buffer::Scratch(i) => &scratch[i as usize],
        Buffer::Zero | Buffer::Params | Buffer::Sampling(_) => &weights.zero,
    }
}

/// Binds what a step names, by the names in its shader.
fn bind_group<'a>(
    gpu: &Gpu,
    step: &plan::Step,
    index: usize,
    pipeline: &Pipeline,
    find: &dyn Fn(Buffer) -> &'a wgpu::Buffer,
) -> Result<wgpu::BindGroup> {
    let mut entries = Vec::with_capacity(pipeline.reflection.bindings.len());
    for b in &pipeline.reflection.bindings {
        let (buffer, offset, size) = match step.bindings.iter().find(|x| x.name == b.name) {
            Some(x) => (x.buffer, x.offset, x.size),
            None if b.name == "frame" => (Buffer::Frame, 0, size_of::<Frame>() as u64),
            None => (Buffer::Params, index as u64 * PARAMS_STRIDE, PARAMS_STRIDE),
        };
        let size = wgpu::BufferSize::new(size);
        let binding = wgpu::BufferBinding { buffer: find(buffer), offset, size };
        entries.push(wgpu::BindGroupEntry { binding: b.index, resource: wgpu::BindingResource::Buffer(binding) });
    }
    let label = step.variant.label();
    let descriptor = wgpu::BindGroupDescriptor { label: Some(&label), layout: &pipeline.layout, entries: &entries };
    gpu.device
        .scoped(|d| d.create_bind_group(&descriptor))
        .map_err(|e| Error::Device(format!("bindings of {label}: {e}")))
}
