//! Tokens chosen on the device: the buffers of sampling, and the picks on their way back.
//!
//! A pick is copied to one of a few small buffers that are mapped while later steps run. The device never waits for the
//! host: the next step reads the id where the pick was written.

use super::{
    gpu::Gpu,
    mapping::{self, Signal, map_later},
    schedules::{PreparedStep, params_buffer, prepare_steps, prepared_once},
};
use crate::{
    backend::Sampling,
    error::{Error, Result},
    plan::{
        Buffer,
        sample::{self, BROKEN, FORBIDDEN, NOTHING, Part, RING, RING_AT, Settings},
    },
};
use std::{collections::VecDeque, sync::OnceLock};

/// GpuSampler that may be on their way at once.
pub(super) const IN_FLIGHT: usize = 4;

/// Bytes that come back for a pick.
const PICK_BYTES: u64 = 8;

/// A pick on its way.
struct Pending {
    slot: usize,
    submission: wgpu::SubmissionIndex,
}

/// See [`crate::backend::Picker`]; the steps themselves are the runner's.
pub(super) struct GpuSampler {
    parts: [wgpu::Buffer; 4],
    /// Behind each schedule, made when it is first used.
    steps: [OnceLock<Vec<PreparedStep>>; 3],
    /// Their uniforms.
    params: [wgpu::Buffer; 3],
    slots: Vec<(wgpu::Buffer, Signal)>,
    pending: VecDeque<Pending>,
    next: usize,
    pub bytes: u64,
}

impl GpuSampler {
    /// Makes buffers.
    pub fn new(gpu: &Gpu, plan: &sample::Sampling) -> Result<Self> {
        use wgpu::BufferUsages as U;
        let usage = U::STORAGE | U::COPY_DST | U::COPY_SRC;
        let make = |part: Part| gpu.device.buffer("sampling", plan.bytes(part), usage);
        let parts = [make(Part::Settings)?, make(Part::State)?, make(Part::Keys)?, make(Part::Maxima)?];
        let [a, b, c] = &plan.steps;
        let params = [params_buffer(gpu, a)?, params_buffer(gpu, b)?, params_buffer(gpu, c)?];
        let slot = || Ok((gpu.device.buffer("pick", PICK_BYTES, U::MAP_READ | U::COPY_DST)?, Signal::default()));
        let slots = (0..IN_FLIGHT).map(|_| slot()).collect::<Result<Vec<_>>>()?;
        let bytes = parts.iter().map(wgpu::Buffer::size).sum::<u64>() + 16 * IN_FLIGHT as u64;
        let steps = Default::default();
        Ok(GpuSampler { parts, steps, params, slots, pending: VecDeque::with_capacity(IN_FLIGHT), next: 0, bytes })
    }

    /// Pipelines and bind groups of the steps behind schedule `which`. `find` knows that schedule's buffers.
    pub fn prepared<'a>(
        &'a self,
        gpu: &Gpu,
        plan: &sample::Sampling,
        which: usize,
        find: &dyn Fn(Buffer) -> &'a wgpu::Buffer,
    ) -> Result<&'a [PreparedStep]> {
        let with_parts = |b: Buffer| match b {
            Buffer::Sampling(part) => &self.parts[part as usize],
            Buffer::Params => &self.params[which],
            other => find(other),
        };
        prepared_once(&self.steps[which], || prepare_steps(gpu, &plan.steps[which], &with_parts))
    }

    /// Writes the settings of a generation; `false` where they do not fit.
    pub fn begin(&mut self, gpu: &Gpu, vocab: usize, s: &Sampling<'_>, recent: &[u32]) -> bool {
        self.discard();
        let Some(settings) = settings(vocab, s) else { return false };
        let window = settings.window as usize;
        let mut words = bytemuck::cast_slice::<_, u32>(&[settings]).to_vec();
        words.extend_from_slice(s.forbidden);
        gpu.device.queue.write_buffer(self.part(Part::Settings), 0, bytemuck::cast_slice(&words));
        let mut state = vec![0u32; RING_AT + window];
        // Token j of the sequence is at j modulo the window.
        let kept = recent.len().min(window);
        let first = recent.len() - kept;
        for (j, id) in recent.iter().enumerate().skip(first) {
            state[RING_AT + j % window] = *id;
        }
        // The count may be taken modulo the window once the ring is full; this keeps it from wrapping round.
        state[0] = if kept < window { kept } else { window + recent.len() % window.max(1) } as u32;
        gpu.device.queue.write_buffer(self.part(Part::State), 0, bytemuck::cast_slice(&state));
        true
    }

    fn part(&self, part: Part) -> &wgpu::Buffer {
        &self.parts[part as usize]
    }

    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Copies the pick of the steps encoded so far; gives the slot.
    pub fn copy(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<usize> {
        if self.pending.len() == IN_FLIGHT {
            return Err(Error::Invalid(format!("{IN_FLIGHT} picks are on their way: take one first")));
        }
        let slot = self.next;
        self.next = (self.next + 1) % IN_FLIGHT;
        encoder.copy_buffer_to_buffer(self.part(Part::State), 0, &self.slots[slot].0, 0, PICK_BYTES);
        Ok(slot)
    }

    /// What `copy` put into a slot was submitted: asks for it.
    pub fn submitted(&mut self, slot: usize, submission: wgpu::SubmissionIndex) {
        let (buffer, signal) = &self.slots[slot];
        map_later(buffer, 0..PICK_BYTES, signal);
        self.pending.push_back(Pending { slot, submission });
    }

    /// The oldest pick.
    pub fn take(&mut self, gpu: &Gpu) -> Result<u32> {
        let Some(Pending { slot, submission }) = self.pending.pop_front() else {
            return Err(Error::Invalid("no token is on its way".into()));
        };
        let (buffer, signal) = &self.slots[slot];
        let view = mapping::wait(&gpu.device, signal, &submission, "a chosen token")
            .and_then(|()| mapping::if_mapped(&gpu.device, buffer, 0..PICK_BYTES, signal));
        let id = view.map(|view| {
            let view = view?;
            let words: &[u32] = bytemuck::cast_slice(&view);
            Some(words[1])
        });
        buffer.unmap();
        match id?.ok_or_else(|| Error::Device("a chosen token did not arrive".into()))? {
            BROKEN => Err(Error::Model(
                "the logits hold NaN or infinity: the weights are damaged, or numbers overflow".into(),
            )),
            NOTHING => Err(Error::Invalid("no token to choose from: all are forbidden".into())),
            id => Ok(id),
        }
    }

    pub fn discard(&mut self) {
        for p in self.pending.drain(..) {
            // Calls off the mapping.
            self.slots[p.slot].0.unmap();
        }
    }
}

/// The device's form of the options; `None` where they do not fit.
fn settings(vocab: usize, s: &Sampling<'_>) -> Option<Settings> {
    if s.forbidden.len() > FORBIDDEN || (s.repeat_penalty != 1.0 && s.repeat_last_n > RING) {
        return None;
    }
    let cuts = s.top_k > 0 && s.top_k < vocab;
    Some(Settings {
        inverse_temperature: if s.temperature == 0.0 { 0.0 } else { s.temperature.recip().min(f32::MAX) },
        log_min_p: if s.min_p > 0.0 { f64::from(s.min_p).ln() as f32 } else { f32::MIN },
        penalty: s.repeat_penalty,
        top_k: if cuts { s.top_k as u32 } else { 0 },
        // A tiny part still keeps the best token.
        top_p: if s.top_p < 1.0 { ((f64::from(s.top_p) * 4_294_967_296.0) as u32).max(1) } else { 0 },
        window: if s.repeat_penalty == 1.0 { 0 } else { s.repeat_last_n as u32 },
        // Where nothing was sorted, the host's sampler goes through the tokens by id.
        by_id: u32::from(!cuts && s.top_p >= 1.0),
        forbidden: s.forbidden.len() as u32,
    })
}
