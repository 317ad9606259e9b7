//! A graph recorded for a number of rows: its buffers, and its dispatches in order.

use super::{
    feed::{Host, is_input},
    fold::folded,
    kernel::{Buffer, Kernel, MOST_NUMBERS, Work},
    lower::{self, Lowered, rows_of},
    weights::{Weights, storage},
};
use crate::{
    backend::{
        training::Named,
        wgpu::{RunOptions, device::Device, gpu::Gpu, mapping::map_read, pipeline::Pipelines},
    },
    error::{Error, Result},
    ir::{Graph, Type, ValueId},
};
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

/// Bytes from one kernel's numbers to the next: every device binds uniforms at multiples of these.
pub const STRIDE: u64 = 256;

/// See the module's description.
pub struct Recorded {
    /// The rows that it is recorded for.
    pub rows: usize,
    graph: Arc<Graph>,
    values: Vec<Option<wgpu::Buffer>>,
    steps: Vec<Step>,
    /// What one submission may hold.
    most: Slice,
    /// Where outputs are read.
    results: wgpu::Buffer,
}

/// What a submission may hold at most.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    /// In the units of [`crate::backend::wgpu::RunOptions::max_work`].
    work: f64,
    dispatches: usize,
}

impl Slice {
    /// As the options of a run say.
    pub fn of(run: &RunOptions) -> Slice {
        let work = run.max_work.map_or(f64::INFINITY, |most| most.max(1) as f64);
        Slice { work, dispatches: run.max_dispatches.unwrap_or(usize::MAX).max(1) }
    }
}

/// A dispatch.
pub struct Step {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
    grid: [u32; 3],
    work: Work,
}

/// Encodes and submits dispatches but for the last slice of them, which is encoded only. `longest` is the number of rows of the
/// longest text.
pub fn encode_slices(
    device: &Device,
    mut steps: &[Step],
    most: Slice,
    longest: usize,
    last: &mut wgpu::CommandEncoder,
) {
    loop {
        let mut work = 0.0;
        let fits = |s: &&Step| {
            work += s.work.at(longest);
            work <= most.work
        };
        let count = steps.iter().take(most.dispatches).take_while(fits).count().max(1).min(steps.len());
        let (now, rest) = steps.split_at(count);
        if rest.is_empty() {
            return encode(device, now, last);
        }
        let mut encoder = device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encode(device, now, &mut encoder);
        device.submit([encoder.finish()]);
        steps = rest;
    }
}

/// Encodes dispatches as one pass.
fn encode(device: &Device, steps: &[Step], encoder: &mut wgpu::CommandEncoder) {
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
    for s in steps {
        pass.set_pipeline(&s.pipeline);
        pass.set_bind_group(0, &s.bindings, &[]);
        pass.dispatch_workgroups(s.grid[0], s.grid[1], s.grid[2]);
    }
    device.traffic.dispatches.fetch_add(steps.len() as u64, Ordering::Relaxed);
}

/// A buffer that a kernel can bind whole.
pub fn bound(device: &Device, label: &str, numbers: usize) -> Result<wgpu::Buffer> {
    let (bytes, most) = (4 * numbers as u64, device.caps.max_binding);
    if bytes > most {
        return Err(Error::Device(format!(
            "{label} takes {bytes} bytes, and kernels of {} bind at most {most}; a smaller micro-batch or model helps, and the \
             cpu backend has no such limit",
            device.name
        )));
    }
    device.buffer(label, bytes, storage())
}

/// Numbers of a value.
fn numbers(g: &Graph, v: ValueId, rows: usize) -> usize {
    rows_of(g, v, rows) * g.cols(v)
}

impl Recorded {
    /// Records a graph for micro-batches of `rows` rows.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an op without a kernel, [`Error::Device`] where memory is short.
    pub fn new(gpu: &Gpu, graph: Arc<Graph>, rows: usize, weights: &Weights) -> Result<Recorded> {
        let device = &*gpu.device;
        let mut lowered = lower::lower(&graph, rows, weights.direct, &weights.places, device.caps.max_binding)?;
        let most = Slice::of(&gpu.run);
        let parts = lowered.kernels.into_iter().flat_map(|k| k.parts(most.work, rows));
        lowered.kernels = parts.collect();
        let layout = Layout::new(&graph, rows);
        let others = lowered.scratch.iter().sum::<usize>() + lowered.tables.iter().map(Vec::len).sum::<usize>();
        let needed = 4 * (layout.sizes.iter().sum::<usize>() + others) as u64;
        let what = format!("the values of a micro-batch of {rows} rows");
        gpu.memory.check(gpu.name(), needed, &what, "a smaller micro-batch or recompute = \"layer\" helps")?;
        let pool = layout.sizes.iter().zip(&layout.labels);
        let pool = pool.map(|(n, label)| bound(device, label, *n)).collect::<Result<Vec<_>>>()?;
        let values: Vec<_> = layout.places.iter().map(|at| at.map(|at| pool[at].clone())).collect();
        let steps = steps(device, &gpu.pipelines, &lowered, &values, weights)?;
        let all: usize = graph.outputs.iter().map(|(_, v)| numbers(&graph, *v, rows)).sum();
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let results = device.buffer("results", 4 * all as u64, usage)?;
        Ok(Recorded { rows, graph, values, steps, most, results })
    }

    /// Writes a micro-batch.
    pub fn write(&self, device: &Device, inputs: &[(ValueId, Host<'_>)]) {
        for (v, host) in inputs {
            let Some(buffer) = &self.values[v.0 as usize] else { continue };
            match host {
                Host::Ids(ids) => device.queue.write_buffer(buffer, 0, bytemuck::cast_slice(ids)),
                Host::Numbers(x) => {
                    let x: Vec<f32> = x.iter().map(|v| *v as f32).collect();
                    device.queue.write_buffer(buffer, 0, bytemuck::cast_slice(&x));
                }
            }
        }
    }

    /// Runs what was written, by as many submissions as it takes, and reads the outputs. `longest` is the number of rows of the longest text.
    pub fn run(&self, device: &Device, longest: usize) -> Result<Vec<Named>> {
        let mut encoder = device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encode_slices(device, &self.steps, self.most, longest, &mut encoder);
        let mut at = 0;
        for (_, v) in &self.graph.outputs {
            let Some(buffer) = &self.values[v.0 as usize] else { continue };
            let size = 4 * numbers(&self.graph, *v, self.rows) as u64;
            encoder.copy_buffer_to_buffer(buffer, 0, &self.results, at, size);
            at += size;
        }
        let submission = device.submit([encoder.finish()]);
        if at == 0 {
            device.wait(&submission, "a micro-batch")?;
            return Ok(vec![]);
        }
        let view = map_read(device, &self.results, 0..at, &submission, "a micro-batch")?;
        let all = self.named(&view);
        drop(view);
        self.results.unmap();
        device.errors.take()?;
        Ok(all)
    }

    /// The outputs, of the bytes that were read.
    fn named(&self, mut bytes: &[u8]) -> Vec<Named> {
        let mut all = vec![];
        for (name, v) in self.graph.outputs.iter().filter(|(_, v)| self.values[v.0 as usize].is_some()) {
            let (own, rest) = bytes.split_at(4 * numbers(&self.graph, *v, self.rows));
            bytes = rest;
            let ids = matches!(self.graph.ty(*v), Type::U32(..));
            let number = |b: &[u8]| {
                let word = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                if ids { f64::from(word) } else { f64::from(f32::from_bits(word)) }
            };
            let values = own.chunks_exact(4).map(number).collect();
            all.push(Named { name: name.clone(), cols: self.graph.cols(*v), values });
        }
        all
    }
}

/// Which buffer each value has. Values that are not used any more give theirs to later ones of the same size.
struct Layout {
    /// By value, an index into `sizes`.
    places: Vec<Option<usize>>,
    sizes: Vec<usize>,
    labels: Vec<&'static str>,
}

impl Layout {
    fn new(graph: &Graph, rows: usize) -> Layout {
        let mut last = vec![0; graph.values.len()];
        for (i, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().chain(&node.outputs).for_each(|v| last[v.0 as usize] = i);
        }
        graph.outputs.iter().for_each(|(_, v)| last[v.0 as usize] = usize::MAX);
        // What the host writes is written before the first node runs: it keeps a buffer of its own.
        let fed = graph.nodes.iter().filter(|n| is_input(&n.op)).flat_map(|n| &n.outputs);
        fed.for_each(|v| last[v.0 as usize] = usize::MAX);
        let folded = folded(graph);
        // A kernel that makes a sum behind it writes that while it reads its own operands.
        for (i, node) in graph.nodes.iter().enumerate().filter(|(i, _)| folded.get(i + 1) == Some(&true)) {
            node.inputs.iter().for_each(|v| last[v.0 as usize] = last[v.0 as usize].max(i + 1));
        }
        let mut layout = Layout { places: vec![None; graph.values.len()], sizes: vec![], labels: vec![] };
        let mut free: HashMap<usize, Vec<usize>> = HashMap::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            for v in node.outputs.iter().filter(|v| graph.ty(**v).dims().is_some()) {
                let size = numbers(graph, *v, rows);
                let reused = if is_input(&node.op) { None } else { free.get_mut(&size).and_then(Vec::pop) };
                layout.places[v.0 as usize] = Some(reused.unwrap_or_else(|| {
                    layout.sizes.push(size);
                    layout.labels.push(node.op.name());
                    layout.sizes.len() - 1
                }));
            }
            let before = if folded[i] { &graph.nodes[i - 1].inputs[..] } else { &[] };
            let mut done: Vec<ValueId> = node.inputs.iter().chain(&node.outputs).chain(before).copied().collect();
            done.sort();
            done.dedup();
            for v in done.into_iter().filter(|v| last[v.0 as usize] == i) {
                if let Some(at) = layout.places[v.0 as usize] {
                    free.entry(layout.sizes[at]).or_default().push(at);
                }
            }
        }
        layout
    }
}

/// The dispatches of kernels.
fn steps(
    device: &Device,
    pipelines: &Pipelines,
    lowered: &Lowered,
    values: &[Option<wgpu::Buffer>],
    weights: &Weights,
) -> Result<Vec<Step>> {
    let scratch = lowered.scratch.iter().map(|n| bound(device, "scratch", *n)).collect::<Result<Vec<_>>>()?;
    let mut tables = vec![];
    for t in &lowered.tables {
        let b = bound(device, "table", t.len())?;
        device.queue.write_buffer(&b, 0, bytemuck::cast_slice(t));
        tables.push(b);
    }
    let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
    let uniforms = device.buffer("sizes", STRIDE * lowered.kernels.len().max(1) as u64, usage)?;
    let find = |b: &Buffer| match b {
        Buffer::Value(v) => values[v.0 as usize].as_ref(),
        Buffer::Weight(w, s) => weights.weights[w.0 as usize].get(*s),
        Buffer::Gradient(w, s) => weights.gradients[w.0 as usize].get(*s),
        Buffer::Scratch(i) => scratch.get(*i),
        Buffer::Table(i) => tables.get(*i),
    };
    let mut words = vec![0u32; lowered.kernels.len() * (STRIDE / 4) as usize];
    let mut steps = vec![];
    for (i, k) in lowered.kernels.iter().enumerate() {
        words[i * (STRIDE / 4) as usize..][..k.numbers.len()].copy_from_slice(&k.numbers);
        let operands = k.reads.iter().chain(&k.writes).map(|o| find(&o.buffer)).collect::<Option<Vec<_>>>();
        let missing = || Error::Graph(format!("{} on the GPU: an operand without a buffer", k.name));
        let operands = operands.ok_or_else(missing)?.into_iter().map(|b| b.as_entire_binding());
        steps.push(step(
            device,
            pipelines,
            k,
            bound_uniforms(&uniforms, i, &weights.draw).into_iter().chain(operands),
        )?);
    }
    device.queue.write_buffer(&uniforms, 0, bytemuck::cast_slice(&words));
    Ok(steps)
}

/// What every kernel binds first: its numbers, those of kernel `i`, and the random key.
pub fn bound_uniforms<'a>(
    uniforms: &'a wgpu::Buffer,
    i: usize,
    draw: &'a wgpu::Buffer,
) -> [wgpu::BindingResource<'a>; 2] {
    let size = wgpu::BufferSize::new(4 * MOST_NUMBERS as u64);
    let own = wgpu::BufferBinding { buffer: uniforms, offset: i as u64 * STRIDE, size };
    [wgpu::BindingResource::Buffer(own), draw.as_entire_binding()]
}

/// A dispatch of a kernel with what it binds.
pub fn step<'a>(
    device: &Device,
    pipelines: &Pipelines,
    k: &Kernel,
    bound: impl Iterator<Item = wgpu::BindingResource<'a>>,
) -> Result<Step> {
    let text = k.text(device.caps.features.flushes_halves);
    let pipeline = pipelines.training(device, k.name, &text, k.reads.len(), k.writes.len())?;
    let grid = k.grid().ok_or_else(|| {
        let what = "more workgroups than a dispatch takes; a smaller micro-batch helps";
        Error::Unsupported(format!("{} on the GPU: {what}", k.name))
    })?;
    let entries: Vec<_> =
        bound.enumerate().map(|(i, resource)| wgpu::BindGroupEntry { binding: i as u32, resource }).collect();
    let bindings = device.scoped(|d| {
        let layout = &pipeline.get_bind_group_layout(0);
        d.create_bind_group(&wgpu::BindGroupDescriptor { label: Some(k.name), layout, entries: &entries })
    });
    let bindings = bindings.map_err(|e| Error::Device(format!("{}: {e}", k.name)))?;
    Ok(Step { pipeline, bindings, grid, work: k.work })
}
