//! Counting without running: bytes that a schedule moves, dispatches, barriers.

use super::{Access, Buffer, Grid, Schedule, Sizes, Step};
use std::collections::BTreeMap;

/// What a schedule amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Dispatches.
    pub dispatches: usize,
    /// Dispatches that belong to a transformer layer.
    pub layer_dispatches: usize,
    /// Dispatches before which a barrier is needed.
    pub barriers: usize,
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
}

impl Schedule {
    /// Counts for these sizes.
    pub fn totals(&self, s: Sizes) -> Totals {
        Totals {
            dispatches: self.steps.len(),
            layer_dispatches: self.steps.iter().filter(|s| s.layer.is_some()).count(),
            barriers: barriers(&self.steps).iter().filter(|b| **b).count(),
            read: self.steps.iter().map(|step| step.reads.eval(s)).sum(),
            written: self.steps.iter().map(|step| step.writes.eval(s)).sum(),
        }
    }
}

/// How a dispatch uses a buffer, as wgpu sees it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Write,
    Indirect,
}

/// Before which dispatches a barrier is put. wgpu follows whole buffers: it puts one where a use differs from the one
/// before it, and wherever a buffer is bound for writing that was in use before.
pub(super) fn barriers(steps: &[Step]) -> Vec<bool> {
    let mut last: BTreeMap<Buffer, Use> = BTreeMap::new();
    let mut out = Vec::with_capacity(steps.len());
    for step in steps {
        let uses = step.bindings.iter().map(|b| match b.access {
            Access::ReadWrite => (b.buffer, Use::Write),
            Access::Read | Access::Uniform => (b.buffer, Use::Read),
        });
        let indirect = match step.grid {
            Grid::Indirect { buffer, .. } => Some((buffer, Use::Indirect)),
            Grid::Direct { .. } => None,
        };
        let mut needed = false;
        for (buffer, using) in uses.chain(indirect) {
            if let Some(before) = last.insert(buffer, using) {
                needed |= before != using || using == Use::Write;
            }
        }
        out.push(needed);
    }
    out
}
