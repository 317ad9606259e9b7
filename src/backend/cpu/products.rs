//! The ops that are matrix products on all tokens: `linear`, `norm_linears`, `linear_add`, `linear_act`, `linear_glu`.
//!
//! A job is cut into blocks of rows; a block computes its rows for every token into a tile and finishes them there (bias,
//! residual, activation), so that no intermediate result goes through memory.

use super::{
    buffer::{Aligned, Out},
    pool::Pool,
    rows::{Act, AddScaled, Glu},
    tier::{Tier, dispatch},
    weight::{Input, Scratch, Scratches, Weight, room},
};
use crate::{
    error::Result,
    ir::{Activation, Linear},
    ops::elementwise::sigmoid,
};
use std::ops::Range;

/// What every op needs.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    /// The threads.
    pub pool: &'a Pool,
    /// The instructions.
    pub tier: Tier,
    /// Memory of each worker.
    pub scratch: &'a Scratches,
    /// By weight id.
    pub weights: &'a [Weight],
    /// By weight id; empty for weights of more than one dimension.
    pub vectors: &'a [Vec<f32>],
    /// 0, 1, 2, …: the list of all tokens.
    pub every: &'a [u32],
}

impl Env<'_> {
    /// Runs float code.
    pub fn floats<F: super::tier::Floats>(&self, f: F) -> F::Output {
        // SAFETY: the tier was found available at load; the ops of `rows` have no other conditions.
        unsafe { dispatch(self.tier, f) }
    }

    /// How the rows of a weight are cut for so many tokens.
    pub fn cut(&self, rows: usize, row_bytes: usize, tokens: usize) -> Cut {
        let many = tokens >= super::kernel::panel::WORTH;
        let by_bytes = if many { 64 } else { (24 << 10) / row_bytes.max(1) };
        let by_threads = rows / (6 * self.pool.threads());
        let block = by_bytes.min(by_threads).clamp(16, 128).next_multiple_of(16);
        Cut { block, most: if many { 1 } else { MOST / block } }
    }
}

/// Rows of a product with few tokens, at most: what starting a product costs is little beside them, and its results still
/// stay in the first cache.
pub const MOST: usize = 512;

/// How the rows of a matrix are cut.
#[derive(Clone, Copy)]
pub struct Cut {
    /// Rows that a thread takes at a time at least: for few tokens some 24 KiB of weights, but enough blocks for every thread;
    /// for many tokens a few panels, so that what is done once a block is little.
    pub block: usize,
    /// How many neighbouring blocks may make one product.
    pub most: usize,
}

impl Cut {
    /// Blocks of so many rows.
    pub fn blocks(&self, rows: usize) -> usize {
        rows.div_ceil(self.block)
    }

    /// Of the rows of several matrices of `rows` rows, whose blocks are numbered one matrix after the other: calls `f` with
    /// each matrix that has some of `blocks`, their first row and how many rows they are.
    pub fn each(&self, rows: usize, blocks: Range<usize>, mut f: impl FnMut(usize, usize, usize)) {
        let per = self.blocks(rows);
        let mut at = blocks.start;
        while at < blocks.end {
            let (matrix, first) = (at / per, at % per * self.block);
            let end = blocks.end.min((matrix + 1) * per);
            f(matrix, first, rows.min(first + (end - at) * self.block) - first);
            at = end;
        }
    }
}

/// What is done with a row: its number, its input, its output.
pub type RowFn<'a> = &'a (dyn Fn(usize, &[f32], &mut [f32]) + Sync);

/// What is done with a row: its number, its output.
pub type OutputFn<'a> = &'a (dyn Fn(usize, &mut [f32]) + Sync);

/// Numbers that are worth a thread's attention.
const PIECE: usize = 16384;

/// Calls `f` with the number, input and output of every row; by several threads where there are many numbers.
///
/// # Errors
/// As [`Pool::run`].
pub fn each_row(env: Env<'_>, x: &[f32], cols: usize, out: &mut [f32], f: RowFn<'_>) -> Result<()> {
    let cols = cols.max(1);
    each_output(env, x.len() / cols, cols, out, cols, &|r, y| f(r, &x[r * cols..(r + 1) * cols], y))
}

/// Calls `f` with the number and output of every row, `[rows, cols]`; by several threads where rows of `cost` numbers are
/// many.
///
/// # Errors
/// As [`Pool::run`].
pub fn each_output(
    env: Env<'_>,
    rows: usize,
    cost: usize,
    out: &mut [f32],
    cols: usize,
    f: OutputFn<'_>,
) -> Result<()> {
    let per = (PIECE / cost.max(1)).max(1);
    let out = Out::new(out);
    env.pool.run(rows.div_ceil(per), &|_, item| {
        for r in item * per..rows.min((item + 1) * per) {
            // SAFETY: every row belongs to one item.
            f(r, unsafe { out.slice(r * cols, cols) });
        }
    })
}

/// How a product is finished.
#[derive(Clone, Copy)]
pub enum Finish<'a> {
    /// As it is.
    Plain,
    /// Added to a residual `[T, rows]`, after a factor, and σ(g) where there are gates `[T, 1]`.
    Add(&'a [f32], Option<&'a [f32]>, f32),
    /// Through an activation.
    Act(Activation),
}

/// `x` through each of `parts` into `outs`, `[T, rows]` each.
///
/// # Errors
/// As [`Pool::run`].
pub fn linears(
    env: Env<'_>,
    x: Input<'_>,
    t: usize,
    parts: &[Linear],
    outs: &mut [Aligned<f32>],
    finish: Finish<'_>,
) -> Result<()> {
    if t == 0 {
        return Ok(());
    }
    let mut shared: [Option<Out<'_, f32>>; 8] = [None; 8];
    // Parts beyond eight go in further jobs.
    for (parts, outs) in parts.chunks(8).zip(outs.chunks_mut(8)) {
        for (s, o) in shared.iter_mut().zip(outs) {
            *s = Some(Out::new(o));
        }
        let weight = |l: &Linear| &env.weights[l.weight.0 as usize];
        let cut = |w: &Weight| env.cut(w.rows(), w.row_bytes(), t);
        let blocks = |l: &Linear| cut(weight(l)).blocks(weight(l).rows());
        let most = parts.iter().map(|l| cut(weight(l)).most).min().unwrap_or(1);
        env.pool.run_spans(parts.iter().map(blocks).sum(), most, &|worker, items| {
            let mut before = 0;
            for (i, (l, out)) in parts.iter().zip(&shared).enumerate() {
                let (w, n) = (weight(l), blocks(l));
                let after = parts.get(i + 1).map_or(std::ptr::null(), |l| weight(l).address(0));
                // The part's own blocks among the items.
                let own = items.start.max(before) - before..items.end.clamp(before, before + n) - before;
                before += n;
                if let (Some(out), false) = (out, own.is_empty()) {
                    cut(w).each(w.rows(), own, |_, first, rows| {
                        let next = if first + rows < w.rows() { w.address(first + rows) } else { after };
                        one_block(env, worker, x, t, l, first, rows, next, *out, finish);
                    });
                }
            }
        })?;
    }
    Ok(())
}

/// Rows `first .. first + rows` of one part; after these come the weights at `next`.
fn one_block(
    env: Env<'_>,
    worker: usize,
    x: Input<'_>,
    t: usize,
    l: &Linear,
    first: usize,
    rows: usize,
    next: *const u8,
    out: Out<'_, f32>,
    finish: Finish<'_>,
) {
    let w = &env.weights[l.weight.0 as usize];
    let total = w.rows();
    let mut scratch = env.scratch.of(worker);
    let Scratch { work, tile, .. } = &mut *scratch;
    let tile = room(tile, t * rows);
    w.product(first, rows, x, &env.every[..t], work, tile, next);
    let bias = l.bias.map(|b| &env.vectors[b.0 as usize][first..first + rows]);
    for (i, y) in tile.chunks_exact_mut(rows).enumerate() {
        if let Some(bias) = bias {
            add_bias(y, bias, rows);
        }
        // SAFETY: blocks of rows are disjoint, and so are tokens.
        let to = unsafe { out.slice(i * total + first, rows) };
        match finish {
            Finish::Plain => to.copy_from_slice(y),
            Finish::Act(act) => {
                env.floats(Act { x: y, act });
                to.copy_from_slice(y);
            }
            Finish::Add(residual, gates, factor) => {
                let factor = factor * gates.map_or(1.0, |g| sigmoid(f64::from(g[i])) as f32);
                let a = &residual[i * total + first..][..rows];
                env.floats(AddScaled { y: to, a, b: y, factor });
            }
        }
    }
}

/// `act(gate x) · (up x)` into `out`, `[T, rows]`.
///
/// # Errors
/// As [`Pool::run`].
pub fn linear_glu(
    env: Env<'_>,
    x: Input<'_>,
    t: usize,
    gate: &Weight,
    up: &Weight,
    act: Activation,
    out: &mut [f32],
) -> Result<()> {
    let total = gate.rows();
    let cut = env.cut(total, gate.row_bytes(), t);
    let out = Out::new(out);
    env.pool.run_spans(cut.blocks(total), cut.most, &|worker, items| {
        cut.each(total, items, |_, first, rows| {
            let mut scratch = env.scratch.of(worker);
            let unit = Gated { gate, up, biases: None, act };
            let tile = unit.tile(env, &mut scratch, x, (first, rows, first + rows), &env.every[..t]);
            for (i, y) in tile.chunks_exact(rows).enumerate() {
                // SAFETY: blocks of rows are disjoint, and so are tokens.
                unsafe { out.slice(i * total + first, rows) }.copy_from_slice(y);
            }
        });
    })
}

/// A gated unit: its matrices, of one shape.
#[derive(Clone, Copy)]
pub struct Gated<'a> {
    /// What goes through the activation.
    pub gate: &'a Weight,
    /// What is multiplied with that.
    pub up: &'a Weight,
    /// Those of the rows that are wanted.
    pub biases: Option<[&'a [f32]; 2]>,
    /// On the gate.
    pub act: Activation,
}

impl Gated<'_> {
    /// `rows` rows from `first` on for some tokens, `[tokens, rows]`, in the worker's scratch. `next` is the row that is
    /// wanted after these.
    pub fn tile<'s>(
        &self,
        env: Env<'_>,
        scratch: &'s mut Scratch,
        x: Input<'_>,
        (first, rows, next): (usize, usize, usize),
        tokens: &[u32],
    ) -> &'s [f32] {
        let Scratch { work, tile, other } = scratch;
        let (g, u) = (room(tile, tokens.len() * rows), room(other, tokens.len() * rows));
        self.gate.product(first, rows, x, tokens, work, g, self.up.address(first));
        self.up.product(first, rows, x, tokens, work, u, self.gate.address(next));
        if let Some([of_gate, of_up]) = self.biases {
            add_bias(g, of_gate, rows);
            add_bias(u, of_up, rows);
        }
        env.floats(Glu { gate: g, up: u, act: self.act });
        g
    }
}

/// Adds a bias of `rows` numbers to each of some rows.
pub fn add_bias(y: &mut [f32], bias: &[f32], rows: usize) {
    for y in y.chunks_exact_mut(rows) {
        y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    }
}
