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

    /// How many rows of a weight make a block: for few tokens some 24 KiB of weights, but enough blocks for every thread;
    /// for many tokens a few panels, so that what is done once a block is little.
    pub fn block(&self, rows: usize, row_bytes: usize, tokens: usize) -> usize {
        let by_bytes = if tokens >= super::kernel::panel::WORTH { 64 } else { (24 << 10) / row_bytes.max(1) };
        let by_threads = rows / (6 * self.pool.threads());
        by_bytes.min(by_threads).clamp(16, 128).next_multiple_of(16)
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
        let block = |w: &Weight| env.block(w.rows(), w.row_bytes(), t);
        let blocks = |l: &Linear| weight(l).rows().div_ceil(block(weight(l)));
        env.pool.run(parts.iter().map(blocks).sum(), &|worker, mut item| {
            for (l, out) in parts.iter().zip(&shared) {
                let n = blocks(l);
                if item >= n {
                    item -= n;
                    continue;
                }
                let w = weight(l);
                let first = item * block(w);
                let rows = block(w).min(w.rows() - first);
                if let Some(out) = out {
                    one_block(env, worker, x, t, l, first, rows, *out, finish);
                }
                return;
            }
        })?;
    }
    Ok(())
}

/// Rows `first .. first + rows` of one part.
fn one_block(
    env: Env<'_>,
    worker: usize,
    x: Input<'_>,
    t: usize,
    l: &Linear,
    first: usize,
    rows: usize,
    out: Out<'_, f32>,
    finish: Finish<'_>,
) {
    let w = &env.weights[l.weight.0 as usize];
    let total = w.rows();
    let mut scratch = env.scratch.of(worker);
    let Scratch { work, tile, .. } = &mut *scratch;
    let tile = room(tile, t * rows);
    w.product(first, rows, x, &env.every[..t], work, tile);
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
    let block = env.block(total, gate.row_bytes(), t);
    let out = Out::new(out);
    env.pool.run(total.div_ceil(block), &|worker, item| {
        let first = item * block;
        let rows = block.min(total - first);
        let mut scratch = env.scratch.of(worker);
        let tokens = &env.every[..t];
        let tile = glu_tile(env, &mut scratch, x, (gate, up), None, act, first, rows, tokens);
        for (i, y) in tile.chunks_exact(rows).enumerate() {
            // SAFETY: blocks of rows are disjoint, and so are tokens.
            unsafe { out.slice(i * total + first, rows) }.copy_from_slice(y);
        }
    })
}

/// Rows of a gated unit for some tokens, `[tokens, rows]`, in the worker's scratch; with the biases of these rows.
pub fn glu_tile<'s>(
    env: Env<'_>,
    scratch: &'s mut Scratch,
    x: Input<'_>,
    (gate, up): (&Weight, &Weight),
    biases: Option<[&[f32]; 2]>,
    act: Activation,
    first: usize,
    rows: usize,
    tokens: &[u32],
) -> &'s [f32] {
    let Scratch { work, tile, other } = scratch;
    up.prefetch(first);
    let (g, u) = (room(tile, tokens.len() * rows), room(other, tokens.len() * rows));
    gate.product(first, rows, x, tokens, work, g);
    up.product(first, rows, x, tokens, work, u);
    if let Some([of_gate, of_up]) = biases {
        add_bias(g, of_gate, rows);
        add_bias(u, of_up, rows);
    }
    env.floats(Glu { gate: g, up: u, act });
    g
}

/// Adds a bias of `rows` numbers to each of some rows.
pub fn add_bias(y: &mut [f32], bias: &[f32], rows: usize) {
    for y in y.chunks_exact_mut(rows) {
        y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    }
}
