//! How much of a schedule one submission takes.

use super::RunOptions;
use crate::{
    backend::runner::Budget,
    plan::{Sizes, Step},
};
use std::time::{Duration, Instant};

/// Seconds of a dispatch by itself, before anything was measured.
const DISPATCH: f64 = 10e-6;

/// Bytes times rows a second, before anything was measured.
const WORK: f64 = 50e9;

/// The part of a span of time by which its end may be uncertain for it to be learnt from.
const CERTAIN: f64 = 0.25;

/// Seconds that dispatches take, learnt from slices: a simple model of a device, times a factor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    factor: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { factor: 1.0 }
    }
}

/// A slice on the device whose time is being measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct SliceTime {
    /// Seconds by the model, before the factor.
    model: f64,
    submitted: Instant,
    /// When the slice was last seen not to be done.
    seen: Instant,
}

impl SliceTime {
    /// A slice of these steps, submitted now.
    pub fn new(steps: &[Step], sizes: Sizes) -> Self {
        let now = Instant::now();
        SliceTime { model: steps.iter().map(|s| model(s, sizes)).sum(), submitted: now, seen: now }
    }

    /// It was looked at and not done.
    pub fn not_done(&mut self) {
        self.seen = Instant::now();
    }
}

fn model(step: &Step, sizes: Sizes) -> f64 {
    DISPATCH + step.reads.work(sizes) as f64 / WORK
}

impl Pace {
    /// A slice is seen to be done. Its end lies between the last look and this one: a host that looks once a frame knows only
    /// that, and the estimate is moved no further than what is certain.
    pub fn learn(&mut self, m: &SliceTime) {
        let most = m.submitted.elapsed();
        let least = m.seen.duration_since(m.submitted);
        let factor = |span: Duration| span.as_secs_f64() / m.model.max(DISPATCH);
        if most - least <= most.mul_f64(CERTAIN) {
            self.factor += (factor(most) - self.factor) / 4.0;
        } else {
            self.factor = self.factor.clamp(factor(least), factor(most).max(factor(least)));
        }
    }

    /// How many of these steps make a slice: within the budget, within what one submission may take, and at least one.
    pub fn slice(&self, steps: &[Step], sizes: Sizes, run: &RunOptions, budget: Budget) -> usize {
        let most = run.max_dispatches.unwrap_or(usize::MAX).min(budget.dispatches).max(1).min(steps.len());
        let (mut work, mut seconds) = (0u64, 0.0);
        let limit = if budget.micros == u64::MAX { f64::INFINITY } else { budget.micros as f64 * 1e-6 };
        let fits = |step: &&Step| {
            work = work.saturating_add(step.reads.work(sizes));
            // The dispatch that exceeds the time is still taken, the one that exceeds the work is not.
            let before = seconds;
            seconds += self.factor * model(step, sizes);
            before < limit && run.max_work.is_none_or(|most| work <= most)
        };
        steps[..most].iter().take_while(fits).count().max(1.min(steps.len()))
    }
}
