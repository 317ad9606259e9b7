//! Tokens chosen on the device: the buffers of the sampler, and the chosen tokens on their way back.
//!
//! Chosen tokens are copied to one of a few small buffers that are mapped while later steps run. The device never waits for the
//! host: the next step reads an id where the choice was written.

use super::{
    gpu::Gpu,
    mapping::{Signal, call_off},
    schedules::{PreparedStep, params_buffer, params_bytes, prepare_steps, prepared_once},
};
use crate::{
    backend::runner::Chosen,
    error::Result,
    plan::{
        Buffer,
        sample::{self, BROKEN, Choice, FORBIDDEN, NOTHING, Part, RING, RING_AT, STATE_WORDS, Settings},
    },
    sampler::Sampling,
};
use std::sync::OnceLock;

/// Steps whose chosen tokens may be on their way at once.
const IN_FLIGHT: usize = 4;

/// Bytes of a u32 word.
const WORD: u64 = 4;

/// The device's side of choosing tokens, for all sequences of a runner.
pub(super) struct GpuSampler {
    parts: [wgpu::Buffer; Part::ALL.len()],
    /// Behind each schedule, prepared when it is first used.
    steps: [OnceLock<Vec<PreparedStep>>; 3],
    /// Uniforms of these steps.
    params: [wgpu::Buffer; 3],
    /// Where chosen tokens are mapped; in turn.
    slots: Vec<(wgpu::Buffer, Signal)>,
    used: usize,
    next: usize,
    /// Words of settings and of a sequence's state while they are written.
    words: Vec<u32>,
    choices: Vec<Choice>,
    pub bytes: u64,
}

impl GpuSampler {
    /// Bytes of each buffer of a plan's sampler.
    pub fn sizes(plan: &sample::Sampling) -> Vec<u64> {
        let parts = Part::ALL.iter().map(|part| plan.bytes(*part));
        let params = plan.steps.iter().map(|steps| params_bytes(steps));
        parts.chain(params).chain([plan.bytes(Part::Chosen); IN_FLIGHT]).collect()
    }

    /// Makes buffers.
    pub fn new(gpu: &Gpu, plan: &sample::Sampling) -> Result<Self> {
        use wgpu::BufferUsages as U;
        let device = &gpu.device;
        let usage = U::STORAGE | U::COPY_DST | U::COPY_SRC;
        let make = |part: Part| device.buffer(part.name(), plan.bytes(part), usage);
        let [a, b, c, d, e, f, g] = Part::ALL;
        let parts = [make(a)?, make(b)?, make(c)?, make(d)?, make(e)?, make(f)?, make(g)?];
        let [a, b, c] = &plan.steps;
        let params = [params_buffer(gpu, a)?, params_buffer(gpu, b)?, params_buffer(gpu, c)?];
        let slot = || {
            let buffer = device.buffer("chosen tokens", plan.bytes(Part::Chosen), U::MAP_READ | U::COPY_DST)?;
            Ok((buffer, Signal::default()))
        };
        let slots = (0..IN_FLIGHT).map(|_| slot()).collect::<Result<Vec<_>>>()?;
        let (steps, words) = (Default::default(), Vec::with_capacity(FORBIDDEN.max(RING) + 16));
        let choices = Vec::with_capacity(plan.choices);
        let bytes = Self::sizes(plan).iter().sum();
        Ok(GpuSampler { parts, steps, params, slots, used: 0, next: 0, words, choices, bytes })
    }

    /// Pipelines and bind groups of the steps behind schedule `which`. `find` knows that schedule's buffers.
    pub fn prepared<'a>(
        &'a self,
        gpu: &Gpu,
        plan: &sample::Sampling,
        which: usize,
        find: &dyn Fn(Buffer) -> Result<&'a wgpu::Buffer>,
    ) -> Result<&'a [PreparedStep]> {
        let with_parts = |b: Buffer| match b {
            Buffer::Sampling(part) => Ok(self.part(part)),
            Buffer::Params => Ok(&self.params[which]),
            other => find(other),
        };
        prepared_once(&self.steps[which], || prepare_steps(gpu, &plan.steps[which], &with_parts))
    }

    /// Writes the settings and recent tokens of a sequence; `false` where they do not fit the device's form.
    pub fn set(&mut self, gpu: &Gpu, plan: &sample::Sampling, sequence: usize, s: &Sampling<'_>) -> bool {
        let Some(settings) = settings(plan.vocab, s) else { return false };
        let (queue, window) = (&gpu.device.queue, settings.window as usize);
        self.words.clear();
        self.words.extend_from_slice(bytemuck::cast_slice(&[settings]));
        self.words.extend_from_slice(s.forbidden);
        let at = plan.settings_bytes() * sequence as u64;
        queue.write_buffer(&self.parts[Part::Settings as usize], at, bytemuck::cast_slice(&self.words));
        self.words.clear();
        self.words.resize(RING_AT + window, 0);
        // Token j of the sequence is at j modulo the window.
        let kept = s.recent.len().min(window);
        let first = s.recent.len() - kept;
        for (j, id) in s.recent.iter().enumerate().skip(first) {
            self.words[RING_AT + j % window] = *id;
        }
        // The count may be taken modulo the window once the ring is full; this keeps it from wrapping round.
        self.words[0] = if kept < window { kept } else { window + s.recent.len() % window.max(1) } as u32;
        let at = WORD * (STATE_WORDS * sequence) as u64;
        queue.write_buffer(&self.parts[Part::State as usize], at, bytemuck::cast_slice(&self.words));
        true
    }

    fn part(&self, part: Part) -> &wgpu::Buffer {
        &self.parts[part as usize]
    }

    /// Begins the list of an ubatch's choices.
    pub fn clear(&mut self) {
        self.choices.clear();
    }

    /// Adds a choice of a sequence after output row `row`, with a mask for this choice or without.
    pub fn choose(&mut self, gpu: &Gpu, plan: &sample::Sampling, mut choice: Choice, mask: Option<&[u32]>) {
        if let Some(mask) = mask {
            let at = WORD * (plan.mask_words() * self.choices.len()) as u64;
            gpu.device.queue.write_buffer(self.part(Part::Masks), at, bytemuck::cast_slice(mask));
        }
        choice.masked = u32::from(mask.is_some());
        self.choices.push(choice);
    }

    /// Choices of the ubatch at hand.
    pub fn choices(&self) -> &[Choice] {
        &self.choices
    }

    /// Writes the list.
    pub fn write(&self, gpu: &Gpu) {
        gpu.device.queue.write_buffer(self.part(Part::Choices), 0, bytemuck::cast_slice(&self.choices));
    }

    /// Where the token that was chosen last for a sequence lies: buffer and byte.
    pub fn last(&self, sequence: usize) -> (&wgpu::Buffer, u64) {
        (self.part(Part::State), WORD * (STATE_WORDS * sequence + 1) as u64)
    }

    /// Whether another step's chosen tokens can be read back.
    pub fn has_slot(&self) -> bool {
        self.used < IN_FLIGHT
    }

    /// Copies the chosen tokens of the steps encoded so far to a slot.
    pub fn copy(&mut self, encoder: &mut wgpu::CommandEncoder) -> (usize, u64) {
        let slot = self.next;
        self.next = (self.next + 1) % IN_FLIGHT;
        self.used += 1;
        let bytes = WORD * self.choices.len() as u64;
        encoder.copy_buffer_to_buffer(self.part(Part::Chosen), 0, &self.slots[slot].0, 0, bytes);
        (slot, bytes)
    }

    /// The buffer of a slot and the signal of its mapping.
    pub fn slot(&self, slot: usize) -> (&wgpu::Buffer, &Signal) {
        (&self.slots[slot].0, &self.slots[slot].1)
    }

    /// The tokens of a slot, which may still be on their way, are no longer needed.
    pub fn call_off(&mut self, slot: usize) {
        call_off(&self.slots[slot].0, &self.slots[slot].1);
        self.used -= 1;
    }

    /// The tokens of a slot were read.
    pub fn release(&mut self, slot: usize) {
        self.slots[slot].0.unmap();
        self.used -= 1;
    }
}

/// What a word that came back says.
pub(super) fn chosen(word: u32) -> Chosen {
    match word {
        BROKEN => Chosen::NotFinite,
        NOTHING => Chosen::NothingAllowed,
        id => Chosen::Token(id),
    }
}

/// The device's form of the options; `None` where they do not fit.
fn settings(vocab: usize, s: &Sampling<'_>) -> Option<Settings> {
    let o = &s.options;
    let far = o.repeat_penalty != 1.0 && o.repeat_last_n > RING;
    if s.on_host || far || s.forbidden.len() > FORBIDDEN || !s.bias.is_empty() {
        return None;
    }
    let cuts = o.top_k > 0 && o.top_k < vocab;
    Some(Settings {
        inverse_temperature: if o.temperature == 0.0 { 0.0 } else { o.temperature.recip().min(f32::MAX) },
        log_min_p: if o.min_p > 0.0 { f64::from(o.min_p).ln() as f32 } else { f32::MIN },
        penalty: o.repeat_penalty,
        top_k: if cuts { o.top_k as u32 } else { 0 },
        // A tiny part still keeps the best token.
        top_p: if o.top_p < 1.0 { ((f64::from(o.top_p) * 4_294_967_296.0) as u32).max(1) } else { 0 },
        window: if o.repeat_penalty == 1.0 { 0 } else { o.repeat_last_n as u32 },
        // Where nothing was sorted, the host's sampler goes through the tokens by id.
        by_id: u32::from(!cuts && o.top_p >= 1.0),
        forbidden: s.forbidden.len() as u32,
    })
}
