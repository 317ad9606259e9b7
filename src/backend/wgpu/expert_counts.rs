//! What a runner's slots of experts have done, as the device counts it, and how they are emptied.

use super::{mapping::map_read, runner::GpuRunner};
use crate::{backend::runner::ExpertSlotUse, error::Result, kernels::numbers, plan::ExpertCache};

impl GpuRunner {
    /// Empties all slots, behind what was submitted. A step that was cut off between the choice of slots and the copy to them has left
    /// slots that do not hold what they are said to.
    pub fn empty_expert_slots(&self) {
        if self.buffers.experts.is_empty() {
            return;
        }
        let device = &self.weights.gpu.device;
        let mut encoder = device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for (cache, buffers) in self.plan.expert_caches.iter().zip(&self.buffers.experts) {
            let bytes = cache.placing_bytes();
            encoder.clear_buffer(&buffers.placing, bytes.start, Some(bytes.end - bytes.start));
        }
        device.submit([encoder.finish()]);
    }

    /// What the device has counted.
    pub fn count_expert_slots(&self) -> Result<Vec<ExpertSlotUse>> {
        use wgpu::BufferUsages as U;
        let caches = &self.plan.expert_caches;
        if caches.is_empty() {
            return Ok(vec![]);
        }
        let device = &self.weights.gpu.device;
        let each = 4 * u64::from(numbers::CACHE_TABLE);
        let bytes = each * caches.len() as u64;
        let staging = device.buffer("counts of experts", bytes, U::MAP_READ | U::COPY_DST)?;
        let mut encoder = device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for (i, buffers) in (0..).zip(&self.buffers.experts) {
            encoder.copy_buffer_to_buffer(&buffers.placing, 0, &staging, each * i, each);
        }
        let submission = device.submit([encoder.finish()]);
        let view = map_read(device, &staging, 0..bytes, &submission, "counts of experts")?;
        let words: &[u32] = bytemuck::cast_slice(&view);
        let of = |(c, words): (&ExpertCache, &[u32])| {
            let count = |word: u32| u64::from(words[word as usize]);
            ExpertSlotUse {
                layer: c.layer.unwrap_or(0) as usize,
                experts: c.experts,
                used: c.used,
                slots: c.slots,
                steps: count(numbers::CACHE_CLOCK),
                lookups: count(numbers::CACHE_LOOKUPS),
                hits: count(numbers::CACHE_HITS),
                uploads: count(numbers::CACHE_UPLOADS),
                expert_bytes: c.expert_bytes(),
            }
        };
        Ok(caches.iter().zip(words.chunks_exact(numbers::CACHE_TABLE as usize)).map(of).collect())
    }
}
