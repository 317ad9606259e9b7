//! Results from the device: looked for without blocking, or waited for with a bound.

use super::{
    begun::Begun,
    canary,
    mapping::{self, if_mapped},
    runner::{GpuRunner, Readback, row_bytes, wanted_rows},
    sampler::chosen,
};
use crate::{
    backend::{Output, runner::Results},
    error::{Error, Result},
    plan::{OutputView, Schedule},
};

impl GpuRunner {
    /// Takes submissions from which nothing is read off the list, as far as they are done.
    pub fn land_plain(&mut self) -> Result<bool> {
        let device = self.device();
        let mut any = false;
        while let Some(flight) = self.flights.front_mut().filter(|f| f.read.is_none() && f.host.is_none()) {
            if !device.is_done(&flight.submission)? {
                flight.measured.iter_mut().for_each(|m| m.not_done());
                break;
            }
            flight.measured.iter().for_each(|m| self.pace.learn(m));
            self.flights.pop_front();
            any = true;
        }
        Ok(any)
    }

    /// Fetches what has come back; whether anything has.
    pub fn land(&mut self) -> Result<bool> {
        let any = self.land_plain()?;
        if let Some(read) = self.flights.front().and_then(|f| f.host) {
            return Ok(self.exchange(read)? || any);
        }
        let Some(read) = self.flights.front().and_then(|f| f.read) else { return Ok(any) };
        if !self.fetch(read)? {
            self.flights.front_mut().into_iter().flat_map(|f| &mut f.measured).for_each(|m| m.not_done());
            return Ok(any);
        }
        if let Some(flight) = self.flights.pop_front() {
            flight.measured.iter().for_each(|m| self.pace.learn(m));
        }
        if let Some(step) = self.begun.front_mut() {
            step.progress.reading -= 1;
        }
        Ok(true)
    }

    /// Gives the results of the oldest step where all of it is done.
    pub fn finish(&mut self, out: &mut Results) -> bool {
        if !self.begun.front().is_some_and(|s| s.is_submitted() && s.progress.reading == 0) {
            return false;
        }
        self.spare.extend(self.begun.pop_front());
        std::mem::swap(&mut self.results, out);
        self.clear_results();
        true
    }

    /// Blocks until [`GpuRunner::land`] finds something.
    pub fn wait_for_flight(&self) -> Result<()> {
        let Some(flight) = self.flights.front() else { return Ok(()) };
        let (device, submission) = (&self.weights.gpu.device, &flight.submission);
        if let (Some(_), Some(host)) = (flight.host, &self.host) {
            return mapping::wait(device, &host.signal, submission, "what the processor's experts read");
        }
        let Some(read) = &flight.read else { return device.wait(submission, "a part of a step") };
        if read.bytes > 0 && self.staging.busy {
            mapping::wait(device, &self.staging.signal, submission, "the results of a step")?;
        }
        if let (Some((slot, _)), Some(sampler)) = (read.chosen, &self.sampler) {
            mapping::wait(device, sampler.slot(slot).1, submission, "chosen tokens")?;
        }
        Ok(())
    }

    /// Appends what a readback of the oldest step brought; `false` where it is not there yet.
    fn fetch(&mut self, read: Readback) -> Result<bool> {
        let device = self.device();
        if read.bytes > 0 && self.staging.busy {
            let (buffer, signal) = (&self.staging.buffer, &self.staging.signal);
            let Some(view) = if_mapped(&device, buffer, 0..read.bytes.next_multiple_of(8), signal)? else {
                return Ok(false);
            };
            let (Some(schedule), Some(step)) = (self.plan.schedules()[read.which].1, self.begun.front()) else {
                return Err(Error::Graph("results of a step that is not there".into()));
            };
            append_all(schedule, step, &read, &view, &mut self.results.outputs);
            drop(view);
            self.staging.buffer.unmap();
            self.staging.busy = false;
            // The staging buffer may serve another ubatch while chosen tokens are still on their way.
            self.flights.front_mut().and_then(|f| f.read.as_mut()).into_iter().for_each(|r| r.bytes = 0);
        }
        if let (Some((slot, bytes)), Some(sampler)) = (read.chosen, &mut self.sampler) {
            let (buffer, signal) = sampler.slot(slot);
            let Some(view) = if_mapped(&device, buffer, 0..bytes, signal)? else { return Ok(false) };
            self.results.tokens.extend(bytemuck::cast_slice(&view).iter().map(|word: &u32| chosen(*word)));
            drop(view);
            sampler.release(slot);
        }
        if self.weights.run.canaries {
            let (schedule, prepared) = self.schedule(read.which)?;
            canary::check(&device, schedule, &prepared.scratch)?;
        }
        Ok(true)
    }
}

/// Appends the results of an ubatch, which lie one after the other.
fn append_all(s: &Schedule, step: &Begun, read: &Readback, bytes: &[u8], to: &mut [Output]) {
    let mut at = 0;
    for (place, out) in s.outputs.iter().zip(to) {
        for rows in wanted_rows(place, step, read.ubatch) {
            let size = row_bytes(place) as usize * rows.len();
            append(place, &bytes[at..at + size], out);
            at += size;
        }
    }
}

/// Appends rows, without their padding.
fn append(place: &OutputView, bytes: &[u8], out: &mut Output) {
    let (first, end) = (place.view.offset as usize, place.view.offset as usize + place.cols);
    for row in bytes.chunks_exact((row_bytes(place) as usize).max(4)) {
        let row: &[u32] = bytemuck::cast_slice(row);
        if place.ids {
            out.u32.extend_from_slice(&row[first..end]);
        } else {
            out.f32.extend_from_slice(bytemuck::cast_slice(&row[first..end]));
        }
        out.rows += 1;
    }
}
