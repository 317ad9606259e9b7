//! A runner on the device as the host sees it.

use super::{
    begun::Begun,
    mapping::call_off,
    runner::{DEPTH, GpuRunner},
    sampler::GpuSampler,
};
use crate::{
    backend::{
        KernelTime,
        runner::{Budget, Executor, ExecutorStep, ExpertSlotUse, PAGE, Results, Row, StateCopy, Status, Token},
    },
    error::{Error, Result},
    sampler::Sampling,
};
use std::ops::Range;

impl GpuRunner {
    /// Buffers for choosing tokens are made when they are first asked for; whether there are any.
    fn make_sampler(&mut self) -> Result<bool> {
        let Some(plan) = &self.plan.sampling else { return Ok(false) };
        // Canaries are looked at when results are read back: tests that set them want logits.
        if self.weights.run.canaries {
            return Ok(false);
        }
        if self.sampler.is_none() && !self.no_sampler {
            let (sampler, (_, decode)) = (GpuSampler::new(self.gpu(), plan)?, self.schedule(0)?);
            let find = |b| super::schedules::buffer_of(&self.weights, &self.buffers, &decode.scratch, b);
            // The kernels are the same behind every schedule: what compiles here compiles there.
            let compiled = sampler.prepared(self.gpu(), plan, 0, &find).map(drop);
            match compiled {
                Ok(()) => self.sampler = Some(sampler),
                Err(e) => {
                    // A loss is no matter of the sampler's kernels.
                    self.weights.gpu.device.errors.take()?;
                    tracing::warn!("tokens are chosen on the host, for the device cannot run the GPU sampler: {e}");
                    self.no_sampler = true;
                }
            }
        }
        Ok(self.sampler.is_some())
    }

    /// A row whose sequence lost its chosen tokens to a cancelled step needs new rules first.
    fn check_choices(&self, rows: &[Row]) -> Result<()> {
        let needs = |r: &&Row| self.stale[r.sequence] && (r.choose.is_some() || r.token == Token::Last);
        match rows.iter().find(needs) {
            None => Ok(()),
            Some(r) => Err(Error::Invalid(format!(
                "a step that chose a token for sequence {} was cancelled: set its sampler again",
                r.sequence
            ))),
        }
    }
}

impl Executor for GpuRunner {
    fn set_sampler(&mut self, sequence: usize, sampling: &Sampling<'_>) -> Result<bool> {
        let device = self.device();
        device.errors.take()?;
        device.catching(|| {
            if !self.make_sampler()? {
                return Ok(false);
            }
            let (Some(sampler), Some(plan)) = (&mut self.sampler, &self.plan.sampling) else { return Ok(false) };
            let set = sampler.set(&self.weights.gpu, plan, sequence, sampling);
            self.held.iter_mut().filter(|h| **h == Some(sequence)).for_each(|h| *h = None);
            self.stale[sequence] = false;
            Ok(set)
        })
    }

    fn depth(&self) -> usize {
        DEPTH
    }

    fn begin(&mut self, step: &ExecutorStep<'_>) -> Result<()> {
        self.weights.gpu.device.errors.take()?;
        self.check_choices(step.rows)?;
        let mut begun = self.spare.pop().unwrap_or_default();
        match begun.fill(step, &self.plan.inputs) {
            Ok(()) => self.begun.push_back(begun),
            Err(e) => {
                self.spare.push(begun);
                return Err(e);
            }
        }
        Ok(())
    }

    fn poll(&mut self, budget: Budget, out: &mut Results) -> Result<Status> {
        self.weights.gpu.device.errors.take()?;
        if self.begun.is_empty() {
            return Ok(Status::Idle);
        }
        if !budget.is_unlimited() {
            // One slice at a time is on the device, so that slices do not pile up between two polls.
            self.land()?;
            if self.finish(out) {
                return Ok(Status::Done);
            }
            if self.flights.is_empty() {
                self.submit_one(budget)?;
            }
            let done = self.finish(out);
            return Ok(if done { Status::Done } else { Status::Waiting });
        }
        loop {
            // What is begun goes to the device before the host looks at what comes back: it never idles for the host.
            self.submit_all()?;
            if self.finish(out) {
                return Ok(Status::Done);
            }
            let landed = self.land()?;
            if self.finish(out) {
                return Ok(Status::Done);
            }
            if !landed {
                return Ok(Status::Waiting);
            }
        }
    }

    fn wait(&mut self) -> Result<()> {
        self.wait_for_flight()
    }

    fn cancel(&mut self) -> usize {
        for flight in self.flights.drain(..) {
            if let (Some(_), Some(host)) = (flight.host, &mut self.host) {
                host.call_off();
            }
            let Some(read) = flight.read else { continue };
            if read.bytes > 0 && self.staging.busy {
                call_off(&self.staging.buffer, &self.staging.signal);
                self.staging.busy = false;
            }
            if let (Some((slot, _)), Some(sampler)) = (read.chosen, &mut self.sampler) {
                sampler.call_off(slot);
            }
        }
        if self.begun.iter().any(|s| s.progress.dispatches > 0 || s.progress.blocks > 0) {
            self.empty_expert_slots();
        }
        let started = self.begun.iter().filter(|s| s.progress.started).count();
        // The last step that ran left the states that it began with where they were.
        let mut touched = started;
        if let Some(step) = started.checked_sub(1).and_then(|k| self.begun.get(k)) {
            let undone = self.states.exist() && step.moves.is_empty();
            if undone {
                step.moved.iter().for_each(|(sequence, slot)| self.states.set_live(*sequence, *slot));
                touched -= 1;
            }
        }
        for step in self.begun.drain(..) {
            for row in step.rows.iter().filter(|r| step.progress.started && r.choose.is_some()) {
                self.stale[row.sequence] = true;
            }
            self.spare.push(step);
        }
        self.held.fill(None);
        self.clear_results();
        touched
    }

    fn copy_prefix(&mut self, from: usize, to: usize, positions: usize) -> Result<()> {
        let device = self.device();
        device.catching(|| self.copy_keys(from, to, positions))
    }

    fn copy_states(&mut self, from: StateCopy, to: StateCopy) -> Result<()> {
        let device = self.device();
        device.catching(|| self.copy_slots(from, to))
    }

    fn layout(&self) -> &'static str {
        "wgpu-1"
    }

    fn sequence_bytes(&self, positions: usize, states: bool) -> usize {
        self.saved_bytes(positions, states) as usize
    }

    fn page_parts(&mut self) -> Vec<usize> {
        self.key_parts(PAGE)
    }

    fn read_sequence(
        &mut self,
        sequence: usize,
        positions: Range<usize>,
        states: Option<StateCopy>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let device = self.device();
        device.catching(|| self.save(sequence, positions, states, out))
    }

    fn write_sequence(&mut self, sequence: usize, positions: Range<usize>, states: bool, bytes: &[u8]) -> Result<()> {
        let device = self.device();
        device.catching(|| self.restore(sequence, positions, states, bytes))
    }

    fn memory_bytes(&self) -> u64 {
        self.bytes()
    }

    fn expert_slots(&mut self) -> Result<Vec<ExpertSlotUse>> {
        let device = self.device();
        device.errors.take()?;
        device.catching(|| self.count_expert_slots())
    }

    fn profile(&mut self, step: &ExecutorStep<'_>) -> Result<Option<Vec<KernelTime>>> {
        self.weights.gpu.device.errors.take()?;
        let mut begun = Begun::default();
        begun.fill(step, &self.plan.inputs)?;
        let device = self.device();
        device.catching(|| self.profile_step(&mut begun)).map(Some)
    }
}
