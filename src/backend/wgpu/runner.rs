//! A sequence on the device: its steps, cut where they must be, submitted, and their results fetched.

use super::{
    canary::{self, POISON},
    gpu::Gpu,
    mapping::{self, Signal, map_later},
    sampler::GpuSampler,
    schedules::{PreparedSchedule, PreparedStep, SequenceBuffers, buffer_of, encode},
    upload::DeviceWeights,
};
use crate::{
    backend::{
        KernelTime, Output, Picker, Runner, RunnerOptions, Sampling, Step, check_step,
        state::{Move, Standing},
    },
    error::{Error, Result},
    ir::{Graph, Op, Rows},
    kernels::params::Frame,
    plan::{self, Buffer, OutputView, Plan, Schedule, Sizes},
};
use std::sync::Arc;

/// See [`crate::backend::Runner`].
pub(super) struct GpuRunner {
    weights: Arc<DeviceWeights>,
    plan: Plan,
    options: RunnerOptions,
    shared: SequenceBuffers,
    decode: PreparedSchedule,
    few: Option<PreparedSchedule>,
    prefill: PreparedSchedule,
    staging: wgpu::Buffer,
    mapped: Signal,
    /// Rows of the embedding table: token ids are below.
    vocab: usize,
    last: Option<wgpu::SubmissionIndex>,
    /// Inputs of the caller with padded rows.
    padded: Vec<f32>,
    standing: Standing,
    /// Sampling, made when it is first asked for.
    picks: Option<GpuSampler>,
}

/// A part of a step that the schedule takes at once.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    /// First token.
    at: usize,
    pub tokens: usize,
    outputs: usize,
}

impl GpuRunner {
    /// A runner of one sequence, or of rows of several: then `options.chunk` is the most rows of a step.
    pub fn new(weights: Arc<DeviceWeights>, options: RunnerOptions, sequences: Option<usize>) -> Result<Self> {
        let gpu = &weights.gpu;
        gpu.device.errors.take()?;
        let wanted = plan::Options {
            style: weights.run.style,
            tiles: weights.run.tiles,
            subgroups: weights.run.subgroups,
            guard: weights.run.guard,
            sequences,
            ..plan::Options::new(options.ctx, options.chunk, options.kv)
        };
        let plan = plan::plan(&weights.graph, &weights.weights, &gpu.device.caps, &wanted)?;
        let shared = SequenceBuffers::new(gpu, &plan, weights.run.poison)?;
        let decode = PreparedSchedule::new(gpu, &plan.decode)?;
        let few = plan.small_batch.as_ref().map(|s| PreparedSchedule::new(gpu, s)).transpose()?;
        let prefill = PreparedSchedule::new(gpu, &plan.prefill)?;
        // Decoding starts without delay, whatever came before.
        decode.prepared(&weights, &plan.decode, &shared)?;
        let results = |s: &Schedule| -> u64 {
            let rows = |o: &OutputView| if o.rows == Rows::Tokens { s.max_tokens } else { s.max_outputs };
            s.outputs.iter().map(|o| 4 * u64::from(o.view.stride) * rows(o) as u64).sum()
        };
        let all = plan.schedules().into_iter().filter_map(|s| s.1);
        let bytes = all.map(results).fold(16, u64::max).next_multiple_of(8);
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let staging = gpu.device.buffer("results", bytes, usage)?;
        let vocab = vocab(&weights.graph);
        gpu.device.wait_idle("the buffers of a runner")?;
        Ok(GpuRunner {
            plan,
            options,
            shared,
            decode,
            few,
            prefill,
            staging,
            mapped: Signal::default(),
            vocab,
            last: None,
            padded: vec![],
            standing: Standing::new(&weights.graph),
            picks: None,
            weights,
        })
    }

    /// The piece that starts at token `at`.
    pub fn piece(&self, at: usize, t: usize, o: usize) -> Piece {
        let s = &self.plan.prefill;
        let first_output = (t - o).max(at);
        let mut tokens = (t - at).min(s.max_tokens);
        let wanted = |tokens: usize| (at + tokens).saturating_sub(first_output);
        if wanted(tokens) > s.max_outputs {
            tokens = first_output - at + s.max_outputs;
        }
        Piece { at, tokens, outputs: wanted(tokens) }
    }

    fn write_frame(&self, piece: Piece, past: usize, draw: u32) {
        let frame = Frame {
            tokens: piece.tokens as u32,
            past: (past + piece.at) as u32,
            outputs: piece.outputs as u32,
            first_output: (piece.tokens - piece.outputs) as u32,
            draw,
            ..Frame::default()
        };
        self.weights.gpu.device.queue.write_buffer(&self.shared.frame, 0, bytemuck::bytes_of(&frame));
    }

    /// Ids and numbers of a piece to the device.
    fn write(&mut self, piece: Piece, step: &Step<'_>, sources: &[&[f32]], draw: u32) {
        self.write_frame(piece, step.past, draw);
        let queue = &self.weights.gpu.device.queue;
        let tokens = &step.tokens[piece.at..piece.at + piece.tokens];
        queue.write_buffer(&self.shared.tokens, 0, bytemuck::cast_slice(tokens));
        for ((place, data), buffer) in self.plan.inputs.iter().zip(sources).zip(&self.shared.inputs) {
            let rows = &data[piece.at * place.cols..(piece.at + piece.tokens) * place.cols];
            self.padded.clear();
            for row in rows.chunks(place.cols.max(1)) {
                self.padded.extend_from_slice(row);
                self.padded.resize(self.padded.len() + place.stride - place.cols, 0.0);
            }
            queue.write_buffer(buffer, 0, bytemuck::cast_slice(&self.padded));
        }
    }

    /// Encodes and submits a piece. Last come the copies of its results to the staging buffer, or the choice of a token.
    fn submit(&mut self, piece: Piece, past: usize, pick: bool) -> Result<()> {
        let gpu = &self.weights.gpu;
        let (which, schedule, ready) = self.ready(piece);
        let made = ready.prepared(&self.weights, schedule, &self.shared)?;
        if self.weights.run.poison {
            for (b, s) in ready.scratch.iter().zip(&schedule.scratch) {
                canary::fill(&gpu.device, b, 0, s.bytes, POISON);
            }
        }
        if self.weights.run.guard {
            canary::write(&gpu.device, schedule, &ready.scratch);
        }
        let sizes =
            Sizes { tokens: piece.tokens as u32, outputs: piece.outputs as u32, past: (past + piece.at) as u32 };
        let picking = match (&self.picks, &self.plan.sampling) {
            (Some(p), Some(plan)) if pick => {
                let buffer = |b: Buffer| buffer_of(&self.weights, &self.shared, &ready.scratch, b);
                Some((&plan.steps[which][..], p.prepared(gpu, plan, which, &buffer)?))
            }
            _ => None,
        };
        let mut from = 0usize;
        loop {
            let to = from + self.submission(&schedule.steps[from..], sizes);
            let mut encoder = gpu.device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let done = to == schedule.steps.len();
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            encode(&mut pass, &schedule.steps[from..to], &made[from..to], &ready.scratch, sizes);
            if let Some((steps, made)) = picking.filter(|_| done) {
                encode(&mut pass, steps, made, &ready.scratch, sizes);
            }
            drop(pass);
            from = to;
            if !done {
                gpu.device.submit([encoder.finish()]);
                continue;
            }
            if !pick {
                self.copy_results(&mut encoder, schedule, ready, piece);
                self.last = Some(gpu.device.submit([encoder.finish()]));
            } else if let Some(picks) = &mut self.picks {
                let slot = picks.copy(&mut encoder)?;
                let submission = gpu.device.submit([encoder.finish()]);
                picks.submitted(slot, submission.clone());
                self.last = Some(submission);
            }
            return Ok(());
        }
    }

    /// How many of these steps one submission takes.
    fn submission(&self, steps: &[plan::Step], sizes: Sizes) -> usize {
        let run = &self.weights.run;
        let most = run.max_dispatches.unwrap_or(usize::MAX).max(1).min(steps.len());
        let Some(limit) = run.max_work else { return most };
        let mut work = 0u64;
        let fits = |step: &&plan::Step| {
            work = work.saturating_add(step.reads.work(sizes));
            work <= limit
        };
        steps[..most].iter().take_while(fits).count().max(1.min(steps.len()))
    }

    /// The schedule of a piece: its number in [`Plan::schedules`], itself, and its buffers.
    fn ready(&self, piece: Piece) -> (usize, &Schedule, &PreparedSchedule) {
        match (self.plan.choose(piece.tokens, piece.outputs), &self.plan.small_batch, &self.few) {
            (0, ..) => (0, &self.plan.decode, &self.decode),
            (1, Some(few), Some(ready)) => (1, few, ready),
            _ => (2, &self.plan.prefill, &self.prefill),
        }
    }

    /// The schedule of a piece with everything that encoding it needs.
    pub fn prepared(&self, piece: Piece) -> Result<(&Schedule, &[PreparedStep], &[wgpu::Buffer])> {
        let (_, schedule, ready) = self.ready(piece);
        Ok((schedule, ready.prepared(&self.weights, schedule, &self.shared)?, &ready.scratch))
    }

    fn copy_results(&self, encoder: &mut wgpu::CommandEncoder, s: &Schedule, ready: &PreparedSchedule, piece: Piece) {
        let mut at = 0;
        for o in &s.outputs {
            let bytes = result_bytes(o, piece);
            if bytes > 0 {
                let from = match o.view.buffer {
                    Buffer::Scratch(i) => &ready.scratch[i as usize],
                    Buffer::Input(i) => &self.shared.inputs[i as usize],
                    _ => &self.shared.tokens,
                };
                encoder.copy_buffer_to_buffer(from, 0, &self.staging, at, bytes);
                at += bytes;
            }
        }
    }

    /// Waits for a piece and appends its results.
    fn collect(&mut self, piece: Piece, out: &mut [Output]) -> Result<()> {
        let gpu = &self.weights.gpu;
        let (_, schedule, ready) = self.ready(piece);
        let total: u64 = schedule.outputs.iter().map(|o| result_bytes(o, piece)).sum();
        if total == 0 {
            return Ok(());
        }
        let range = 0..total.next_multiple_of(8);
        let Some(last) = &self.last else { return Err(Error::Device("no step was submitted".into())) };
        map_later(&self.staging, range.clone(), &self.mapped);
        if let Err(e) = mapping::wait(&gpu.device, &self.mapped, last, "the results of a step") {
            self.staging.unmap();
            return Err(e);
        }
        let view = mapping::if_mapped(&gpu.device, &self.staging, range, &self.mapped)?;
        let view = view.ok_or_else(|| Error::Device("the results of a step did not arrive".into()))?;
        let mut at = 0;
        for (place, out) in schedule.outputs.iter().zip(out) {
            let bytes = result_bytes(place, piece) as usize;
            append(place, &view[at..at + bytes], out);
            at += bytes;
        }
        drop(view);
        self.staging.unmap();
        if self.weights.run.guard {
            canary::check(&gpu.device, schedule, &ready.scratch)?;
        }
        Ok(())
    }

    /// Brings the recurrent states to where a step begins.
    fn move_states(&mut self, past: usize) -> Result<()> {
        let moving = self.standing.begin(past)?;
        if moving == Move::Stay {
            return Ok(());
        }
        let gpu = &self.weights.gpu;
        let mut encoder = gpu.device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        match moving {
            Move::Restore => copy_all(&mut encoder, &self.shared.kept, &self.shared.states),
            _ => self.shared.states.iter().for_each(|b| encoder.clear_buffer(b, 0, None)),
        }
        gpu.device.submit([encoder.finish()]);
        Ok(())
    }

    fn inputs<'a>(&self, step: &Step<'a>) -> Result<Vec<&'a [f32]>> {
        let find = |p: &plan::InputBuffer| {
            let want = step.tokens.len() * p.cols;
            match step.inputs.iter().find(|(n, _)| *n == p.name) {
                Some((_, d)) if d.len() == want => Ok(*d),
                Some((_, d)) => Err(Error::Invalid(format!("input {}: {} numbers, {want} wanted", p.name, d.len()))),
                None => Err(Error::Invalid(format!("input {} is missing", p.name))),
            }
        };
        self.plan.inputs.iter().map(find).collect()
    }
}

impl GpuRunner {
    /// What every step begins with.
    fn check(&self, step: &Step<'_>) -> Result<()> {
        check_step(step, &self.options)?;
        self.check_ids(step.tokens)
    }

    /// Ids are below the vocabulary's size, and the device is there.
    fn check_ids(&self, tokens: &[u32]) -> Result<()> {
        if let Some(id) = tokens.iter().find(|id| **id as usize >= self.vocab) {
            return Err(Error::Invalid(format!("token id {id} is not below the vocabulary's {}", self.vocab)));
        }
        self.weights.gpu.device.errors.take()
    }

    /// Bytes of caches and scratch.
    pub fn bytes(&self) -> u64 {
        let picks = self.picks.as_ref().map_or(0, |p| p.bytes);
        let few = self.few.as_ref().map_or(0, |f| f.bytes);
        self.shared.bytes + self.decode.bytes + few + self.prefill.bytes + self.staging.size() + picks
    }

    pub fn gpu(&self) -> &Gpu {
        &self.weights.gpu
    }

    /// Everything that a piece reads, to the device.
    pub fn upload(&mut self, piece: Piece, step: &Step<'_>) -> Result<()> {
        let sources = self.inputs(step)?;
        self.write(piece, step, &sources, 0);
        Ok(())
    }

    /// Runs a checked step. `places` are sequence and position of every row where the plan is for several sequences.
    pub fn run(&mut self, step: Step<'_>, places: &[[u32; 2]], out: &mut Vec<Output>) -> Result<()> {
        self.check_ids(step.tokens)?;
        self.discard();
        let sources = self.inputs(&step)?;
        out.resize_with(self.plan.decode.outputs.len(), Output::default);
        for (o, place) in out.iter_mut().zip(&self.plan.decode.outputs) {
            (o.rows, o.cols) = (0, place.cols);
            o.f32.clear();
            o.u32.clear();
        }
        let (t, mut at) = (step.tokens.len(), 0);
        while at < t {
            let piece = self.piece(at, t, step.outputs);
            let before = self.last.take();
            if let Some(places) = places.get(piece.at..piece.at + piece.tokens) {
                self.weights.gpu.device.queue.write_buffer(&self.shared.rows, 0, bytemuck::cast_slice(places));
            }
            self.write(piece, &step, &sources, 0);
            self.submit(piece, step.past, false)?;
            self.collect(piece, out)?;
            at += piece.tokens;
            if at < t || step.outputs == 0 {
                self.hold_back(before)?;
            }
        }
        self.weights.gpu.device.errors.take()
    }

    /// Without results nothing waits: at most two pieces are on their way.
    fn hold_back(&self, before: Option<wgpu::SubmissionIndex>) -> Result<()> {
        before.map_or(Ok(()), |b| self.weights.gpu.device.wait(&b, "a part of a prompt"))
    }

    /// The picks, made when they are first asked for.
    fn make_picks(&mut self) -> Result<()> {
        let (None, Some(plan)) = (&self.picks, &self.plan.sampling) else { return Ok(()) };
        let picks = GpuSampler::new(&self.weights.gpu, plan)?;
        picks.prepared(&self.weights.gpu, plan, 0, &|b| {
            buffer_of(&self.weights, &self.shared, &self.decode.scratch, b)
        })?;
        self.picks = Some(picks);
        Ok(())
    }
}

impl Picker for GpuRunner {
    fn begin(&mut self, sampling: &Sampling<'_>, recent: &[u32]) -> Result<bool> {
        self.weights.gpu.device.errors.take()?;
        self.make_picks()?;
        let (Some(picks), Some(plan)) = (&mut self.picks, &self.plan.sampling) else { return Ok(false) };
        Ok(picks.begin(&self.weights.gpu, plan.vocab, sampling, recent))
    }

    fn feed(&mut self, step: Step<'_>, draw: u32) -> Result<()> {
        self.check(&step)?;
        if step.outputs != 1 || self.picks.is_none() {
            return Err(Error::Invalid("a token is chosen after one output, and after sampling was begun".into()));
        }
        let sources = self.inputs(&step)?;
        let (t, mut at) = (step.tokens.len(), 0);
        while at < t {
            let piece = self.piece(at, t, 1);
            let before = self.last.take();
            self.write(piece, &step, &sources, draw);
            at += piece.tokens;
            self.submit(piece, step.past, at == t)?;
            if at < t {
                self.hold_back(before)?;
            }
        }
        self.weights.gpu.device.errors.take()
    }

    fn advance(&mut self, past: usize, draw: u32) -> Result<()> {
        if past >= self.options.ctx {
            return Err(Error::ContextFull { needed: past.saturating_add(1), capacity: self.options.ctx });
        }
        if self.picks.is_none() || !self.plan.inputs.is_empty() {
            return Err(Error::Invalid("no token was chosen that could be fed, or the graph wants other input".into()));
        }
        let piece = Piece { at: 0, tokens: 1, outputs: 1 };
        self.write_frame(piece, past, draw);
        self.submit(piece, past, true)?;
        self.weights.gpu.device.errors.take()
    }

    fn pending(&self) -> usize {
        self.picks.as_ref().map_or(0, GpuSampler::pending)
    }

    fn take(&mut self) -> Result<u32> {
        match &mut self.picks {
            Some(picks) => picks.take(&self.weights.gpu),
            None => Err(Error::Invalid("no token is on its way".into())),
        }
    }

    fn discard(&mut self) {
        if let Some(picks) = &mut self.picks {
            picks.discard();
        }
    }
}

impl Runner for GpuRunner {
    fn step(&mut self, step: Step<'_>, out: &mut Vec<Output>) -> Result<()> {
        self.check(&step)?;
        let device = self.weights.gpu.device.clone();
        device.catching(|| {
            self.move_states(step.past)?;
            self.run(step, &[], out)
        })?;
        self.standing.done(step.past + step.tokens.len());
        Ok(())
    }

    fn resume_at(&self, past: usize) -> usize {
        self.standing.resume_at(past)
    }

    fn keep_states(&mut self) -> Result<()> {
        if self.standing.keep() {
            let gpu = &self.weights.gpu;
            let mut encoder = gpu.device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            copy_all(&mut encoder, &self.shared.states, &self.shared.kept);
            self.last = Some(gpu.device.submit([encoder.finish()]));
        }
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        self.bytes()
    }

    fn profile(&mut self, step: Step<'_>) -> Result<Option<Vec<KernelTime>>> {
        self.check(&step)?;
        self.discard();
        // Kernels take their time whatever the states hold, but these are not those of a sequence any more.
        self.standing.lose();
        self.profile_step(&step).map(Some)
    }

    fn picker(&mut self) -> Option<&mut dyn Picker> {
        // Guards are looked at when results are read back: tests that set them want logits.
        // Recurrent states could not go back from the step that is queued before a token is known to be the last.
        let able = self.plan.sampling.is_some() && self.plan.states.is_empty() && !self.weights.run.guard;
        able.then_some(self)
    }
}

fn copy_all(encoder: &mut wgpu::CommandEncoder, from: &[wgpu::Buffer], to: &[wgpu::Buffer]) {
    from.iter().zip(to).for_each(|(a, b)| encoder.copy_buffer_to_buffer(a, 0, b, 0, a.size()));
}

fn result_bytes(o: &OutputView, piece: Piece) -> u64 {
    let rows = if o.rows == Rows::Tokens { piece.tokens } else { piece.outputs };
    4 * u64::from(o.view.stride) * rows as u64
}

/// Appends rows, without their padding.
fn append(place: &OutputView, bytes: &[u8], out: &mut Output) {
    let (first, end) = (place.view.offset as usize, place.view.offset as usize + place.cols);
    for row in bytes.chunks_exact(4 * place.view.stride.max(1) as usize) {
        let row: &[u32] = bytemuck::cast_slice(row);
        if place.ids {
            out.u32.extend_from_slice(&row[first..end]);
        } else {
            out.f32.extend_from_slice(bytemuck::cast_slice(&row[first..end]));
        }
        out.rows += 1;
    }
}

fn vocab(g: &Graph) -> usize {
    let rows = |op: &Op| match op {
        Op::Embed { table, .. } => g.weight(*table).shape.first().copied(),
        _ => None,
    };
    g.nodes.iter().filter_map(|n| rows(&n.op)).min().unwrap_or(usize::MAX)
}
