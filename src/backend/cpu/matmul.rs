//! Matrix products with all tokens of a step: `linear`, `norm_linears`, `linear_add`, `linear_act`, `linear_glu`.
//!
//! The rows of the matrices are divided into blocks. A thread computes a block's rows for every token into a tile of its scratch
//! memory and finishes them there (bias, residual, activation), so that no intermediate result goes through memory.

use super::{
    buffer::{Aligned, Out},
    parallel::Env,
    row_ops::{Act, AddScaled, Glu},
    weight::{Input, Scratch, Weight, ensure_len},
};
use crate::{
    error::Result,
    ir::{Activation, Linear},
    ops::elementwise::sigmoid,
};

/// What is done with the results of a product before they are written.
#[derive(Clone, Copy)]
pub enum Epilogue<'a> {
    /// Nothing.
    Plain,
    /// Multiplied by a factor, and by σ(g) where there are gates g `[T, 1]`, and added to a residual `[T, rows]`.
    Add(&'a [f32], Option<&'a [f32]>, f32),
    /// Put through an activation.
    Act(Activation),
}

/// Multiplies the `t` rows of `x` with the matrix of each of `parts` (and adds its bias) into `outs`, `[T, rows]` each.
///
/// # Errors
/// As [`super::pool::Pool::run`].
pub fn linears(
    env: Env<'_>,
    x: Input<'_>,
    t: usize,
    parts: &[Linear],
    outs: &mut [Aligned<f32>],
    epilogue: Epilogue<'_>,
) -> Result<()> {
    if t == 0 {
        return Ok(());
    }
    let mut shared: [Option<Out<'_, f32>>; 8] = [None; 8];
    // Eight parts go in one job of the pool; an op with more of them takes several jobs.
    for (parts, outs) in parts.chunks(8).zip(outs.chunks_mut(8)) {
        for (s, o) in shared.iter_mut().zip(outs) {
            *s = Some(Out::new(o));
        }
        let weight = |l: &Linear| &env.weights[l.weight.0 as usize];
        let partition = |w: &Weight| env.partition(w.rows(), w.row_bytes(), t);
        let blocks = |l: &Linear| partition(weight(l)).blocks(weight(l).rows());
        let most = parts.iter().map(|l| partition(weight(l)).max_blocks).min().unwrap_or(1);
        env.pool.run_spans(parts.iter().map(blocks).sum(), most, &|worker, items| {
            let mut before = 0;
            for (i, (l, out)) in parts.iter().zip(&shared).enumerate() {
                let (w, n) = (weight(l), blocks(l));
                let after = parts.get(i + 1).map_or(std::ptr::null(), |l| weight(l).address(0));
                // The blocks of this part among the items.
                let own = items.start.max(before) - before..items.end.clamp(before, before + n) - before;
                before += n;
                if let (Some(out), false) = (out, own.is_empty()) {
                    partition(w).for_each_block(w.rows(), own, |_, first, rows| {
                        let next = if first + rows < w.rows() { w.address(first + rows) } else { after };
                        one_block(env, worker, x, t, l, first, rows, next, *out, epilogue);
                    });
                }
            }
        })?;
    }
    Ok(())
}

/// Computes and finishes rows `first .. first + rows` of one part. The weights at `next` are read after these: they are
/// prefetched.
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
    epilogue: Epilogue<'_>,
) {
    let w = &env.weights[l.weight.0 as usize];
    let total = w.rows();
    let mut scratch = env.scratch.of(worker);
    let Scratch { work, tile, .. } = &mut *scratch;
    let tile = ensure_len(tile, t * rows);
    w.product(first, rows, x, &env.all_tokens[..t], work, tile, next);
    let bias = l.bias.map(|b| &env.vectors[b.0 as usize][first..first + rows]);
    for (i, y) in tile.chunks_exact_mut(rows).enumerate() {
        if let Some(bias) = bias {
            add_bias(y, bias, rows);
        }
        // SAFETY: blocks of rows are disjoint, and so are tokens.
        let to = unsafe { out.slice(i * total + first, rows) };
        match epilogue {
            Epilogue::Plain => to.copy_from_slice(y),
            Epilogue::Act(act) => {
                env.simd(Act { x: y, act });
                to.copy_from_slice(y);
            }
            Epilogue::Add(residual, gates, factor) => {
                let factor = factor * gates.map_or(1.0, |g| sigmoid(f64::from(g[i])) as f32);
                let a = &residual[i * total + first..][..rows];
                env.simd(AddScaled { y: to, a, b: y, factor });
            }
        }
    }
}

/// `act(gate x) · (up x)` of a gated linear unit into `out`, `[T, rows]`.
///
/// # Errors
/// As [`super::pool::Pool::run`].
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
    let partition = env.partition(total, gate.row_bytes(), t);
    let out = Out::new(out);
    env.pool.run_spans(partition.blocks(total), partition.max_blocks, &|worker, items| {
        partition.for_each_block(total, items, |_, first, rows| {
            let mut scratch = env.scratch.of(worker);
            let unit = Gated { gate, up, biases: None, act };
            let tile = unit.tile(env, &mut scratch, x, (first, rows, first + rows), &env.all_tokens[..t]);
            for (i, y) in tile.chunks_exact(rows).enumerate() {
                // SAFETY: blocks of rows are disjoint, and so are tokens.
                unsafe { out.slice(i * total + first, rows) }.copy_from_slice(y);
            }
        });
    })
}

/// A gated linear unit, whose matrices have one shape.
#[derive(Clone, Copy)]
pub struct Gated<'a> {
    /// The matrix whose product goes through the activation.
    pub gate: &'a Weight,
    /// The matrix whose product is multiplied with the activated one.
    pub up: &'a Weight,
    /// The biases of gate and up, of the rows that [`Gated::tile`] computes.
    pub biases: Option<[&'a [f32]; 2]>,
    /// The activation of the gate.
    pub act: Activation,
}

impl Gated<'_> {
    /// Computes `rows` rows from `first` on for some tokens: `[tokens, rows]`, in the worker's scratch memory. `next` is the row
    /// that is read after these, to be prefetched.
    pub fn tile<'s>(
        &self,
        env: Env<'_>,
        scratch: &'s mut Scratch,
        x: Input<'_>,
        (first, rows, next): (usize, usize, usize),
        tokens: &[u32],
    ) -> &'s [f32] {
        let Scratch { work, tile, other } = scratch;
        let (g, u) = (ensure_len(tile, tokens.len() * rows), ensure_len(other, tokens.len() * rows));
        self.gate.product(first, rows, x, tokens, work, g, self.up.address(first));
        self.up.product(first, rows, x, tokens, work, u, self.gate.address(next));
        if let Some([of_gate, of_up]) = self.biases {
            add_bias(g, of_gate, rows);
            add_bias(u, of_up, rows);
        }
        env.simd(Glu { gate: g, up: u, act: self.act });
        g
    }
}

/// Adds `bias`, of `rows` values, to each row of `y`, `[tokens, rows]`.
pub fn add_bias(y: &mut [f32], bias: &[f32], rows: usize) {
    for y in y.chunks_exact_mut(rows) {
        y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    }
}
