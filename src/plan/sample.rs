//! Sampling on the device: two dispatches behind a step that leaves the logits of one position. The first makes keys of
//! the logits, the second picks a token, appends it to the recent tokens and writes it where the next step reads its id.
//!
//! What the host writes is laid out in [`Settings`] and in [`Part`].

use super::{Access, Binding, Buffer, Caps, Cost, Count, Grid, Schedule, Step};
use crate::{
    error::Result,
    ir::{Graph, Rows, Type},
    kernels::{Variant, catalogue, numbers, params},
};

/// The buffers of sampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// What the generation wants: [`Settings`], then [`FORBIDDEN`] ids.
    Settings,
    /// u32: how many tokens so far, the last pick, two words of room, then the ring of [`RING`] recent tokens.
    State,
    /// Keys of the logits, u32 `[V]`.
    Keys,
    /// The largest key of each 64, u32 `[ceil(V / 64)]`.
    Maxima,
}

pub use crate::kernels::{
    numbers::{BROKEN, NOTHING},
    params::Settings,
};

/// Ids that can be forbidden, at most.
pub const FORBIDDEN: usize = numbers::FORBIDDEN as usize;

/// Recent tokens that the repetition penalty can look at, at most.
pub const RING: usize = numbers::RING as usize;

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
    /// Behind each of [`super::Plan::schedules`], where O is 1.
    pub steps: [Vec<Step>; 3],
}

impl Sampling {
    /// Bytes of a buffer.
    pub fn bytes(&self, part: Part) -> u64 {
        let words = match part {
            Part::Settings => size_of::<Settings>() / 4 + FORBIDDEN,
            Part::State => RING_AT + RING,
            Part::Keys => self.vocab,
            Part::Maxima => self.vocab.div_ceil(GROUP),
        };
        4 * (words.max(4) as u64)
    }
}

/// The steps behind these schedules; `None` where the graph has no logits of output rows, or the device binds too little.
///
/// # Errors
/// As [`Variant::tile`].
pub(super) fn sampling(graph: &Graph, schedules: [Option<&Schedule>; 3], caps: &Caps) -> Result<Option<Sampling>> {
    let Some((_, value)) = graph.outputs.iter().find(|(name, _)| name == "logits") else { return Ok(None) };
    let Type::F32(Rows::Outputs, vocab) = graph.ty(*value) else { return Ok(None) };
    if vocab == 0 || vocab >= MOST_TOKENS {
        return Ok(None);
    }
    let mut s = Sampling { vocab, steps: Default::default() };
    let fits = |part: Part| s.bytes(part) <= caps.max_binding.min(caps.max_buffer);
    if ![Part::Settings, Part::State, Part::Keys, Part::Maxima].into_iter().all(fits) {
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
        let p = params::SampleKeysParams { vocab: self.vocab as u32, x_offset: logits.view.offset };
        let keys = vec![
            self.bind("settings", Part::Settings, Access::Read),
            x,
            self.bind("state", Part::State, Access::Read),
            self.bind("keys", Part::Keys, Access::ReadWrite),
            self.bind("maxima", Part::Maxima, Access::ReadWrite),
        ];
        let bytes = 4 * self.vocab as u64;
        let cost = (Cost { fixed: bytes, ..Cost::default() }, Cost { fixed: bytes, ..Cost::default() });
        let keys = step(Variant::new(&catalogue::SAMPLE_KEYS), self.vocab, bytemuck::bytes_of(&p), keys, cost)?;
        let p = params::SamplePickParams { vocab: self.vocab as u32, groups: groups as u32 };
        let pick = vec![
            self.bind("settings", Part::Settings, Access::Read),
            self.bind("keys", Part::Keys, Access::Read),
            self.bind("maxima", Part::Maxima, Access::Read),
            self.bind("state", Part::State, Access::ReadWrite),
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
            (Cost { fixed: 4 * (groups + GROUP) as u64, ..Cost::default() }, Cost { fixed: 8, ..Cost::default() });
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
    let grid = Grid::Direct { x, count: Count::One, per: 1, tile: 1, split: 0, most: 0 };
    Ok(Step { op: "sample", layer: None, variant, bindings, params: params.to_vec(), grid, reads, writes })
}
