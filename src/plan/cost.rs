//! Counting without running: bytes that a schedule moves, dispatches, barriers.

use super::{Access, Buffer, Grid, Schedule, Sizes, Step};
use std::collections::BTreeMap;

/// Bytes as a linear function of a step's sizes: what a dispatch has to move at least, if every weight, key and
/// activation is read once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Always.
    pub fixed: u64,
    /// For each of the T tokens.
    pub token: u64,
    /// For each of the O outputs.
    pub output: u64,
    /// For each of the P + T positions in the cache.
    pub position: u64,
    /// Positions that count at most: a sliding window; 0: all.
    pub window: u64,
    /// For each token, but no more than `at_most` in all: experts, which several tokens share.
    pub expert: u64,
    /// See `expert`.
    pub at_most: u64,
}

impl Cost {
    /// The bytes for these sizes.
    pub fn eval(&self, s: Sizes) -> u64 {
        let (t, o, n) = (u64::from(s.tokens), u64::from(s.outputs), self.positions(s));
        self.fixed + t * self.token + o * self.output + n * self.position + (t * self.expert).min(self.at_most)
    }

    /// Bytes of weights, keys and values times the tokens that meet them: a measure of time where these are many.
    pub fn work(&self, s: Sizes) -> u64 {
        let (t, n) = (u64::from(s.tokens), self.positions(s));
        let met = self.fixed.saturating_add(self.expert).saturating_add(n.saturating_mul(self.position));
        met.saturating_mul(t)
    }

    /// Positions that count: with a window those that the first token sees, and one for each further token.
    fn positions(&self, s: Sizes) -> u64 {
        let (t, n) = (u64::from(s.tokens), u64::from(s.past) + u64::from(s.tokens));
        if self.window > 0 { n.min(self.window + t - t.min(1)) } else { n }
    }

    /// The sum of both, piece by piece. Where both count positions, those of the wider window.
    #[must_use]
    pub fn and(self, o: Cost) -> Cost {
        Cost {
            fixed: self.fixed + o.fixed,
            token: self.token + o.token,
            output: self.output + o.output,
            position: self.position + o.position,
            window: match (self.position, o.position) {
                (0, _) => o.window,
                (_, 0) => self.window,
                // No window is the widest.
                _ if self.window.min(o.window) == 0 => 0,
                _ => self.window.max(o.window),
            },
            expert: self.expert + o.expert,
            at_most: self.at_most + o.at_most,
        }
    }
}

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
