//! Slots of experts on the device. All experts lie where kernels read them: on a device with memory of its own in memory of the host, in
//! buffers that the host could map and does not.

use super::{
    RunOptions,
    canary::{self, POISON},
    gpu::Gpu,
};
use crate::{
    error::{Error, Result},
    plan::{CachedMatrix, ExpertCache, Weights},
    quant::gpu::table,
};
use std::collections::BTreeSet;

/// The matrices of experts that are not in the device's memory as a whole.
pub(super) fn kept_away(weights: &Weights, run: &RunOptions) -> Result<BTreeSet<u32>> {
    if run.expert_slots.is_some() { weights.expert_matrices() } else { Ok(BTreeSet::new()) }
}

/// Those of them that this device's kernels read in memory of the host. A device without memory of its own reads them where they are.
///
/// # Errors
/// [`Error::Unsupported`] where it cannot.
pub(super) fn read_from_host(gpu: &Gpu, weights: &Weights, run: &RunOptions) -> Result<BTreeSet<u32>> {
    let away = kept_away(weights, run)?;
    if away.is_empty() || gpu.shares_memory() {
        return Ok(BTreeSet::new());
    }
    if !gpu.device.raw.features().contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS) {
        return Err(Error::Unsupported(format!(
            "slots of experts on {}: its kernels cannot read memory of the host (it lacks MAPPABLE_PRIMARY_BUFFERS); experts that do not \
             fit can be left to the processor",
            gpu.name()
        )));
    }
    Ok(away)
}

/// The buffers of a cache of experts.
pub(super) struct CacheBuffers {
    /// The slots of each matrix.
    pub slots: Vec<wgpu::Buffer>,
    /// Which experts are in slots, and their biases.
    pub placing: wgpu::Buffer,
}

impl CacheBuffers {
    /// Empty slots. `poison`: they are filled with numbers that show where they are read before they were copied to.
    pub fn new(gpu: &Gpu, cache: &ExpertCache, poison: bool) -> Result<Self> {
        use wgpu::BufferUsages as U;
        let data = U::STORAGE | U::COPY_DST | U::COPY_SRC;
        let slots = |m: &CachedMatrix| -> Result<wgpu::Buffer> {
            let buffer = gpu.device.buffer("slots of experts", m.segment.bytes, data)?;
            if poison {
                canary::fill(&gpu.device, &buffer, 0, m.segment.bytes, POISON);
            }
            let table: &[u8] = bytemuck::cast_slice(table(m.dtype));
            if !table.is_empty() {
                gpu.device.queue.write_buffer(&buffer, 0, table);
            }
            Ok(buffer)
        };
        // wgpu makes buffers of zeros: no expert is in a slot.
        let placing = gpu.device.buffer("experts in slots", cache.bytes, data)?;
        Ok(CacheBuffers { slots: cache.matrices.iter().map(slots).collect::<Result<_>>()?, placing })
    }
}
