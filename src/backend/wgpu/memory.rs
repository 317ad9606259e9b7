//! What memory a device has left, as far as its driver says, and what is refused because of it before anything is sent.
//!
//! Only Vulkan is asked. Under Direct3D 12 wgpu compares each buffer with what the system grants; Metal grants what there is.

use crate::error::{Error, Result};

/// Where a device is asked for its memory.
#[derive(Clone)]
pub(super) struct Memory {
    pub adapter: wgpu::Adapter,
    /// Bytes that the device is taken to have left, whatever it says.
    pub forced: Option<u64>,
    /// Whether the device is taken for one with memory of its own.
    pub own: bool,
}

/// Bytes that a device has left; `None` where its driver says nothing.
pub(super) fn free_of(adapter: &wgpu::Adapter) -> Option<u64> {
    asked(adapter)
}

impl Memory {
    /// Bytes that the device has left; `None` where its driver says nothing.
    pub fn free(&self) -> Option<u64> {
        self.forced.or_else(|| asked(&self.adapter))
    }

    /// Refuses what cannot fit.
    ///
    /// # Errors
    /// [`Error::Device`] with both sizes and `help`.
    pub fn check(&self, device: &str, needed: u64, what: &str, help: &str) -> Result<()> {
        compare(device, self.free(), needed, what, help)
    }
}

fn compare(device: &str, free: Option<u64>, needed: u64, what: &str, help: &str) -> Result<()> {
    let Some(free) = free.filter(|free| needed > *free) else { return Ok(()) };
    let gb = |bytes: u64| bytes as f64 / 1e9;
    Err(Error::Device(format!(
        "{what} take {:.2} GB, and {device} has {:.2} GB of memory left; {help}",
        gb(needed),
        gb(free)
    )))
}

/// A heap of a device's memory.
#[derive(Clone, Copy, Debug)]
struct Heap {
    bytes: u64,
    /// What the system grants this process of it; 0: it does not say.
    budget: u64,
    /// What this process has of it.
    used: u64,
    /// Whether it is the device's own.
    local: bool,
}

/// What is left of these heaps. A device that shares the memory of the processor uses all of them; another one its own.
fn left(heaps: &[Heap], shares: bool) -> Option<u64> {
    let counts = |h: &&Heap| shares || h.local;
    let left = |h: &Heap| {
        let granted = if h.budget == 0 { h.bytes } else { h.budget.min(h.bytes) };
        granted.saturating_sub(h.used)
    };
    let sum: u64 = heaps.iter().filter(counts).map(left).sum();
    heaps.iter().any(|h| counts(&h)).then_some(sum)
}

#[cfg(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn asked(adapter: &wgpu::Adapter) -> Option<u64> {
    use ash::{ext::memory_budget, vk};
    let shares = adapter.get_info().device_type != wgpu::DeviceType::DiscreteGpu;
    // SAFETY: the handle is looked at and not kept; nothing of it is destroyed.
    let vulkan = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let instance = vulkan.shared_instance();
    if instance.instance_api_version() < vk::API_VERSION_1_1 {
        return None;
    }
    let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let mut properties = vk::PhysicalDeviceMemoryProperties2::default();
    if vulkan.physical_device_capabilities().supports_extension(memory_budget::NAME) {
        properties = properties.push_next(&mut budget);
    }
    // SAFETY: the physical device is this instance's, which has Vulkan 1.1; the chain holds only what the device knows.
    unsafe {
        instance.raw_instance().get_physical_device_memory_properties2(vulkan.raw_physical_device(), &mut properties);
    }
    let memory = properties.memory_properties;
    let heap = |(i, h): (usize, &vk::MemoryHeap)| Heap {
        bytes: h.size,
        budget: budget.heap_budget[i],
        used: budget.heap_usage[i],
        local: h.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL),
    };
    let heaps: Vec<Heap> = memory.memory_heaps_as_slice().iter().enumerate().map(heap).collect();
    left(&heaps, shares)
}

#[cfg(not(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd")))]
fn asked(_: &wgpu::Adapter) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heaps_are_added_up_where_they_serve_the_device() {
        let card = Heap { bytes: 24 << 30, budget: 20 << 30, used: 2 << 30, local: true };
        let host = Heap { bytes: 64 << 30, budget: 0, used: 1 << 30, local: false };
        assert_eq!(left(&[card, host], false), Some(18 << 30));
        assert_eq!(left(&[card, host], true), Some((18 + 63) << 30));
        assert_eq!(left(&[host], false), None);
        assert_eq!(left(&[Heap { used: 30 << 30, ..card }], false), Some(0));
    }

    #[test]
    fn what_cannot_fit_is_refused_with_both_sizes() {
        assert!(compare("card", Some(10), 10, "weights", "help").is_ok() && compare("card", None, 10, "", "").is_ok());
        let e = compare("card", Some(4 << 30), 5 << 30, "the weights", "use fewer").unwrap_err().to_string();
        assert!(e.contains("5.37 GB") && e.contains("4.29 GB") && e.contains("use fewer"), "{e}");
    }
}
