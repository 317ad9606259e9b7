//! What steps need on the device (buffers, pipelines, bind groups), and their encoding.

use super::{
    canary::{self, POISON},
    expert_slots::CacheBuffers,
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
use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

/// The buffers of a runner's sequences, which all schedules use.
pub(super) struct SequenceBuffers {
    /// Sizes of the step: [`Frame`].
    pub frame: wgpu::Buffer,
    /// Token ids of the step's rows.
    pub tokens: wgpu::Buffer,
    /// Sequence and position of each row, where there are several sequences.
    pub rows: wgpu::Buffer,
    /// Rows and slots of states of each sequence, where the graph has recurrent states.
    pub spans: wgpu::Buffer,
    pub inputs: Vec<wgpu::Buffer>,
    /// What the host has computed, where it computes experts.
    pub host: Option<wgpu::Buffer>,
    pub ropes: Vec<wgpu::Buffer>,
    /// Keys and values of each part of each cache.
    pub caches: Vec<Vec<[wgpu::Buffer; 2]>>,
    /// All slots of each recurrent state.
    pub states: Vec<wgpu::Buffer>,
    /// Slots of experts: [`Plan::expert_caches`].
    pub experts: Vec<CacheBuffers>,
    /// All of them together.
    pub bytes: u64,
}

/// A schedule's buffers, and what else encoding it needs: prepared when it is first used, for the driver's compiler takes its
/// time and a prompt's first token should not wait for what it does not need.
pub(super) struct PreparedSchedule {
    pub scratch: Vec<wgpu::Buffer>,
    params: wgpu::Buffer,
    steps: OnceLock<Vec<PreparedStep>>,
    pub bytes: u64,
}

/// What encoding a dispatch needs.
pub(super) struct PreparedStep {
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
    /// Where the device reads the workgroups from: buffer and byte.
    indirect: Option<(wgpu::Buffer, u64)>,
}

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
        let spans = make("spans", plan.span_bytes(), data)?;
        let input = |p: &plan::InputBuffer| make(&p.name, (4 * most * p.stride) as u64, data);
        let inputs = plan.inputs.iter().map(input).collect::<Result<_>>()?;
        let host = match plan.host_bytes() {
            0 => None,
            bytes => Some(make("experts of the host", bytes, data)?),
        };
        let rope = |t: &RopeTable| make("rotations", t.bytes, U::STORAGE | U::COPY_DST);
        let ropes: Vec<wgpu::Buffer> = plan.ropes.iter().map(rope).collect::<Result<_>>()?;
        for (t, b) in plan.ropes.iter().zip(&ropes) {
            gpu.device.queue.write_buffer(b, 0, bytemuck::cast_slice(&rope_table(t)));
        }
        let mut part = |p: &plan::CachePart| -> Result<[wgpu::Buffer; 2]> {
            Ok([make("keys", p.keys, data)?, make("values", p.values, data)?])
        };
        let cache =
            |c: &plan::CacheBytes| -> Result<Vec<[wgpu::Buffer; 2]>> { c.parts.iter().map(&mut part).collect() };
        let caches: Vec<Vec<[wgpu::Buffer; 2]>> = plan.caches.iter().map(cache).collect::<Result<_>>()?;
        if poison {
            caches.iter().flatten().flatten().for_each(|b| canary::fill(&gpu.device, b, 0, b.size(), POISON));
        }
        let state = |bytes: &u64| make("state", *bytes, data);
        let states: Vec<wgpu::Buffer> = plan.states.iter().map(state).collect::<Result<_>>()?;
        if poison {
            states.iter().for_each(|b| canary::fill(&gpu.device, b, 0, b.size(), POISON));
        }
        let experts = plan.expert_caches.iter().map(|c| CacheBuffers::new(gpu, c, poison)).collect::<Result<_>>()?;
        bytes += plan.expert_cache_bytes();
        Ok(SequenceBuffers { frame, tokens, rows, spans, inputs, host, ropes, caches, states, experts, bytes })
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

    /// What encoding needs, made at the first call.
    pub fn steps(&self, weights: &DeviceWeights, s: &Schedule, buffers: &SequenceBuffers) -> Result<&[PreparedStep]> {
        let find = |b: Buffer| match b {
            Buffer::Params => Ok(&self.params),
            other => buffer_of(weights, buffers, &self.scratch, other),
        };
        prepared_once(&self.steps, || {
            tracing::debug!("{} steps of up to {} tokens are prepared", s.steps.len(), s.max_tokens);
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

/// Encodes steps into a compute pass.
pub(super) fn encode(pass: &mut wgpu::ComputePass<'_>, steps: &[plan::Step], prepared: &[PreparedStep], sizes: Sizes) {
    let mut current: Option<&Arc<Pipeline>> = None;
    for (step, PreparedStep { pipeline, group, indirect }) in steps.iter().zip(prepared) {
        let grid = step.grid.eval(sizes);
        if grid.is_some_and(|g| g.contains(&0)) {
            continue;
        }
        if !current.is_some_and(|c| Arc::ptr_eq(c, pipeline)) {
            pass.set_pipeline(&pipeline.pipeline);
            pipeline.runs();
            current = Some(pipeline);
        }
        pass.set_bind_group(0, group, &[]);
        match (grid, indirect) {
            (_, Some((buffer, byte))) => pass.dispatch_workgroups_indirect(buffer, *byte),
            (Some([x, y, z]), None) => pass.dispatch_workgroups(x, y, z),
            // Preparing a step found the buffer of every grid that the device reads.
            (None, None) => {}
        }
    }
}

/// Encodes some workgroups in y of a step.
pub(super) fn encode_part(
    pass: &mut wgpu::ComputePass<'_>,
    step: &plan::Step,
    prepared: &PreparedStep,
    sizes: Sizes,
    blocks: &Range<u32>,
) {
    let Some([x, _, z]) = step.grid.eval(sizes).filter(|_| !blocks.is_empty()) else { return };
    pass.set_pipeline(&prepared.pipeline.pipeline);
    prepared.pipeline.runs();
    pass.set_bind_group(0, &prepared.group, &[]);
    pass.dispatch_workgroups(x, blocks.end - blocks.start, z);
}

/// Bytes of the uniforms of steps.
pub(super) fn params_bytes(steps: &[plan::Step]) -> u64 {
    steps.len().max(1) as u64 * PARAMS_STRIDE
}

/// The uniforms of steps, one after the other.
pub(super) fn params_buffer(gpu: &Gpu, steps: &[plan::Step]) -> Result<wgpu::Buffer> {
    let mut uniforms = vec![0u8; params_bytes(steps) as usize];
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
    find: &dyn Fn(Buffer) -> Result<&'a wgpu::Buffer>,
) -> Result<Vec<PreparedStep>> {
    gpu.pipelines.prepare(&gpu.device, steps.iter().map(|s| &s.variant));
    let make = |(i, step): (usize, &plan::Step)| {
        let pipeline = gpu.pipelines.get(&gpu.device, &step.variant)?;
        check_step_shader(step, &pipeline.reflection)?;
        let group = bind_group(gpu, step, i, &pipeline, find)?;
        let indirect = match step.grid {
            Grid::Direct { .. } => None,
            Grid::Indirect { buffer, offset, .. } => Some((find(buffer)?.clone(), offset)),
        };
        Ok(PreparedStep { pipeline, group, indirect })
    };
    steps.iter().enumerate().map(make).collect()
}

/// A buffer of the plan that is neither the parameters nor the sampler's.
///
/// # Errors
/// [`Error::Graph`] for a buffer that the plan does not have, or that is bound elsewhere.
pub(super) fn buffer_of<'a>(
    weights: &'a DeviceWeights,
    buffers: &'a SequenceBuffers,
    scratch: &'a [wgpu::Buffer],
    b: Buffer,
) -> Result<&'a wgpu::Buffer> {
    let cache = |c: u32, part: u32, side: usize| buffers.caches.get(c as usize)?.get(part as usize).map(|p| &p[side]);
    let found = match b {
        Buffer::Frame => Some(&buffers.frame),
        Buffer::Tokens => Some(&buffers.tokens),
        Buffer::Rows => Some(&buffers.rows),
        Buffer::Spans => Some(&buffers.spans),
        Buffer::Zero => Some(&weights.zero),
        Buffer::Vectors => Some(&weights.vectors),
        Buffer::Matrix { matrix, segment } => {
            weights.matrices.get(matrix as usize).and_then(|m| m.get(segment as usize))
        }
        Buffer::ExpertSlots { cache, part } => {
            buffers.experts.get(cache as usize).and_then(|c| c.slots.get(part as usize))
        }
        Buffer::ExpertCache(c) => buffers.experts.get(c as usize).map(|c| &c.placing),
        Buffer::Rope(i) => buffers.ropes.get(i as usize),
        Buffer::Input(i) => buffers.inputs.get(i as usize),
        Buffer::Host(_) => buffers.host.as_ref(),
        Buffer::Keys { cache: c, part } => cache(c, part, 0),
        Buffer::Values { cache: c, part } => cache(c, part, 1),
        Buffer::State(i) => buffers.states.get(i as usize),
        Buffer::Scratch(i) => scratch.get(i as usize),
        Buffer::Params | Buffer::Sampling(_) => None,
    };
    found.ok_or_else(|| Error::Graph(format!("{b:?} is bound where it is not there")))
}

/// Binds what a step names, by the names in its shader.
fn bind_group<'a>(
    gpu: &Gpu,
    step: &plan::Step,
    index: usize,
    pipeline: &Pipeline,
    find: &dyn Fn(Buffer) -> Result<&'a wgpu::Buffer>,
) -> Result<wgpu::BindGroup> {
    let mut entries = Vec::with_capacity(pipeline.reflection.bindings.len());
    for b in &pipeline.reflection.bindings {
        let (buffer, offset, size) = match step.bindings.iter().find(|x| x.name == b.name) {
            Some(x) => (x.buffer, x.offset, x.size),
            None if b.name == "frame" => (Buffer::Frame, 0, size_of::<Frame>() as u64),
            None if b.name == "p" => (Buffer::Params, index as u64 * PARAMS_STRIDE, PARAMS_STRIDE),
            None => return Err(Error::Graph(format!("{} has no binding {}", step.variant.label(), b.name))),
        };
        let size = wgpu::BufferSize::new(size);
        let binding = wgpu::BufferBinding { buffer: find(buffer)?, offset, size };
        entries.push(wgpu::BindGroupEntry { binding: b.index, resource: wgpu::BindingResource::Buffer(binding) });
    }
    let label = step.variant.label();
    let descriptor = wgpu::BindGroupDescriptor { label: Some(&label), layout: &pipeline.layout, entries: &entries };
    gpu.device
        .scoped(|d| d.create_bind_group(&descriptor))
        .map_err(|e| Error::Device(format!("bindings of {label}: {e}")))
}
