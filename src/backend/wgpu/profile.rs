//! Where the time goes: each dispatch of a step between two timestamps, and the roofline that it is compared with: how fast
//! this device copies, and what a dispatch costs that does nothing.
//!
//! A profiled step has a pass a dispatch, so it is slower than a real one; the figures of the kernels are those of the device.

use super::{
    begun::{Begun, Ubatch},
    gpu::Gpu,
    host::copied,
    mapping::{self, map_read},
    runner::GpuRunner,
    schedules::encode,
};
use crate::{
    backend::{KernelTime, Roofline},
    error::{Error, Result},
    kernels::{
        Variant, catalogue,
        params::{CopyParams, Frame},
    },
    plan::{self, HostCall, Schedule, Sizes},
};
use std::{
    ops::Range,
    time::{Duration, Instant},
};

/// Dispatches between two reads of the timestamps; wgpu allows 4096 queries in a set.
const AT_ONCE: usize = 2048;

impl GpuRunner {
    /// See [`crate::backend::runner::Executor::profile`].
    pub fn profile_step(&mut self, step: &mut Begun) -> Result<Vec<KernelTime>> {
        let (t, u) = (step.rows.len(), self.ubatch(step, 0));
        if u.rows != t {
            return Err(Error::Invalid(format!("{t} rows are run in ubatches: profile {} at most", u.rows)));
        }
        let (device, which) = (self.device(), self.plan.choose(u.rows, u.outputs));
        let mut encoder = device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.write(step, u, which, &mut encoder)?;
        device.submit([encoder.finish()]);
        let sizes = self.sizes(step, u);
        let schedule = self.schedule(which)?.0;
        let (all, calls) = (schedule.steps.len(), schedule.host_calls.iter().map(|c| c.before).collect::<Vec<_>>());
        // What does not wait for the host runs after it here, where it is timed by itself.
        let (mut times, mut host, mut from) = (vec![], vec![], 0);
        for (call, before) in calls.into_iter().enumerate() {
            times.extend(self.timed_steps(which, from..before, sizes)?);
            host.push(self.timed_call(u, which, call)?);
            from = before;
        }
        times.extend(self.timed_steps(which, from..all, sizes)?);
        let schedule = self.schedule(which)?.0;
        let mut kernels = by_kernel(schedule, sizes, &times);
        kernels.extend(of_host(schedule, u.rows, &host));
        Ok(kernels)
    }

    /// Seconds of some dispatches of a schedule.
    fn timed_steps(&self, which: usize, range: Range<usize>, sizes: Sizes) -> Result<Vec<f64>> {
        let (schedule, prepared) = self.schedule(which)?;
        let prepared = prepared.steps(&self.weights, schedule, &self.buffers)?;
        let mut times = vec![];
        for from in range.clone().step_by(AT_ONCE) {
            let part = from..(from + AT_ONCE).min(range.end);
            let one = |pass: &mut wgpu::ComputePass<'_>, i: usize| {
                encode(pass, &schedule.steps[i..=i], &prepared[i..=i], sizes);
            };
            times.extend(timed(self.gpu(), part, &one)?);
        }
        Ok(times)
    }

    /// Seconds in which what a call of the host reads comes back, and in which the host computes.
    fn timed_call(&mut self, u: Ubatch, which: usize, call: usize) -> Result<[f64; 2]> {
        let (device, start) = (self.device(), Instant::now());
        let mut encoder = device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let read = self.copy_to_host(&mut encoder, u, which, call)?;
        let submission = device.submit([encoder.finish()]);
        if let Some(host) = &mut self.host {
            host.map(read);
            mapping::wait(&device, &host.signal, &submission, "what the processor's experts read")?;
        }
        let (back, start) = (start.elapsed(), Instant::now());
        match self.exchange(read)? {
            true => Ok([back.as_secs_f64(), start.elapsed().as_secs_f64()]),
            false => Err(Error::Device(format!("{} did not answer; waited for what experts read", self.gpu().name()))),
        }
    }
}

/// What the host did, as kernels: what went to and fro, and what it computed.
fn of_host(s: &Schedule, rows: usize, times: &[[f64; 2]]) -> Vec<KernelTime> {
    if times.is_empty() {
        return vec![];
    }
    let bytes = |c: &HostCall| c.inputs.iter().map(|i| copied(i, rows).1).sum::<u64>() + 4 * (rows * c.stride) as u64;
    let made = |kernel: &str, i: usize, bytes: u64| KernelTime {
        kernel: kernel.into(),
        op: "host_experts",
        dispatches: times.len(),
        seconds: times.iter().map(|t| t[i]).sum(),
        bytes,
    };
    vec![
        made("the way to the processor", 0, s.host_calls.iter().map(bytes).sum()),
        made("experts on the processor", 1, 0),
    ]
}

/// Seconds of each of some dispatches.
fn timed(
    gpu: &Gpu,
    range: std::ops::Range<usize>,
    encode_one: &dyn Fn(&mut wgpu::ComputePass<'_>, usize),
) -> Result<Vec<f64>> {
    use wgpu::BufferUsages as U;
    if !gpu.device.raw.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
        return Err(Error::Unsupported(format!("{} has no timestamp queries: no profile on this device", gpu.name())));
    }
    let count = 2 * range.len() as u32;
    let bytes = 8 * u64::from(count);
    let queries = gpu.device.raw.create_query_set(&wgpu::QuerySetDescriptor {
        label: Some("times"),
        ty: wgpu::QueryType::Timestamp,
        count,
    });
    let resolved = gpu.device.buffer("times", bytes, U::QUERY_RESOLVE | U::COPY_SRC)?;
    let staging = gpu.device.buffer("times", bytes, U::MAP_READ | U::COPY_DST)?;
    let mut encoder = gpu.device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    for (n, i) in range.enumerate() {
        let at = 2 * n as u32;
        let writes = wgpu::ComputePassTimestampWrites {
            query_set: &queries,
            beginning_of_pass_write_index: Some(at),
            end_of_pass_write_index: Some(at + 1),
        };
        let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes: Some(writes) };
        encode_one(&mut encoder.begin_compute_pass(&descriptor), i);
    }
    encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
    encoder.copy_buffer_to_buffer(&resolved, 0, &staging, 0, bytes);
    let submission = gpu.device.submit([encoder.finish()]);
    let view = map_read(&gpu.device, &staging, 0..bytes, &submission, "timestamps")?;
    let tick = 1e-9 * f64::from(gpu.device.queue.get_timestamp_period());
    let stamps: &[u64] = bytemuck::cast_slice(&view);
    Ok(stamps.chunks_exact(2).map(|s| s[1].saturating_sub(s[0]) as f64 * tick).collect())
}

/// Sums by kernel, in the order in which they first appear.
fn by_kernel(s: &Schedule, sizes: Sizes, times: &[f64]) -> Vec<KernelTime> {
    let mut all: Vec<KernelTime> = vec![];
    for (step, seconds) in s.steps.iter().zip(times) {
        let kernel = step.variant.label();
        let at = all.iter().position(|k| k.kernel == kernel && k.op == step.op).unwrap_or_else(|| {
            all.push(KernelTime { kernel, op: step.op, dispatches: 0, seconds: 0.0, bytes: 0 });
            all.len() - 1
        });
        let k = &mut all[at];
        k.dispatches += 1;
        k.seconds += seconds;
        k.bytes += step.reads.eval(sizes) + step.writes.eval(sizes);
    }
    all
}

/// Bytes that are copied.
const COPY: u64 = 64 << 20;
/// Those of a dispatch that does next to nothing.
const EMPTY: u64 = 256;
/// Workgroups of a dimension: see `copy.wgsl`.
const ROW: u32 = 65_535;

/// See [`crate::backend::Loaded::roofline`]. Takes some tenths of a second on a software device, less on others.
pub(super) fn roofline(gpu: &Gpu) -> Result<Roofline> {
    let bytes = COPY.min(gpu.device.caps.max_binding.min(gpu.device.caps.max_buffer) / 16 * 16);
    let copy = time_of(gpu, bytes, 2, 8)?;
    let dispatch = time_of(gpu, EMPTY, 64, 576)?;
    Ok(Roofline { bandwidth: 2.0 * bytes as f64 / copy.as_secs_f64().max(1e-9), dispatch: dispatch.as_secs_f64() })
}

/// Time of one of a chain of copies of so many bytes: the difference of a long and a short chain, best of a few.
fn time_of(gpu: &Gpu, bytes: u64, short: usize, long: usize) -> Result<Duration> {
    use wgpu::BufferUsages as U;
    let make = |usage| gpu.device.buffer("copy", bytes, usage);
    let buffers = [make(U::STORAGE | U::COPY_DST)?, make(U::STORAGE | U::COPY_DST)?];
    let small = |bytes: &[u8]| {
        let b = gpu.device.buffer("copy", plan::PARAMS_STRIDE, U::UNIFORM | U::COPY_DST)?;
        gpu.device.queue.write_buffer(&b, 0, bytes);
        Ok(b)
    };
    let groups = (bytes / 16) as u32;
    let frame = small(bytemuck::bytes_of(&Frame::default()))?;
    let params = small(bytemuck::bytes_of(&CopyParams { groups }))?;
    let variant = Variant::new(&catalogue::COPY);
    let workgroups = groups.div_ceil(variant.tile()?[0].max(1));
    let pipeline = gpu.pipelines.get(&gpu.device, &variant)?;
    let group = |from: usize| {
        let entry = |b: &crate::kernels::Binding| {
            let buffer = match b.name.as_str() {
                "frame" => &frame,
                "p" => &params,
                "y" => &buffers[1 - from],
                _ => &buffers[from],
            };
            wgpu::BindGroupEntry { binding: b.index, resource: buffer.as_entire_binding() }
        };
        let entries: Vec<_> = pipeline.reflection.bindings.iter().map(entry).collect();
        let descriptor = wgpu::BindGroupDescriptor { label: Some("copy"), layout: &pipeline.layout, entries: &entries };
        gpu.device.scoped(|d| d.create_bind_group(&descriptor)).map_err(|e| Error::Device(format!("copying: {e}")))
    };
    let bound = [group(0)?, group(1)?];
    let chain = |n: usize| -> Result<Duration> {
        let mut encoder = gpu.device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline.pipeline);
        pipeline.runs();
        for i in 0..n {
            pass.set_bind_group(0, &bound[i % 2], &[]);
            pass.dispatch_workgroups(workgroups.min(ROW), workgroups.div_ceil(ROW), 1);
        }
        drop(pass);
        let start = Instant::now();
        gpu.device.wait(&gpu.device.submit([encoder.finish()]), "a chain of copies")?;
        Ok(start.elapsed())
    };
    chain(short)?;
    let mut best = [Duration::MAX; 2];
    for _ in 0..3 {
        for (best, n) in best.iter_mut().zip([short, long]) {
            *best = (*best).min(chain(n)?);
        }
    }
    let difference = best[1].saturating_sub(best[0]) / (long - short) as u32;
    // Where the noise is larger than the difference, the mean of the long chain.
    Ok(if difference.is_zero() { best[1] / long as u32 } else { difference })
}
