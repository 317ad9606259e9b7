//! A device with its pipelines: what everything that is loaded holds on to.

use super::{RunOptions, device::Device, memory::Memory, pipeline::Pipelines};
use crate::plan::Caps;
use std::sync::{Arc, atomic::Ordering};

/// An opened or adopted device. Cheap to clone; pipelines are shared by everything that is loaded through it.
#[derive(Clone)]
pub struct Gpu {
    pub(super) device: Arc<Device>,
    pub(super) pipelines: Arc<Pipelines>,
    /// How programs are run unless the caller says otherwise.
    pub(super) run: RunOptions,
    pub(super) memory: Memory,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.device.name)
    }
}

impl Gpu {
    /// For tests that must see a wrong shader: `edit` changes the text of each kernel, given by its name, before it is compiled.
    /// Such shaders run with all checks. Takes effect once, and for kernels that have not run.
    #[doc(hidden)]
    pub fn edit_shaders(&self, edit: impl Fn(&str, &mut String) + Send + Sync + 'static) {
        _ = self.pipelines.edit.set(Box::new(edit));
    }

    /// Name and system of the device.
    pub fn name(&self) -> &str {
        &self.device.name
    }

    /// As [`Gpu::name`], for messages.
    pub fn describe(&self) -> String {
        format!("wgpu on {}", self.device.name)
    }

    /// Limits and features that plans may use, forced limits applied.
    pub fn caps(&self) -> &Caps {
        &self.device.caps
    }

    /// Bytes of memory that the device has left, as far as its driver says.
    pub fn free_memory(&self) -> Option<u64> {
        self.memory.free()
    }

    /// Bytes that wgpu holds of the device's memory for all that was made on it, and bytes of these that are in use; `None` where
    /// wgpu does not count.
    pub fn held_memory(&self) -> Option<[u64; 2]> {
        let report = self.device.raw.generate_allocator_report()?;
        Some([report.total_reserved_bytes, report.total_allocated_bytes])
    }

    /// Submissions so far, dispatches of training, and bytes that were read back while the host waited.
    #[doc(hidden)]
    pub fn traffic(&self) -> [u64; 3] {
        let t = &self.device.traffic;
        [&t.submissions, &t.dispatches, &t.read].map(|n| n.load(Ordering::Relaxed))
    }

    /// Texts of the kernels of training that were compiled so far.
    #[doc(hidden)]
    pub fn training_texts(&self) -> Vec<String> {
        self.pipelines.training_texts()
    }

    /// Distinct pipelines made so far.
    pub fn pipeline_count(&self) -> usize {
        self.pipelines.len()
    }

    /// Labels of the variants of kernels that were dispatched with every check on: what the tests may call proven.
    #[doc(hidden)]
    pub fn ran_checked(&self) -> Vec<String> {
        self.pipelines.ran_checked()
    }

    /// Tells that the device is lost, which the host of an adopted device learns from its own callback. Everything loaded through
    /// it gives [`crate::Error::Device`] with this reason from then on. Can be called from any thread, also from within the
    /// callback.
    pub fn lost(&self, reason: &str) {
        self.device.errors.lost(reason.to_string());
    }

    /// Whether the device is known to be lost.
    pub fn is_lost(&self) -> bool {
        self.device.errors.is_lost()
    }

    /// Destroys the device, as a driver that resets does: everything loaded through it gives [`crate::Error::Device`] from then
    /// on. For tests of hosts that must survive that.
    pub fn destroy(&self) {
        self.device.raw.destroy();
        // The callback comes when the device is polled.
        if let Err(e) = self.device.poll_once() {
            tracing::debug!("poll after destroy: {e}");
        }
        self.lost("destroyed");
    }
}
