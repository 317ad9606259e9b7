//! The ops on routed experts: `expert_linear`, `expert_act`, `expert_glu`, `expert_down_add`.
//!
//! A token uses k experts, one in each of its k slots. Slots are sorted by expert first, so that the weights of an expert are
//! read once a step however many tokens chose it, and experts that no token chose are not read.

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

/// The slots of a step, sorted by expert. Slot `t · k + j` is the j-th expert of token t.
#[derive(Default)]
pub struct SlotsByExpert {
    /// For each chosen expert, its id and where its slots start and end in `slots`.
    active: Vec<(u32, usize, usize)>,
    /// Slot numbers, expert by expert, ascending within an expert.
    slots: Vec<u32>,
    /// For each of `slots`, its token.
    tokens: Vec<u32>,
    /// For each expert, the next free place in `slots`, while they are sorted.
    next: Vec<usize>,
    /// Slots of a token, k.
    used: usize,
}

impl SlotsByExpert {
    /// Sorts the slots of `ids`, `[T, used]`, with a counting sort. With `shared` the id `experts` stands for an expert that is not
    /// here: its slots are left out.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an id beyond the experts.
    pub fn make(&mut self, ids: &[u32], used: usize, experts: usize, shared: bool) -> Result<()> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= experts + usize::from(shared)) {
            return Err(Error::Invalid(format!("expert {id} of {experts}")));
        }
        let here = |id: &&u32| (**id as usize) < experts;
        self.used = used;
        self.next.clear();
        self.next.resize(experts + 1, 0);
        ids.iter().filter(here).for_each(|id| self.next[*id as usize + 1] += 1);
        self.active.clear();
        for e in 0..experts {
            let (start, n) = (self.next[e], self.next[e + 1]);
            if n > 0 {
                self.active.push((e as u32, start, start + n));
            }
            self.next[e + 1] = start + n;
        }
        let all = self.next[experts];
        self.slots.resize(all, 0);
        self.tokens.resize(all, 0);
        for (slot, id) in ids.iter().enumerate().filter(|(_, id)| here(id)) {
            let at = &mut self.next[*id as usize];
            self.slots[*at] = slot as u32;
            self.tokens[*at] = (slot / used) as u32;
            *at += 1;
        }
        Ok(())
    }

    /// The experts that were chosen by any token, ascending.
    pub fn experts(&self) -> impl Iterator<Item = u32> + '_ {
        self.active.iter().map(|a| a.0)
    }

    /// The number of experts that were chosen by any token.
    pub fn chosen(&self) -> usize {
        self.active.len()
    }

    /// The first row of the i-th chosen expert in `w`, which has `width` rows an expert; the row behind the last where there is
    /// no such expert.
    fn first_row(&self, i: usize, width: usize, w: &Weight) -> usize {
        self.active.get(i).map_or(w.rows(), |(expert, ..)| *expert as usize * width)
    }

    /// The most slots that one expert has.
    fn largest(&self) -> usize {
        self.active.iter().map(|(_, a, b)| b - a).max().unwrap_or(0)
    }

    /// The memory held, in bytes.
    pub fn bytes(&self) -> u64 {
        (4 * (self.slots.capacity() + self.tokens.capacity()) + 24 * self.active.capacity() + 8 * self.next.capacity())
            as u64
    }
}

/// Which row of the input x a slot reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ExpertInput {
    /// The row of its token: x is `[T, in]`.
    PerToken,
    /// A row of its own: x is `[T, k · in]`.
    PerSlot,
}

/// The matrices of all experts, and their biases.
#[derive(Clone, Copy)]
pub struct ExpertMatrix<'a> {
    /// `[E, width, in]`.
    pub weight: &'a Weight,
    /// `[E, width]`.
    pub bias: Option<&'a [f32]>,
}

impl ExpertMatrix<'_> {
    /// The biases of `rows` rows from `first` on, counted through all experts.
    fn bias_of(&self, first: usize, rows: usize) -> Option<&[f32]> {
        self.bias.map(|b| &b[first..first + rows])
    }
}

/// A block of rows of one expert's matrix, and the slots that it is multiplied with.
struct Block<'a> {
    /// The first row, counted through all experts.
    at: usize,
    /// The first row, counted within the expert.
    first: usize,
    rows: usize,
    /// The row that is read after these, counted through all experts; the row behind the last where there is none.
    next: usize,
    slots: &'a [u32],
    /// For each of the slots, its row of x.
    xs: &'a [u32],
}

/// What [`each_block`] does with a block, given the worker's number.
type BlockFn<'a> = &'a (dyn Fn(usize, Block<'_>) + Sync);

/// Calls `f` for every block of rows of every chosen expert, on all threads.
fn each_block(
    env: Env<'_>,
    by_expert: &SlotsByExpert,
    w: &Weight,
    input_rows: ExpertInput,
    width: usize,
    f: BlockFn<'_>,
) -> Result<()> {
    if by_expert.active.is_empty() {
        return Ok(());
    }
    let partition = env.partition(width * by_expert.active.len(), w.row_bytes(), by_expert.largest());
    env.pool.run_spans(by_expert.active.len() * partition.blocks(width), partition.max_blocks, &|worker, items| {
        partition.for_each_block(width, items, |active, first, rows| {
            let (expert, start, end) = by_expert.active[active];
            let slots = &by_expert.slots[start..end];
            let at = expert as usize * width + first;
            let next = if first + rows < width { at + rows } else { by_expert.first_row(active + 1, width, w) };
            let xs = if input_rows == ExpertInput::PerToken { &by_expert.tokens[start..end] } else { slots };
            f(worker, Block { at, first, rows, next, slots, xs });
        });
    })
}

/// Multiplies the input of every slot with the matrix of its expert, adds the bias and applies the activation where there are
/// such, into `out`, `[slots, width]`.
///
/// # Errors
/// As [`super::pool::Pool::run`].
pub fn linear(
    env: Env<'_>,
    x: Input<'_>,
    input_rows: ExpertInput,
    by_expert: &SlotsByExpert,
    m: ExpertMatrix<'_>,
    width: usize,
    act: Option<Activation>,
    out: &mut [f32],
) -> Result<()> {
    let out = Out::new(out);
    let w = m.weight;
    each_block(env, by_expert, w, input_rows, width, &|worker, block| {
        let Block { at, first, rows, next, slots, xs } = block;
        let mut scratch = env.scratch.of(worker);
        let Scratch { work, tile, .. } = &mut *scratch;
        let tile = ensure_len(tile, slots.len() * rows);
        w.product(at, rows, x, xs, work, tile, w.address(next));
        if let Some(bias) = m.bias_of(at, rows) {
            add_bias(tile, bias, rows);
        }
        if let Some(act) = act {
            env.simd(Act { x: &mut *tile, act });
        }
        write_slots(tile, slots, (first, rows), out, width);
    })
}

/// Copies the results of a block, `tile` `[slots, rows]`, to columns `first .. first + rows` of the slots' rows in `out`,
/// `[slots, width]`.
fn write_slots(tile: &[f32], slots: &[u32], (first, rows): (usize, usize), out: Out<'_, f32>, width: usize) {
    for (y, slot) in tile.chunks_exact(rows).zip(slots) {
        // SAFETY: a slot belongs to one expert, and blocks of rows are disjoint.
        unsafe { out.slice(*slot as usize * width + first, rows) }.copy_from_slice(y);
    }
}

/// `act(gate x) · (up x)` of every slot into `out`, `[slots, width]`.
///
/// # Errors
/// As [`super::pool::Pool::run`].
pub fn glu(
    env: Env<'_>,
    x: Input<'_>,
    by_expert: &SlotsByExpert,
    (gate, up): (ExpertMatrix<'_>, ExpertMatrix<'_>),
    width: usize,
    act: Activation,
    out: &mut [f32],
) -> Result<()> {
    let out = Out::new(out);
    each_block(env, by_expert, gate.weight, ExpertInput::PerToken, width, &|worker, block| {
        let Block { at, first, rows, next, slots, xs } = block;
        let mut scratch = env.scratch.of(worker);
        let biases = gate.bias_of(at, rows).zip(up.bias_of(at, rows)).map(|(g, u)| [g, u]);
        let unit = Gated { gate: gate.weight, up: up.weight, biases, act };
        let tile = unit.tile(env, &mut scratch, x, (at, rows, next), xs);
        write_slots(tile, slots, (first, rows), out, width);
    })
}

/// `residual + factor · Σ_j weights[t, j] · (W_e h[t, j] + b_e)` into `out`, `[T, width]`, with e the expert of slot j. A thread
/// takes a block of rows through all experts, so that it owns its sums, and adds them up in the order of the slots.
///
/// # Errors
/// As [`super::pool::Pool::run`].
pub fn down_add(
    env: Env<'_>,
    h: Input<'_>,
    by_expert: &SlotsByExpert,
    m: ExpertMatrix<'_>,
    width: usize,
    weights: &[f32],
    (residual, factor): (&[f32], f32),
    out: &mut [f32],
) -> Result<()> {
    let used = by_expert.used;
    let block = if by_expert.largest() >= super::kernel::panel::WORTH {
        // The results of all slots stay in the second-level cache until they are summed.
        ((96 << 10) / by_expert.slots.len().max(1))
            .min(width / (4 * env.pool.threads()))
            .clamp(16, 64)
            .next_multiple_of(16)
    } else {
        (width / (8 * env.pool.threads())).clamp(16, 64).next_multiple_of(16)
    };
    // The results of a small batch stay in the first-level cache.
    let most = ((8 << 10) / by_expert.slots.len().max(1)).min(MAX_SPAN_ROWS) / block;
    let out = Out::new(out);
    env.pool.run_spans(width.div_ceil(block), most, &|worker, items| {
        let first = items.start * block;
        let rows = width.min(items.end * block) - first;
        let mut scratch = env.scratch.of(worker);
        let Scratch { work, tile, other } = &mut *scratch;
        let results = ensure_len(other, by_expert.slots.len() * rows);
        for (i, (expert, start, end)) in by_expert.active.iter().enumerate() {
            let slots = &by_expert.slots[*start..*end];
            let tile = ensure_len(tile, slots.len() * rows);
            let at = *expert as usize * width + first;
            // After these rows come the same ones of the next expert; after the last expert, the first expert's next rows.
            let (after, from) = if i + 1 < by_expert.active.len() { (i + 1, first) } else { (0, first + rows) };
            let next = if from < width { by_expert.first_row(after, width, m.weight) + from } else { m.weight.rows() };
            m.weight.product(at, rows, h, slots, work, tile, m.weight.address(next));
            if let Some(bias) = m.bias_of(at, rows) {
                add_bias(tile, bias, rows);
            }
            for (y, slot) in tile.chunks_exact(rows).zip(slots) {
                results[*slot as usize * rows..][..rows].copy_from_slice(y);
            }
        }
        for (t, (of_token, weights)) in results.chunks_exact(used * rows).zip(weights.chunks_exact(used)).enumerate() {
            let at = t * width + first;
            // SAFETY: blocks of rows are disjoint, and so are tokens.
            let y = unsafe { out.slice(at, rows) };
            y.fill(0.0);
            for (result, weight) in of_token.chunks_exact(rows).zip(weights) {
                y.iter_mut().zip(result).for_each(|(y, r)| *y += weight * r);
            }
            y.iter_mut().zip(&residual[at..at + rows]).for_each(|(y, r)| *y = factor * *y + r);
        }
    })
}
