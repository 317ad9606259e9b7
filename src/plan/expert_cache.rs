//! Caches of experts: slots of the device's memory that hold some of a layer's experts, while all of them lie where kernels read them
//! more slowly. This page says which matrices share a cache, and where their parts lie; the rule by which experts come and go is in
//! `shaders/experts/place.wgsl`.
//!
//! A matrix in slots is laid out as any other one, with as many experts as slots, so that the kernels of products read it as they are:
//! what they are given in place of ids are numbers of slots. Biases lie in slots too, behind the cache's own words.

use super::{
    Caps, Matrix, Options, SMALL_BATCH_TOKENS, Segment, Weights,
    limits::fits,
    nodes::VectorPart,
    routed::{Routed, biases, routed},
};
use crate::{
    error::{Error, Result},
    graph::{Eviction, ExpertSlots},
    ir::{Graph, ValueId, WeightId},
    kernels::{numbers, params::ExpertFillParams},
    quant::{DType, gpu},
};

/// Bytes that a kernel copies at once: of each plane of a segment, an expert has a multiple of it.
const PIECE: u64 = 16;

/// u32 words of a slot in a cache: its expert, the token that used it last, how often it was used.
const SLOT_WORDS: usize = 3;

/// Matrices that a dispatch fills at most, by its bindings.
pub(super) const FILLED_AT_ONCE: usize = 3;

/// The number of a policy in `RouterParams::policy`.
fn policy(eviction: Eviction) -> u32 {
    match eviction {
        Eviction::Lru => numbers::CACHE_LRU,
        Eviction::LfuAged => numbers::CACHE_LFU_AGED,
        Eviction::PinnedLru => numbers::CACHE_PINNED_LRU,
    }
}

/// A matrix of experts, some of which lie in slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedMatrix {
    /// Its number in [`Weights::matrices`].
    pub matrix: u32,
    /// Its format.
    pub dtype: DType,
    /// The slots: rows of one expert's matrix for each.
    pub segment: Segment,
    /// Rows of one expert's matrix.
    pub out: usize,
    /// Units of [`PIECE`] bytes that an expert has in each plane.
    pieces: [u32; 4],
    /// Where the planes of the slots begin, in these units.
    starts: [u32; 4],
}

impl CachedMatrix {
    /// Bytes of an expert.
    pub fn expert_bytes(&self) -> u64 {
        PIECE * u64::from(self.units())
    }

    /// Units of an expert in all planes.
    pub(super) fn units(&self) -> u32 {
        self.pieces.iter().sum()
    }
}

/// The biases that a node reads, in slots.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CachedVector {
    /// What it is of.
    parts: Vec<VectorPart>,
    /// First word in the cache's buffer, and words.
    at: usize,
    len: usize,
}

/// Biases of one matrix, in slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CachedBias {
    /// Numbers of an expert.
    size: u32,
    /// First number of all experts' in the buffer of vectors.
    from: u32,
    /// First number of the slots' in the cache's buffer.
    to: u32,
}

/// The cache of the experts of one router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertCache {
    /// The transformer layer.
    pub layer: Option<u32>,
    /// Experts, E.
    pub experts: usize,
    /// Experts that a token uses, k.
    pub used: usize,
    /// Slots: from k to E.
    pub slots: usize,
    /// Whose slot a missing expert takes.
    pub eviction: Eviction,
    /// The matrices in slots.
    pub matrices: Vec<CachedMatrix>,
    /// Bytes of the buffer of [`super::Buffer::ExpertCache`].
    pub bytes: u64,
    /// The router's ids.
    pub(super) ids: ValueId,
    vectors: Vec<CachedVector>,
    biases: Vec<CachedBias>,
}

/// What a dispatch copies: parts, with their segments.
type Filled = Vec<(u32, u32)>;

impl ExpertCache {
    /// Bytes of the slots and of what says which experts are in them.
    pub fn total_bytes(&self) -> u64 {
        self.bytes + self.matrices.iter().map(|m| m.segment.bytes).sum::<u64>()
    }

    /// Bytes of one expert of the layer, which an upload copies.
    pub fn expert_bytes(&self) -> u64 {
        let biases: u64 = self.biases.iter().map(|b| 4 * u64::from(b.size)).sum();
        biases + self.matrices.iter().map(CachedMatrix::expert_bytes).sum::<u64>()
    }

    /// Bytes from its start that say which experts are in slots: zeros empty all slots. The counts that stand before them are kept.
    pub fn placing_bytes(&self) -> std::ops::Range<u64> {
        4 * u64::from(numbers::CACHE_TABLE)..4 * self.fills_at() as u64
    }

    /// Whose slot a missing expert takes: its number in `RouterParams::policy`.
    pub(super) fn policy(&self) -> u32 {
        policy(self.eviction)
    }

    /// Experts that keep their slots by [`Eviction::PinnedLru`] in a step of so many choices: those of half of the slots, and none that the
    /// step may need.
    pub(super) fn pinned(&self, chosen: usize) -> u32 {
        (self.slots / 2).min(self.slots.saturating_sub(chosen)) as u32
    }

    /// Whether all experts that a step of so many tokens can choose have slots at once.
    pub(super) fn serves(&self, tokens: usize) -> bool {
        self.slots >= (tokens * self.used).min(self.experts)
    }

    /// Choices of a step at most that finds its experts in slots.
    pub(super) fn most_chosen(&self) -> usize {
        if self.serves(SMALL_BATCH_TOKENS) { SMALL_BATCH_TOKENS * self.used } else { self.used }
    }

    /// First word of the slots, behind where each expert is and how often it was used.
    pub(super) fn slots_at(&self) -> usize {
        numbers::CACHE_TABLE as usize + 2 * self.experts
    }

    /// First word of the experts that are missing now.
    pub(super) fn fills_at(&self) -> usize {
        self.slots_at() + SLOT_WORDS * self.slots
    }

    /// Units of the largest share that an expert has of a matrix, or of its biases where they are more pieces of work.
    pub(super) fn most_units(&self) -> u32 {
        let biases = self.biases.iter().map(|b| b.size);
        self.matrices.iter().map(CachedMatrix::units).chain(biases).max().unwrap_or(0)
    }

    /// Place and bytes of biases in slots.
    pub(super) fn vector(&self, parts: &[VectorPart]) -> Result<(u64, u64)> {
        let found = self.vectors.iter().find(|v| v.parts == parts);
        let v = found.ok_or_else(|| Error::Graph(format!("{parts:?} are in no slots")))?;
        Ok((4 * v.at as u64, 4 * v.len as u64))
    }

    /// The number of a matrix among those of this cache.
    pub(super) fn part(&self, matrix: u32) -> Result<u32> {
        let part = self.matrices.iter().position(|m| m.matrix == matrix);
        part.map(|p| p as u32).ok_or_else(|| Error::Graph(format!("matrix {matrix} is in no slots")))
    }

    /// The dispatches that fill slots: of each the parts that it copies, with their segments, and the rest of its uniforms. A dispatch
    /// writes a matrix's slots once; where all matrices are one segment each, one dispatch fills those of a gated unit.
    pub(super) fn fills(&self, w: &Weights) -> Result<Vec<(Filled, ExpertFillParams)>> {
        let mut jobs: Vec<(u32, u32)> = vec![];
        let most = self.matrices.iter().map(|m| w.matrices[m.matrix as usize].segments.len()).max().unwrap_or(0);
        for segment in 0..most as u32 {
            let has = |m: &(u32, &CachedMatrix)| (segment as usize) < w.matrices[m.1.matrix as usize].segments.len();
            jobs.extend((0..).zip(&self.matrices).filter(has).map(|(part, _)| (part, segment)));
        }
        let mut groups: Vec<Filled> = vec![];
        for job in jobs {
            let room = |g: &&mut Filled| g.len() < FILLED_AT_ONCE && g.iter().all(|j| j.0 != job.0);
            match groups.iter_mut().find(room) {
                Some(group) => group.push(job),
                None => groups.push(vec![job]),
            }
        }
        let mut biases = self.biases.chunks(FILLED_AT_ONCE);
        let fill = |group: Filled| {
            let params = self.fill_params(w, &group, biases.next().unwrap_or(&[]))?;
            Ok((group, params))
        };
        groups.into_iter().map(fill).collect()
    }

    fn fill_params(&self, w: &Weights, group: &[(u32, u32)], biases: &[CachedBias]) -> Result<ExpertFillParams> {
        let mut p = ExpertFillParams { fills_at: self.fills_at() as u32, ..ExpertFillParams::default() };
        let bias = |i: usize| biases.get(i).map_or([0; 3], |b| [b.size, b.from, b.to]);
        [p.bias_size_0, p.bias_from_0, p.bias_to_0] = bias(0);
        [p.bias_size_1, p.bias_from_1, p.bias_to_1] = bias(1);
        [p.bias_size_2, p.bias_from_2, p.bias_to_2] = bias(2);
        let part = |i: usize| group.get(i).map_or(Ok([0; 14]), |job| self.part_params(w, *job));
        let [a, b, c] = [part(0)?, part(1)?, part(2)?];
        [p.first_first, p.first_experts, p.first_size_0, p.first_from_0, p.first_to_0, ..] = a;
        [.., p.first_size_1, p.first_from_1, p.first_to_1, _, _, _, _, _, _] = a;
        [.., p.first_size_2, p.first_from_2, p.first_to_2, p.first_size_3, p.first_from_3, p.first_to_3] = a;
        [p.second_first, p.second_experts, p.second_size_0, p.second_from_0, p.second_to_0, ..] = b;
        [.., p.second_size_1, p.second_from_1, p.second_to_1, _, _, _, _, _, _] = b;
        [.., p.second_size_2, p.second_from_2, p.second_to_2, p.second_size_3, p.second_from_3, p.second_to_3] = b;
        [p.third_first, p.third_experts, p.third_size_0, p.third_from_0, p.third_to_0, ..] = c;
        [.., p.third_size_1, p.third_from_1, p.third_to_1, _, _, _, _, _, _] = c;
        [.., p.third_size_2, p.third_from_2, p.third_to_2, p.third_size_3, p.third_from_3, p.third_to_3] = c;
        Ok(p)
    }

    /// Of a part and a segment of its matrix: first expert, experts, and of each plane units of an expert, start in the segment, start in
    /// the slots.
    fn part_params(&self, w: &Weights, (part, segment): (u32, u32)) -> Result<[u32; 14]> {
        let cached = &self.matrices[part as usize];
        let m = &w.matrices[cached.matrix as usize];
        let s = m.segments[segment as usize];
        if s.row0 % cached.out != 0 || s.rows % cached.out != 0 {
            return Err(Error::Graph(format!("{} is not cut between experts", m.name)));
        }
        let from = plane_starts(m, s.rows)?;
        let mut out = [0; 14];
        (out[0], out[1]) = ((s.row0 / cached.out) as u32, (s.rows / cached.out) as u32);
        for plane in 0..4 {
            let at = 2 + 3 * plane;
            (out[at], out[at + 1], out[at + 2]) = (cached.pieces[plane], from[plane], cached.starts[plane]);
        }
        Ok(out)
    }
}

/// The caches of a graph whose experts have slots.
///
/// # Errors
/// [`Error::Unsupported`] for experts that do not begin at whole pieces of 16 bytes, [`Error::Device`] where slots do not fit a binding.
pub(super) fn caches(g: &Graph, w: &Weights, caps: &Caps, o: &Options) -> Result<Vec<ExpertCache>> {
    let Some(wanted) = o.expert_slots else { return Ok(vec![]) };
    let with_cache = |r: &Routed<'_>| wanted.slots.min(r.router.experts) >= r.router.used;
    routed(&w.nodes).iter().filter(|r| with_cache(r)).map(|r| cache(g, w, caps, wanted, r)).collect()
}

fn cache(g: &Graph, w: &Weights, caps: &Caps, wanted: ExpertSlots, r: &Routed<'_>) -> Result<ExpertCache> {
    let (experts, slots) = (r.router.experts, wanted.slots.min(r.router.experts));
    let matrix = |id: WeightId| cached_matrix(w, w.matrix(&[id])?, caps, [experts, slots]);
    let mut c = ExpertCache {
        layer: r.layer,
        experts,
        used: r.router.used,
        slots,
        eviction: wanted.eviction,
        matrices: r.weights().into_iter().map(matrix).collect::<Result<_>>()?,
        bytes: 0,
        ids: r.ids,
        vectors: vec![],
        biases: vec![],
    };
    let align = (caps.alignment.max(PIECE) / 4) as usize;
    let mut at = c.fills_at() + 2 * c.most_chosen();
    for parts in r.nodes.iter().filter_map(|n| biases(&n.op)) {
        at = at.next_multiple_of(align);
        let (first, mut from) = (at, w.vector(&parts)?.offset / 4);
        for part in &parts {
            let VectorPart::Weight(id) = part else {
                return Err(Error::Graph("biases of experts have a gap".into()));
            };
            let size = g.weight(*id).shape.iter().product::<usize>() / experts.max(1);
            c.biases.push(CachedBias { size: size as u32, from: from as u32, to: at as u32 });
            from += (experts * size) as u64;
            at += slots * size;
        }
        c.vectors.push(CachedVector { parts, at: first, len: at - first });
    }
    let what = format!("the cache of the experts of layer {}", r.layer.unwrap_or(0));
    c.bytes = fits(caps, 4 * at as u64, &what, "ask for fewer slots")?;
    Ok(c)
}

/// A matrix in slots.
fn cached_matrix(w: &Weights, matrix: u32, caps: &Caps, [experts, slots]: [usize; 2]) -> Result<CachedMatrix> {
    let m = &w.matrices[matrix as usize];
    let out = m.rows / experts.max(1);
    let bytes = gpu::row_planes(m.dtype, m.cols).map(|row| (row * out) as u64);
    if bytes.iter().any(|b| b % PIECE != 0) {
        return Err(Error::Unsupported(format!(
            "{}: experts of {out} rows of {} weights in {} do not begin at whole pieces of {PIECE} bytes, so they cannot be copied to \
             slots; keep all experts in the device's memory",
            m.name, m.cols, m.dtype
        )));
    }
    let rows = slots * out;
    let what = format!("{}: {slots} slots", m.name);
    let size = fits(caps, 4 * gpu::words(m.dtype, rows, m.cols) as u64, &what, "ask for fewer slots")?;
    Ok(CachedMatrix {
        matrix,
        dtype: m.dtype,
        segment: Segment { row0: 0, rows, bytes: size },
        out,
        pieces: bytes.map(|b| (b / PIECE) as u32),
        starts: plane_starts(m, rows)?,
    })
}

/// Where the planes of a segment of so many rows of a matrix begin, in units of [`PIECE`].
fn plane_starts(m: &Matrix, rows: usize) -> Result<[u32; 4]> {
    let planes = gpu::plane_ranges(m.dtype, rows, m.cols);
    let planes = planes.ok_or_else(|| Error::Model(format!("{} is too large", m.name)))?;
    Ok(planes.map(|p| (p.start as u64 / PIECE) as u32))
}
