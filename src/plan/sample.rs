//! Sampling on the device: two dispatches behind a step that leaves logits, for any of its output rows. The first makes keys of the
//! logits, the second chooses tokens, appends each to its sequence's recent tokens, and writes it where the next step reads its id.
//!
//! What the host writes is laid out in [`Settings`] and in [`Part`].

use super::{Access, Binding, Buffer, Caps, Cost, Count, Depth, Grid, Schedule, Step};
use crate::{
    error::Result,
    ir::{Graph, Rows, Type},
    kernels::{Variant, catalogue, numbers, params},
};

pub use super::schedule::Part;
pub use crate::kernels::{
    numbers::{BROKEN, NOTHING},
    params::{Choice, Settings},
};

/// Ids that can be forbidden, at most.
pub const FORBIDDEN: usize = numbers::FORBIDDEN as usize;

/// Recent tokens that the repetition penalty can look at, at most.
pub const RING: usize = numbers::RING as usize;

/// u32 words of a sequence in `State`.
pub const STATE_WORDS: usize = RING_AT + RING;

/// u32 words of `State` before the ring.
pub const RING_AT: usize = numbers::RING_AT as usize;

/// Tokens of a group, whose largest key stands for it.
const GROUP: usize = numbers::SAMPLE_GROUP as usize;

/// Vocabularies are below this: ids are found in at most three steps of 8 bits.
const MOST_TOKENS: usize = 1 << 24;

/// The steps and buffers of sampling.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// Logits, V.
    pub vocab: usize,
    /// Sequences, each with its own settings and recent tokens.
    pub sequences: usize,
    /// Tokens that are chosen at once, at most.
    pub choices: usize,
    /// Behind each of [`super::Plan::schedules`]. In their grids, O is the number of choices.
    pub steps: [Vec<Step>; 3],
}

impl Sampling {
    /// u32 words of a mask.
    pub fn mask_words(&self) -> usize {
        self.vocab.div_ceil(32)
    }

    /// Bytes of the settings of a sequence.
    pub fn settings_bytes(&self) -> u64 {
        (size_of::<Settings>() + 4 * FORBIDDEN) as u64
    }

    /// Bytes of a buffer.
    pub fn bytes(&self, part: Part) -> u64 {
        let (sequences, choices) = (self.sequences as u64, self.choices as u64);
        let words = |n: usize| 4 * n as u64;
        let bytes = match part {
            Part::Settings => sequences * self.settings_bytes(),
            Part::State => sequences * words(STATE_WORDS),
            Part::Choices => choices * size_of::<Choice>() as u64,
            Part::Masks => choices * words(self.mask_words()),
            Part::Keys => choices * words(self.vocab),
            Part::Maxima => choices * words(self.vocab.div_ceil(GROUP)),
            Part::Chosen => choices * words(1),
        };
        bytes.max(16)
    }
}

/// The steps behind these schedules; `None` where the graph has no logits of output rows, or the device binds too little.
///
/// # Errors
/// As [`Variant::tile`].
pub(super) fn sampling(
    graph: &Graph,
    schedules: [Option<&Schedule>; 3],
    caps: &Caps,
    sequences: usize,
) -> Result<Option<Sampling>> {
    let Some((_, value)) = graph.outputs.iter().find(|(name, _)| name == "logits") else { return Ok(None) };
    let Type::F32(Rows::Outputs, vocab) = graph.ty(*value) else { return Ok(None) };
    if vocab == 0 || vocab >= MOST_TOKENS {
        return Ok(None);
    }
    let outputs = schedules.into_iter().flatten().map(|s| s.max_outputs).max().unwrap_or(0);
    let most = caps.max_binding.min(caps.max_buffer);
    // As many choices as the device binds keys for; a step with more of them is cut.
    let choices = sequences.min(outputs).min((most / (4 * vocab as u64)) as usize);
    let mut s = Sampling { vocab, sequences, choices, steps: Default::default() };
    if choices == 0 || Part::ALL.into_iter().any(|part| s.bytes(part) > most) {
        return Ok(None);
    }
    for (i, schedule) in schedules.into_iter().enumerate() {
        if let Some(schedule) = schedule {
            let Some(steps) = s.after(schedule)? else { return Ok(None) };
            s.steps[i] = steps;
        }
    }
    Ok(Some(s))
}

impl Sampling {
    fn bind(&self, name: &'static str, part: Part, access: Access) -> Binding {
        let size = self.bytes(part);
        Binding { name, buffer: Buffer::Sampling(part), offset: 0, size, access, transient: None }
    }

    fn after(&self, s: &Schedule) -> Result<Option<Vec<Step>>> {
        let Some(logits) = s.outputs.iter().find(|o| o.name == "logits") else { return Ok(None) };
        let Buffer::Scratch(scratch) = logits.view.buffer else { return Ok(None) };
        let Some(size) = s.scratch.get(scratch as usize).map(|b| b.bytes) else { return Ok(None) };
        let x = Binding {
            name: "x",
            buffer: logits.view.buffer,
            offset: 0,
            size,
            access: Access::Read,
            transient: logits.transient,
        };
        let groups = self.vocab.div_ceil(GROUP);
        let p = params::SampleKeysParams {
            vocab: self.vocab as u32,
            x_offset: logits.view.offset,
            x_stride: logits.view.stride,
        };
        let keys = vec![
            self.bind("settings", Part::Settings, Access::Read),
            self.bind("choices", Part::Choices, Access::Read),
            self.bind("masks", Part::Masks, Access::Read),
            x,
            self.bind("state", Part::State, Access::Read),
            self.bind("keys", Part::Keys, Access::ReadWrite),
            self.bind("maxima", Part::Maxima, Access::ReadWrite),
        ];
        let bytes = 4 * self.vocab as u64;
        let cost = (Cost { output: bytes, ..Cost::default() }, Cost { output: bytes, ..Cost::default() });
        let keys = step(Variant::new(&catalogue::SAMPLE_KEYS), self.vocab, bytemuck::bytes_of(&p), keys, cost)?;
        let p = params::SamplePickParams { vocab: self.vocab as u32, groups: groups as u32 };
        let pick = vec![
            self.bind("settings", Part::Settings, Access::Read),
            self.bind("choices", Part::Choices, Access::Read),
            self.bind("keys", Part::Keys, Access::Read),
            self.bind("maxima", Part::Maxima, Access::Read),
            self.bind("state", Part::State, Access::ReadWrite),
            self.bind("chosen", Part::Chosen, Access::ReadWrite),
            Binding {
                name: "tokens",
                buffer: Buffer::Tokens,
                offset: 0,
                size: 4 * s.max_tokens as u64,
                access: Access::ReadWrite,
                transient: None,
            },
        ];
        // What it reads at least: the maxima, and the keys of one group.
        let cost =
            (Cost { output: 4 * (groups + GROUP) as u64, ..Cost::default() }, Cost { output: 8, ..Cost::default() });
        let pick = step(Variant::new(&catalogue::SAMPLE_PICK), 1, bytemuck::bytes_of(&p), pick, cost)?;
        Ok(Some(vec![keys, pick]))
    }
}

fn step(
    variant: Variant,
    items: usize,
    params: &[u8],
    bindings: Vec<Binding>,
    (reads, writes): (Cost, Cost),
) -> Result<Step> {
    let x = (items as u64).div_ceil(u64::from(variant.tile()?[0].max(1))) as u32;
    let grid = Grid::Direct { x, count: Count::Outputs, per: 1, tile: 1, z: Depth::One };
    Ok(Step { op: "sample", layer: None, variant, bindings, params: params.to_vec(), grid, reads, writes })
}
