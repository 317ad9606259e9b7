//! The routed ops: `expert_linear`, `expert_act`, `expert_glu`, `expert_down_add`.
//!
//! Pairs of (token, slot) are grouped by expert first, so that an expert's weights are read once a step, whether one token
//! chose it or many; experts that nobody chose are not touched.

use super::{
    buffer::Out,
    matmul::{Gated, add_bias},
    parallel::{Env, MAX_SPAN_ROWS},
    row_ops::Act,
    weight::{Input, Scratch, Weight, ensure_len},
};
use crate::{
    error::{Error, Result},
    ir::Activation,
};

/// The pairs of a step by expert.
#[derive(Default)]
pub struct SlotsByExpert {
    /// Experts that were chosen, and where their pairs start and end in `pairs`.
    active: Vec<(u32, usize, usize)>,
    /// Pair numbers `t · k + j`, expert by expert, ascending within an expert.
    pairs: Vec<u32>,
    /// For each of `pairs`, its token `t`.
    tokens: Vec<u32>,
    /// First free place of each expert.
    next: Vec<usize>,
    /// Slots a token.
    used: usize,
}

impl SlotsByExpert {
    /// SlotsByExpert `ids`, `[T, used]`: a counting sort.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an id beyond the experts.
    pub fn make(&mut self, ids: &[u32], used: usize, experts: usize) -> Result<()> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= experts) {
            return Err(Error::Invalid(format!("expert {id} of {experts}")));
        }
        self.used = used;
        self.next.clear();
        self.next.resize(experts + 1, 0);
        ids.iter().for_each(|id| self.next[*id as usize + 1] += 1);
        self.active.clear();
        for e in 0..experts {
            let (start, n) = (self.next[e], self.next[e + 1]);
            if n > 0 {
                self.active.push((e as u32, start, start + n));
            }
            self.next[e + 1] = start + n;
        }
        self.pairs.resize(ids.len(), 0);
        self.tokens.resize(ids.len(), 0);
        for (pair, id) in ids.iter().enumerate() {
            let at = &mut self.next[*id as usize];
            self.pairs[*at] = pair as u32;
            self.tokens[*at] = (pair / used) as u32;
            *at += 1;
        }
        Ok(())
    }

    /// How many experts were chosen.
    pub fn chosen(&self) -> usize {
        self.active.len()
    }

    /// The first row of the i-th chosen expert in a weight of `width` rows an expert; behind the last where there is none.
    fn first_row(&self, i: usize, width: usize, w: &Weight) -> usize {
        self.active.get(i).map_or(w.rows(), |(expert, ..)| *expert as usize * width)
    }

    /// Most pairs of an expert.
    fn largest(&self) -> usize {
        self.active.iter().map(|(_, a, b)| b - a).max().unwrap_or(0)
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        (4 * (self.pairs.capacity() + self.tokens.capacity()) + 24 * self.active.capacity() + 8 * self.next.capacity())
            as u64
    }
}

/// Which row of x a pair input_rows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ExpertInput {
    /// The row of its token: x is `[T, in]`.
    PerToken,
    /// A row of its own: x is `[T, k · in]`.
    PerSlot,
}

/// Experts' matrices as an op uses them.
#[derive(Clone, Copy)]
pub struct ExpertMatrix<'a> {
    /// `[E, width, in]`.
    pub weight: &'a Weight,
    /// `[E, width]`.
    pub bias: Option<&'a [f32]>,
}

impl ExpertMatrix<'_> {
    /// The biases of `rows` rows of all experts' from `first` on.
    fn bias_of(&self, first: usize, rows: usize) -> Option<&[f32]> {
        self.bias.map(|b| &b[first..first + rows])
    }
}

/// Rows of an expert.
struct Block<'a> {
    /// The first, among all experts' rows.
    at: usize,
    /// The first, among the expert's.
    first: usize,
    rows: usize,
    /// Which row comes after these; behind the last of all experts where none does.
    next: usize,
    pairs: &'a [u32],
    /// For each of the pairs, its row of x.
    xs: &'a [u32],
}

/// What is done with a block: by which worker.
type BlockFn<'a> = &'a (dyn Fn(usize, Block<'_>) + Sync);

/// Calls `f` for every block of rows of every chosen expert.
fn each_block(
    env: Env<'_>,
    groups: &SlotsByExpert,
    w: &Weight,
    input_rows: ExpertInput,
    width: usize,
    f: BlockFn<'_>,
) -> Result<()> {
    let partition = env.partition(width * groups.active.len(), w.row_bytes(), groups.largest());
    env.pool.run_spans(groups.active.len() * partition.blocks(width), partition.max_blocks, &|worker, items| {
        partition.for_each_block(width, items, |active, first, rows| {
            let (expert, start, end) = groups.active[active];
            let pairs = &groups.pairs[start..end];
            let at = expert as usize * width + first;
            let next = if first + rows < width { at + rows } else { groups.first_row(active + 1, width, w) };
            let xs = if input_rows == ExpertInput::PerToken { &groups.tokens[start..end] } else { pairs };
            f(worker, Block { at, first, rows, next, pairs, xs });
        });
    })
}

/// Every pair through the matrix of its expert, and an activation where there is one, into `out`, `[pairs, width]`.
///
/// # Errors
/// As [`super::pool::Pool::run`].
pub fn linear(
    env: Env<'_>,
    x: Input<'_>,
    input_rows: ExpertInput,
    groups: &SlotsByExpert,
    m: ExpertMatrix<'_>,
    width: usize,
    act: Option<Activation>,
    out: &mut [f32],
) -> Result<()> {
    let out = Out::new(out);
    let w = m.weight;
    each_block(env, groups, w, input_rows, width, &|worker, block| {
        let Block { at, first, rows, next, pairs, xs } = block;
        let mut scratch = env.scratch.of(worker);
        let Scratch { work, tile, .. } = &mut *scratch;
        let tile = ensure_len(tile, pairs.len() * rows);
        w.product(at, rows, x, xs, work, tile, w.address(next));
        if let Some(bias) = m.bias_of(at, rows) {
            add_bias(tile, bias, rows);
        }
        if let Some(act) = act {
            env.simd(Act { x: &mut *tile, act });
        }
        for (y, pair) in tile.chunks_exact(rows).zip(pairs) {
            // SAFETY: a pair belongs to one expert, and blocks of rows are disjoint.
            unsafe { out.slice(*pair as usize * width + first, rows) }.copy_from_slice(y);
        }
    })
}

/// `act(gate x) · (up x)` of every pair into `out`, `[pairs, width]`.
///
/// # Errors
/// As [`super::pool::Pool::run`].
pub fn glu(
    env: Env<'_>,
    x: Input<'_>,
    groups: &SlotsByExpert,
    (gate, up): (ExpertMatrix<'_>, ExpertMatrix<'_>),
    width: usize,
    act: Activation,
    out: &mut [f32],
) -> Result<()> {
    let out = Out::new(out);
    each_block(env, groups, gate.weight, ExpertInput::PerToken, width, &|worker, block| {
        let Block { at, first, rows, next, pairs, xs } = block;
        let mut scratch = env.scratch.of(worker);
        let biases = gate.bias_of(at, rows).zip(up.bias_of(at, rows)).map(|(g, u)| [g, u]);
        let unit = Gated { gate: gate.weight, up: up.weight, biases, act };
        let tile = unit.tile(env, &mut scratch, x, (at, rows, next), xs);
        for (y, pair) in tile.chunks_exact(rows).zip(pairs) {
            // SAFETY: as in `linear`.
            unsafe { out.slice(*pair as usize * width + first, rows) }.copy_from_slice(y);
        }
    })
}

/// `residual + factor · Σ_j weights[t, j] · (W_e h[t, j] + b_e)` into `out`, `[T, width]`: a block of rows goes through all
/// experts, so sums stay with one thread and are made in slot order.
///
/// # Errors
/// As [`super::pool::Pool::run`].
pub fn down_add(
    env: Env<'_>,
    h: Input<'_>,
    groups: &SlotsByExpert,
    m: ExpertMatrix<'_>,
    width: usize,
    weights: &[f32],
    (residual, factor): (&[f32], f32),
    out: &mut [f32],
) -> Result<()> {
    let used = groups.used;
    let block = if groups.largest() >= super::kernel::panel::WORTH {
        // Results of all pairs wait for their sum in the second cache.
        ((96 << 10) / groups.pairs.len().max(1))
            .min(width / (4 * env.pool.threads()))
            .clamp(16, 64)
            .next_multiple_of(16)
    } else {
        (width / (8 * env.pool.threads())).clamp(16, 64).next_multiple_of(16)
    };
    // Results of few pairs stay in the first cache.
    let most = ((8 << 10) / groups.pairs.len().max(1)).min(MAX_SPAN_ROWS) / block;
    let out = Out::new(out);
    env.pool.run_spans(width.div_ceil(block), most, &|worker, items| {
        let first = items.start * block;
        let rows = width.min(items.end * block) - first;
        let mut scratch = env.scratch.of(worker);
        let Scratch { work, tile, other } = &mut *scratch;
        let slots = ensure_len(other, groups.pairs.len() * rows);
        for (i, (expert, start, end)) in groups.active.iter().enumerate() {
            let pairs = &groups.pairs[*start..*end];
            let tile = ensure_len(tile, pairs.len() * rows);
            let at = *expert as usize * width + first;
            // The next expert's, or the next span's of the first.
            let (after, from) = if i + 1 < groups.active.len() { (i + 1, first) } else { (0, first + rows) };
            let next = if from < width { groups.first_row(after, width, m.weight) + from } else { m.weight.rows() };
            m.weight.product(at, rows, h, pairs, work, tile, m.weight.address(next));
            if let Some(bias) = m.bias_of(at, rows) {
                add_bias(tile, bias, rows);
            }
            for (y, pair) in tile.chunks_exact(rows).zip(pairs) {
                slots[*pair as usize * rows..][..rows].copy_from_slice(y);
            }
        }
        for (t, (of_token, weights)) in slots.chunks_exact(used * rows).zip(weights.chunks_exact(used)).enumerate() {
            let at = t * width + first;
            // SAFETY: blocks of rows are disjoint, and so are tokens.
            let y = unsafe { out.slice(at, rows) };
            y.fill(0.0);
            for (slot, weight) in of_token.chunks_exact(rows).zip(weights) {
                y.iter_mut().zip(slot).for_each(|(y, s)| *y += weight * s);
            }
            y.iter_mut().zip(&residual[at..at + rows]).for_each(|(y, r)| *y = factor * *y + r);
        }
    })
}
