//! Steps to the device: what an ubatch reads is written, its dispatches are encoded in slices, and what comes back is copied to
//! buffers that can be mapped.

use super::{
    begun::{Begun, StepProgress, Ubatch, id_of},
    canary::{self, POISON},
    mapping::map_later,
    runner::{Flight, GpuRunner, MOST_FLIGHTS, Readback, row_bytes, wanted_rows},
    sampler::GpuSampler,
    schedules::{buffer_of, encode, encode_part},
    slices::SliceTime,
};
use crate::{
    backend::runner::{Budget, Row},
    error::{Error, Result},
    kernels::params::Frame,
    plan::{Buffer, SPAN_WORDS, STATE_FRESH, Sizes, sample::Choice},
};

impl GpuRunner {
    /// Submits what may be submitted of all begun steps.
    pub fn submit_all(&mut self) -> Result<()> {
        for k in 0..self.begun.len() {
            while !self.begun[k].is_submitted() {
                if !self.may_submit(k)? {
                    return Ok(());
                }
                self.submit(k, Budget::UNLIMITED)?;
            }
        }
        Ok(())
    }

    /// Submits one slice of the oldest step that is not yet on the device.
    pub fn submit_one(&mut self, budget: Budget) -> Result<()> {
        match self.begun.iter().position(|s| !s.is_submitted()) {
            Some(k) if self.may_submit(k)? => self.submit(k, budget),
            _ => Ok(()),
        }
    }

    /// Whether the next slice of step `k` may go to the device: there is room there, and for what comes back.
    fn may_submit(&mut self, k: usize) -> Result<bool> {
        let step = &self.begun[k];
        if step.progress.on_host {
            // What does not wait for the host goes on meanwhile.
            let u = self.ubatch(step, step.progress.row);
            let (schedule, _) = self.schedule(self.plan.choose(u.rows, u.outputs))?;
            let call = schedule.host_calls.get(step.progress.host_calls);
            return Ok(call.is_some_and(|c| step.progress.dispatches < c.needed));
        }
        if step.progress.dispatches > 0 || step.progress.blocks > 0 {
            // Slices of one ubatch follow each other without a look at the device.
            return Ok(true);
        }
        let u = self.ubatch(step, step.progress.row);
        let reads = step.trace || step.rows[u.first..u.end()].iter().any(|r| r.logits || r.hidden);
        let slot = self.sampler.as_ref().is_none_or(GpuSampler::has_slot);
        if (reads && self.staging.busy) || (!slot && step.choosing(u).next().is_some()) {
            return Ok(false);
        }
        if self.flights.len() >= MOST_FLIGHTS {
            self.land_plain()?;
        }
        Ok(self.flights.len() < MOST_FLIGHTS)
    }

    fn submit(&mut self, k: usize, budget: Budget) -> Result<()> {
        let device = self.device();
        device.catching(|| {
            let mut step = std::mem::take(&mut self.begun[k]);
            let flight = self.slice(&mut step, budget);
            // Of an ubatch only the last submission is watched, unless slices are to be seen one by one.
            let watched = (step.progress.dispatches == 0 && step.progress.blocks == 0) || !budget.is_unlimited();
            self.begun[k] = step;
            let flight = flight?;
            if watched || flight.host.is_some() {
                self.flights.push_back(flight);
            }
            Ok(())
        })
    }

    /// Encodes and submits a slice of a step's ubatch; with the last come its choices and the copies of its results.
    fn slice(&mut self, step: &mut Begun, budget: Budget) -> Result<Flight> {
        let device = self.device();
        let mut encoder = device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let u = self.ubatch(step, step.progress.row);
        let which = self.plan.choose(u.rows, u.outputs);
        if step.progress.dispatches == 0 && step.progress.blocks == 0 {
            // Before anything is written: from here on, states and keys count as touched.
            step.progress.started = true;
            self.write(step, u, which, &mut encoder)?;
        }
        let (sizes, from) = (self.sizes(step, u), step.progress.dispatches);
        let most = self.weights.run.max_work.unwrap_or(u64::MAX);
        let part = self.schedule(which)?.0.steps[from].part(sizes, step.progress.blocks, most);
        let first_block = part.as_ref().map_or(0, |p| p.start);
        if first_block != self.first_block {
            self.write_frame(sizes, first_block);
        }
        let (schedule, prepared) = self.schedule(which)?;
        let steps = prepared.steps(&self.weights, schedule, &self.buffers)?;
        let ends = part.as_ref().is_none_or(|p| Some(p.end) == schedule.steps[from].grid.eval(sizes).map(|g| g[1]));
        // A slice ends where the host has to compute.
        let call = schedule.host_calls.get(step.progress.host_calls);
        let on_host = step.progress.on_host;
        let until = call.map_or(schedule.steps.len(), |c| if on_host { c.needed } else { c.before });
        let to = match &part {
            None => from + self.pace.slice(&schedule.steps[from..until], sizes, &self.weights.run, budget),
            Some(_) => from + usize::from(ends),
        };
        let done = to == schedule.steps.len() && call.is_none();
        let call = call.filter(|c| !on_host && c.before == to).map(|_| step.progress.host_calls);
        // A part of a dispatch says little of the device's pace.
        let measures = !budget.is_unlimited() && part.is_none();
        let measured = measures.then(|| SliceTime::new(&schedule.steps[from..to], sizes));
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        match &part {
            None => encode(&mut pass, &schedule.steps[from..to], &steps[from..to], sizes),
            Some(blocks) => encode_part(&mut pass, &schedule.steps[from], &steps[from], sizes, blocks),
        }
        let chooses = done && step.choosing(u).next().is_some();
        if chooses {
            self.encode_choices(&mut pass, which, sizes)?;
        }
        drop(pass);
        step.progress.dispatches = to;
        step.progress.blocks = part.filter(|_| !ends).map_or(0, |p| p.end);
        let mut read = None;
        if done {
            read = self.copy_back(&mut encoder, step, u, which, chooses)?;
            step.progress = StepProgress { row: u.end(), dispatches: 0, blocks: 0, host_calls: 0, ..step.progress };
        }
        let host = call.map(|call| self.copy_to_host(&mut encoder, u, which, call)).transpose()?;
        step.progress.on_host |= host.is_some();
        let submission = device.submit([encoder.finish()]);
        if let (Some(read), Some(host)) = (host, &mut self.host) {
            host.map(read);
        }
        if let Some(read) = &read {
            step.progress.reading += 1;
            self.map(read);
        }
        Ok(Flight { submission, read, host, measured })
    }

    /// Encodes the choices of an ubatch whose schedule was encoded.
    fn encode_choices(&self, pass: &mut wgpu::ComputePass<'_>, which: usize, sizes: Sizes) -> Result<()> {
        let (Some(sampler), Some(plan)) = (&self.sampler, &self.plan.sampling) else {
            return Err(Error::Invalid("a token is to be chosen before its rules were set".into()));
        };
        let (_, schedule) = self.schedule(which)?;
        let find = |b: Buffer| buffer_of(&self.weights, &self.buffers, &schedule.scratch, b);
        let prepared = sampler.prepared(self.gpu(), plan, which, &find)?;
        // Behind a schedule, O is the number of choices.
        let sizes = Sizes { outputs: sampler.choices().len() as u32, ..sizes };
        encode(pass, &plan.steps[which], prepared, sizes);
        Ok(())
    }

    /// Copies what is wanted of an ubatch to buffers that can be mapped.
    fn copy_back(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        step: &Begun,
        u: Ubatch,
        which: usize,
        chooses: bool,
    ) -> Result<Option<Readback>> {
        let (schedule, prepared) = self.schedule(which)?;
        let mut at = 0;
        for o in &schedule.outputs {
            let from = buffer_of(&self.weights, &self.buffers, &prepared.scratch, o.view.buffer)?;
            for rows in wanted_rows(o, step, u) {
                let (first, bytes) = (row_bytes(o) * rows.start as u64, row_bytes(o) * rows.len() as u64);
                encoder.copy_buffer_to_buffer(from, first, &self.staging.buffer, at, bytes);
                at += bytes;
            }
        }
        let mut chosen = None;
        if let (true, Some(sampler)) = (chooses, &mut self.sampler) {
            chosen = Some(sampler.copy(encoder));
            // Choice i is written to row i of the token ids, too.
            for (i, row) in step.choosing(u).enumerate() {
                let sequence = step.rows[row].sequence;
                self.held.iter_mut().filter(|h| **h == Some(sequence)).for_each(|h| *h = None);
                self.held[i] = Some(sequence);
            }
        }
        let read = Readback { ubatch: u, which, bytes: at, chosen };
        Ok((at > 0 || chosen.is_some()).then_some(read))
    }

    /// Asks for what was copied.
    fn map(&mut self, read: &Readback) {
        if read.bytes > 0 {
            self.staging.busy = true;
            map_later(&self.staging.buffer, 0..read.bytes.next_multiple_of(8), &self.staging.signal);
        }
        if let (Some((slot, bytes)), Some(sampler)) = (read.chosen, &self.sampler) {
            let (buffer, signal) = sampler.slot(slot);
            map_later(buffer, 0..bytes, signal);
        }
    }
}

/// What an ubatch reads.
impl GpuRunner {
    pub fn write(
        &mut self,
        step: &mut Begun,
        u: Ubatch,
        which: usize,
        encoder: &mut wgpu::CommandEncoder,
    ) -> Result<()> {
        let device = self.device();
        let (schedule, prepared) = self.schedule(which)?;
        if self.weights.run.poison {
            for (b, s) in prepared.scratch.iter().zip(&schedule.scratch) {
                canary::fill(&device, b, 0, s.bytes, POISON);
            }
        }
        if self.weights.run.canaries {
            canary::write(&device, schedule, &prepared.scratch);
        }
        let sizes = self.sizes(step, u);
        self.write_frame(sizes, 0);
        let rows = &step.rows[u.first..u.end()];
        self.write_ids(rows, encoder);
        for ((place, values), buffer) in self.plan.inputs.iter().zip(&step.inputs).zip(&self.buffers.inputs) {
            let values = &values[u.first * place.stride..u.end() * place.stride];
            device.queue.write_buffer(buffer, 0, bytemuck::cast_slice(values));
        }
        if self.options.sequences > 1 {
            self.words.clear();
            self.words.extend(rows.iter().flat_map(|r| [r.sequence as u32, r.position as u32]));
            device.queue.write_buffer(&self.buffers.rows, 0, bytemuck::cast_slice(&self.words));
        }
        if self.states.exist() {
            self.write_spans(step, u);
        }
        self.write_choices(step, u)
    }

    /// The sizes of an ubatch; `first_block` is 0 but for a part of a dispatch.
    fn write_frame(&mut self, sizes: Sizes, first_block: u32) {
        let frame = Frame {
            tokens: sizes.tokens,
            past: sizes.past,
            outputs: sizes.outputs,
            first_output: sizes.tokens - sizes.outputs,
            first_block,
            ..Frame::default()
        };
        self.first_block = first_block;
        self.weights.gpu.device.queue.write_buffer(&self.buffers.frame, 0, bytemuck::bytes_of(&frame));
    }

    /// Token ids: those that the host knows are written in runs, those that were chosen last are copied, unless a choice of the
    /// step before lies in place.
    fn write_ids(&mut self, rows: &[Row], encoder: &mut wgpu::CommandEncoder) {
        let queue = &self.weights.gpu.device.queue;
        let mut at = 0;
        while at < rows.len() {
            self.words.clear();
            self.words.extend(rows[at..].iter().map_while(id_of));
            if !self.words.is_empty() {
                queue.write_buffer(&self.buffers.tokens, 4 * at as u64, bytemuck::cast_slice(&self.words));
                self.held[at..at + self.words.len()].fill(None);
                at += self.words.len();
                continue;
            }
            let sequence = rows[at].sequence;
            if let (Some(sampler), true) = (&self.sampler, self.held[at] != Some(sequence)) {
                let (from, byte) = sampler.last(sequence);
                encoder.copy_buffer_to_buffer(from, byte, &self.buffers.tokens, 4 * at as u64, 4);
                self.held[at] = Some(sequence);
            }
            at += 1;
        }
    }

    /// For each sequence the slots of its states and its rows: see `shaders/common/spans.wgsl`.
    fn write_spans(&mut self, step: &mut Begun, u: Ubatch) {
        let (sequences, rows) = (self.options.sequences, &step.rows[u.first..u.end()]);
        let list = SPAN_WORDS * sequences;
        self.words.clear();
        self.words.resize(list, 0);
        rows.iter().for_each(|r| self.words[SPAN_WORDS * r.sequence + 3] += 1);
        let mut first = list as u32;
        for sequence in 0..sequences {
            let at = SPAN_WORDS * sequence;
            let count = self.words[at + 3];
            self.words[at + 2] = first;
            first += count;
            if count == 0 {
                continue;
            }
            let (from, to) = match step.moved.iter().any(|m| m.0 == sequence) {
                // An ubatch of the step before this one has brought the states to the step's own slot.
                true => (Some(self.states.live(sequence)), self.states.live(sequence)),
                false => {
                    step.moved.push((sequence, self.states.live(sequence)));
                    let moving = step.moves.iter().find(|m| m.0 == sequence).map(|m| m.1);
                    self.states.step(sequence, moving)
                }
            };
            (self.words[at], self.words[at + 1]) = (from.unwrap_or(STATE_FRESH), to);
        }
        // With one sequence the rows are all, in order: their list is not read.
        if sequences > 1 {
            self.words.resize(list + rows.len(), 0);
            for (i, row) in rows.iter().enumerate() {
                let next = SPAN_WORDS * row.sequence + 2;
                let place = self.words[next] as usize;
                self.words[place] = i as u32;
                self.words[next] += 1;
            }
            for sequence in 0..sequences {
                let at = SPAN_WORDS * sequence;
                self.words[at + 2] -= self.words[at + 3];
            }
        }
        self.weights.gpu.device.queue.write_buffer(&self.buffers.spans, 0, bytemuck::cast_slice(&self.words));
    }

    fn write_choices(&mut self, step: &Begun, u: Ubatch) -> Result<()> {
        let mut choosing = step.choosing(u).peekable();
        if choosing.peek().is_none() {
            return Ok(());
        }
        let (Some(sampler), Some(plan)) = (&mut self.sampler, &self.plan.sampling) else {
            return Err(Error::Invalid("a token is to be chosen before its rules were set".into()));
        };
        sampler.clear();
        for i in choosing {
            let row = &step.rows[i];
            let choice = Choice {
                sequence: row.sequence as u32,
                row: (i - u.first_output()) as u32,
                // The upper half: the better bits of the generator.
                random: (row.choose.unwrap_or(0) >> 32) as u32,
                masked: 0,
            };
            sampler.choose(&self.weights.gpu, plan, choice, step.mask(i));
        }
        sampler.write(&self.weights.gpu);
        Ok(())
    }
}
