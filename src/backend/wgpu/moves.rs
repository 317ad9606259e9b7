//! Sequences copied, read and written as a whole: keys and values of their first positions, and recurrent states.

use super::{mapping::map_read, runner::GpuRunner};
use crate::{
    backend::runner::StateCopy,
    error::{Error, Result},
    plan::STATE_SLOTS,
};
use std::ops::Range;

/// Bytes that are read back at once.
const AT_ONCE: u64 = 8 << 20;

/// A buffer that sequences have something in.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Keys (side 0) or values (side 1) of a part of a cache.
    Cache {
        cache: usize,
        part: usize,
        side: usize,
    },
    State(usize),
}

/// A range of bytes of a cache or of a state.
#[derive(Clone, Copy, Debug)]
struct ByteRange {
    /// Of what.
    buffer: Place,
    first: u64,
    bytes: u64,
}

impl GpuRunner {
    fn buffer_of_range(&self, r: ByteRange) -> &wgpu::Buffer {
        match r.buffer {
            Place::Cache { cache, part, side } => &self.buffers.caches[cache][part][side],
            Place::State(state) => &self.buffers.states[state],
        }
    }

    /// Where keys and values of some positions of a sequence lie: each head's together.
    fn key_ranges(&self, sequence: usize, positions: Range<usize>) -> Vec<ByteRange> {
        let (kv, ctx) = (self.options.kv, self.options.ctx);
        let mut all = vec![];
        for (i, d) in self.weights.graph.caches.iter().enumerate() {
            for (side, cols) in [d.k_dim, d.stored_v_dim()].into_iter().enumerate() {
                let row = kv.gpu_row_bytes(cols) as u64;
                let parts = &self.plan.caches[i].parts;
                let head = |head: usize| {
                    let unit = (sequence * d.kv_heads + head) as u32;
                    let part = parts.iter().rposition(|p| p.first <= unit).unwrap_or(0);
                    let within = unit - parts.get(part).map_or(0, |p| p.first);
                    ByteRange {
                        buffer: Place::Cache { cache: i, part, side },
                        first: (u64::from(within) * ctx as u64 + positions.start as u64) * row,
                        bytes: positions.len() as u64 * row,
                    }
                };
                all.extend((0..d.kv_heads).map(head).filter(|r| r.bytes > 0));
            }
        }
        all
    }

    /// Where the states in a slot lie.
    fn state_ranges(&self, slot: u32) -> Vec<ByteRange> {
        let slots = (self.options.sequences * STATE_SLOTS) as u64;
        let range = |(i, bytes): (usize, &u64)| {
            let each = bytes / slots;
            ByteRange { buffer: Place::State(i), first: u64::from(slot) * each, bytes: each }
        };
        self.plan.states.iter().enumerate().map(range).collect()
    }

    fn slot_of(&self, copy: StateCopy) -> Result<u32> {
        if !copy.snapshot {
            return Ok(self.states.live(copy.sequence));
        }
        let missing = || Error::Invalid(format!("sequence {} has no snapshot", copy.sequence));
        self.states.snapshot(copy.sequence).ok_or_else(missing)
    }

    /// Copies ranges to others of the same buffers, by way of another buffer: a copy cannot stay within one.
    fn copy_ranges(&self, from: &[ByteRange], to: &[ByteRange]) -> Result<()> {
        use wgpu::BufferUsages as U;
        let device = &self.weights.gpu.device;
        let most = from.iter().map(|r| r.bytes).max().unwrap_or(0);
        if most == 0 {
            return Ok(());
        }
        let between = device.buffer("copied sequences", most, U::COPY_SRC | U::COPY_DST)?;
        let mut encoder = device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for (from, to) in from.iter().zip(to) {
            encoder.copy_buffer_to_buffer(self.buffer_of_range(*from), from.first, &between, 0, from.bytes);
            encoder.copy_buffer_to_buffer(&between, 0, self.buffer_of_range(*to), to.first, from.bytes);
        }
        device.submit([encoder.finish()]);
        device.errors.take()
    }

    /// Copies keys and values of the first positions to another sequence.
    pub fn copy_keys(&self, from: usize, to: usize, positions: usize) -> Result<()> {
        self.copy_ranges(&self.key_ranges(from, 0..positions), &self.key_ranges(to, 0..positions))
    }

    /// Copies recurrent states. A snapshot of the states as they stand is no copy: their slot is kept.
    pub fn copy_slots(&mut self, from: StateCopy, to: StateCopy) -> Result<()> {
        if to == (StateCopy { snapshot: true, ..from }) && !from.snapshot {
            self.states.keep(from.sequence);
            return Ok(());
        }
        let (source, target) = (self.slot_of(from)?, self.states.free(to.sequence));
        self.copy_ranges(&self.state_ranges(source), &self.state_ranges(target))?;
        match to.snapshot {
            true => self.states.set_snapshot(to.sequence, target),
            false => self.states.set_live(to.sequence, target),
        }
        Ok(())
    }

    /// Bytes of a saved sequence.
    pub fn saved_bytes(&self, positions: usize, states: bool) -> u64 {
        let states = if states { self.state_ranges(0) } else { vec![] };
        self.key_ranges(0, 0..positions).iter().chain(&states).map(|r| r.bytes).sum()
    }

    /// Bytes of keys and values of so many positions, of each head.
    pub fn key_parts(&self, positions: usize) -> Vec<usize> {
        self.key_ranges(0, 0..positions).iter().map(|r| r.bytes as usize).collect()
    }

    /// Appends keys and values of some positions, then the states asked for.
    pub fn save(
        &self,
        sequence: usize,
        positions: Range<usize>,
        states: Option<StateCopy>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        use wgpu::BufferUsages as U;
        let device = &self.weights.gpu.device;
        let mut ranges = self.key_ranges(sequence, positions);
        if let Some(copy) = states {
            ranges.extend(self.state_ranges(self.slot_of(copy)?));
        }
        let staging = device.buffer("saved sequences", AT_ONCE, U::MAP_READ | U::COPY_DST)?;
        let mut pieces = ranges.iter().flat_map(|r| {
            let piece = move |at: u64| ByteRange { first: r.first + at, bytes: (r.bytes - at).min(AT_ONCE), ..*r };
            (0..r.bytes).step_by(AT_ONCE as usize).map(piece)
        });
        let mut next = pieces.next();
        while next.is_some() {
            let mut encoder = device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut at = 0;
            while let Some(r) = next.filter(|r| at + r.bytes <= AT_ONCE) {
                encoder.copy_buffer_to_buffer(self.buffer_of_range(r), r.first, &staging, at, r.bytes);
                at += r.bytes;
                next = pieces.next();
            }
            let submission = device.submit([encoder.finish()]);
            let view = map_read(device, &staging, 0..at.next_multiple_of(8), &submission, "a saved sequence")?;
            out.extend_from_slice(&view[..at as usize]);
            drop(view);
            staging.unmap();
        }
        Ok(())
    }

    /// Puts back what [`GpuRunner::save`] gave.
    pub fn restore(&mut self, sequence: usize, positions: Range<usize>, states: bool, bytes: &[u8]) -> Result<()> {
        let mut ranges = self.key_ranges(sequence, positions);
        if states {
            let slot = self.states.free(sequence);
            ranges.extend(self.state_ranges(slot));
            self.states.set_live(sequence, slot);
        }
        let mut rest = bytes;
        for r in ranges {
            let short = || Error::Invalid("a saved sequence is too short".into());
            let (part, behind) = rest.split_at_checked(r.bytes as usize).ok_or_else(short)?;
            self.weights.gpu.device.queue.write_buffer(self.buffer_of_range(r), r.first, part);
            rest = behind;
        }
        self.weights.gpu.device.wait_idle("a restored sequence")
    }
}
