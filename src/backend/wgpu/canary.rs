//! Poison and canaries: tests fill scratch with NaN and put known words behind every transient buffer, so that reading what was
//! not written and writing beyond the end both show.

use super::{device::Device, mapping::map_read};
use crate::{
    error::{Error, Result},
    plan::{CANARY_BYTES, Schedule},
};

/// The word of a canary: no value that a kernel would write.
const CANARY: u32 = 0xFE9C_ED00;

/// NaN as f32 and, twice, as f16.
pub(super) const POISON: u32 = 0x7E00_7E00 | 0x7FC0_0000;

/// Fills `bytes` bytes of a buffer with one word.
pub(super) fn fill(device: &Device, buffer: &wgpu::Buffer, from: u64, bytes: u64, word: u32) {
    const AT_ONCE: u64 = 1 << 20;
    let words = vec![word; (bytes.min(AT_ONCE) / 4) as usize];
    let mut at = 0;
    while at < bytes {
        let n = (bytes - at).min(AT_ONCE);
        device.queue.write_buffer(buffer, from + at, &bytemuck::cast_slice(&words)[..n as usize]);
        at += n;
    }
}

/// Writes the canaries behind all transient buffers of a schedule made with [`crate::plan::Options::canaries`].
pub(super) fn write(device: &Device, s: &Schedule, scratch: &[wgpu::Buffer]) {
    for c in &s.transients {
        fill(device, &scratch[c.scratch as usize], c.bytes - CANARY_BYTES, CANARY_BYTES, CANARY);
    }
}

/// Reads the canaries back.
///
/// # Errors
/// [`Error::Device`] where one was overwritten.
pub(super) fn check(device: &Device, s: &Schedule, scratch: &[wgpu::Buffer]) -> Result<()> {
    let bytes = s.transients.len() as u64 * CANARY_BYTES;
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let staging = device.buffer("canaries", bytes, usage)?;
    let mut encoder = device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    for (i, c) in s.transients.iter().enumerate() {
        let from = &scratch[c.scratch as usize];
        encoder.copy_buffer_to_buffer(from, c.bytes - CANARY_BYTES, &staging, i as u64 * CANARY_BYTES, CANARY_BYTES);
    }
    let submission = device.submit([encoder.finish()]);
    let view = map_read(device, &staging, 0..staging.size(), &submission, "canaries")?;
    let words: &[u32] = bytemuck::cast_slice(&view);
    match words.iter().take(bytes as usize / 4).position(|w| *w != CANARY) {
        None => Ok(()),
        Some(i) => {
            Err(Error::Device(format!("a kernel wrote behind transient buffer {}", i as u64 * 4 / CANARY_BYTES)))
        }
    }
}
