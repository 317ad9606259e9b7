//! Experts that the processor computes between two parts of a step: what they read comes back from the device, what they make goes there.

use super::{
    begun::Ubatch,
    gpu::Gpu,
    mapping::{Signal, call_off, map_later},
};
use crate::{
    backend::host::{HostExperts, HostResult, HostRows, HostRunner},
    error::{Error, Result},
    plan::{HostCall, HostInput, Plan},
};

/// The processor's part of a runner.
pub(super) struct HostSide {
    runner: Box<dyn HostRunner>,
    /// Where inputs of a region are mapped for reading.
    pub staging: wgpu::Buffer,
    pub signal: Signal,
    busy: bool,
    /// Results on their way to the device.
    pub words: Vec<f32>,
}

/// What comes back for the host to compute with.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostRead {
    pub ubatch: Ubatch,
    /// Number of the schedule.
    pub which: usize,
    /// Number of the call in it.
    pub call: usize,
    /// Bytes in the staging buffer.
    pub bytes: u64,
}

/// Bytes of an input's rows that are copied: a single row without the columns of its neighbours.
pub(super) fn copied(input: &HostInput, rows: usize) -> (u64, u64) {
    match rows {
        1 => (4 * u64::from(input.view.offset), 4 * input.cols as u64),
        _ => (0, input.bytes(rows)),
    }
}

impl HostSide {
    /// Memory for the largest step of a plan.
    pub fn new(gpu: &Gpu, plan: &Plan, experts: &dyn HostExperts) -> Result<Self> {
        let bytes = plan.host_read_bytes().max(16);
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let rows = plan.prefill.max_tokens.max(plan.decode.max_tokens);
        Ok(HostSide {
            runner: experts.runner(rows)?,
            staging: gpu.device.buffer("for the processor", bytes, usage)?,
            signal: Signal::default(),
            busy: false,
            words: vec![],
        })
    }

    /// Bytes of buffers and of the processor's scratch.
    pub fn bytes(&self) -> u64 {
        self.staging.size() + self.runner.bytes() + 4 * self.words.capacity() as u64
    }

    /// Asks for what was copied.
    pub fn map(&mut self, read: HostRead) {
        self.busy = true;
        map_later(&self.staging, 0..read.bytes.next_multiple_of(8), &self.signal);
    }

    /// Forgets what was asked for.
    pub fn call_off(&mut self) {
        if std::mem::take(&mut self.busy) {
            call_off(&self.staging, &self.signal);
        }
    }

    /// Computes a region from what was copied.
    pub fn compute(&mut self, call: &HostCall, rows: usize, words: &[u32]) -> Result<()> {
        let (mut inputs, mut at) = (Vec::with_capacity(call.inputs.len()), 0);
        for input in &call.inputs {
            let (first, bytes) = copied(input, rows);
            let skip = input.view.offset as usize - first as usize / 4;
            let rest = words.get(at + skip..at + bytes as usize / 4);
            let words = rest.ok_or_else(|| Error::Graph("fewer bytes came back than the experts read".into()))?;
            inputs.push(HostRows { words, stride: input.view.stride as usize });
            at += bytes as usize / 4;
        }
        self.words.clear();
        self.words.resize(rows * call.stride, 0.0);
        let out = HostResult { words: &mut self.words, stride: call.stride };
        self.runner.run(call.region as usize, rows, &inputs, out)
    }
}
