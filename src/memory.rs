//! How much memory there is.

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// Bytes that this process can still have without anything being swapped out, the limit of its container included; `None` where
/// the system does not say.
pub(crate) fn available() -> Option<u64> {
    let what = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(what);
    let free = system.available_memory();
    let container = system.cgroup_limits().map_or(u64::MAX, |c| c.free_memory);
    (free > 0).then_some(free.min(container))
}

/// Bytes that the machine has, or its container may use.
#[cfg(any(feature = "cli", feature = "train"))]
pub(crate) fn total() -> Option<u64> {
    let what = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(what);
    let most = system.cgroup_limits().map_or(u64::MAX, |c| c.total_memory);
    Some(system.total_memory().min(most)).filter(|n| *n > 0)
}
