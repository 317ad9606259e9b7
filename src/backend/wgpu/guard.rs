//! Poison and guards: tests fill scratch with NaN and fence every content, so that reading what was not written and
//! writing beyond the end both show.

use super::device::{Gpu, Signal};
use crate::{
    error::{Error, Result},
    plan::{GUARD, Schedule},
};

/// The guard's words: no number that a kernel would make.
const FENCE: u32 = 0xFE9C_ED00;

/// Fills a buffer with one word.
pub(super) fn fill(gpu: &Gpu, buffer: &wgpu::Buffer, from: u64, bytes: u64, word: u32) {
    const PIECE: u64 = 1 << 20;
    let words = vec![word; (bytes.min(PIECE) / 4) as usize];
    let mut at = 0;
    while at < bytes {
        let n = (bytes - at).min(PIECE);
        gpu.queue.write_buffer(buffer, from + at, &bytemuck::cast_slice(&words)[..n as usize]);
        at += n;
    }
}

/// Writes the guards behind all contents of a schedule made with [`crate::plan::Options::guard`].
pub(super) fn write(gpu: &Gpu, s: &Schedule, scratch: &[wgpu::Buffer]) {
    for c in &s.contents {
        fill(gpu, &scratch[c.scratch as usize], c.bytes - GUARD, GUARD, FENCE);
    }
}

/// Reads them back.
pub(super) fn check(gpu: &Gpu, s: &Schedule, scratch: &[wgpu::Buffer]) -> Result<()> {
    let bytes = s.contents.len() as u64 * GUARD;
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let staging = gpu.buffer("guards", bytes, usage)?;
    let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    for (i, c) in s.contents.iter().enumerate() {
        let from = &scratch[c.scratch as usize];
        encoder.copy_buffer_to_buffer(from, c.bytes - GUARD, &staging, i as u64 * GUARD, GUARD);
    }
    let submission = gpu.queue.submit([encoder.finish()]);
    let view = gpu.map_read(&staging, 0..staging.size(), &Signal::default(), Some(submission))?;
    let words: &[u32] = bytemuck::cast_slice(&view);
    match words.iter().take(bytes as usize / 4).position(|w| *w != FENCE) {
        None => Ok(()),
        Some(i) => Err(Error::Device(format!("a kernel wrote behind content {}", i as u64 * 4 / GUARD))),
    }
}
