//! The ops with recurrent states: `short_conv` and `delta_net`. Tokens are computed in order; channels and heads are independent
//! and go to different threads.

use super::{
    buffer::Out,
    parallel::Env,
    row_ops::Glu,
    simd::{F32x16, N},
    simd_level::SimdKernel,
};
use crate::{
    error::Result,
    ir::{DeltaNet, ShortConv},
    ops::{
        delta_net::{EPS, softplus},
        elementwise::sigmoid,
    },
};

/// The channels that a thread takes at a time.
const CHANNELS: usize = 512;

/// The second factor of an activation that is run as a gated unit without one.
static ONES: [f32; CHANNELS] = [1.0; CHANNELS];

/// The columns of a head's state that a thread takes at a time: a head of 128 columns makes two items.
const COLUMNS: usize = 64;

/// The op of [`crate::ops::short_conv`] on the rows of `x`; `state` is advanced by as many tokens.
///
/// # Errors
/// As [`super::pool::Pool::run`].
pub fn short_conv(env: Env<'_>, c: &ShortConv, x: &[f32], state: &mut [f32], out: &mut [f32]) -> Result<()> {
    let (taps, bias) = (&env.vectors[c.weight.0 as usize], c.bias.map(|b| &env.vectors[b.0 as usize]));
    let n = taps.len() / c.taps.max(1);
    let (rows, before) = (x.len() / n.max(1), c.taps - 1);
    let (to, held) = (Out::new(&mut out[..x.len()]), Out::new(state));
    env.pool.run(n.div_ceil(CHANNELS), &|_, item| {
        let (from, len) = (item * CHANNELS, CHANNELS.min(n - item * CHANNELS));
        // The i-th input of these channels: first the `before` rows of the state, then the rows of this step.
        let input = |i: usize| {
            if i < before {
                // SAFETY: every channel belongs to one item.
                unsafe { &*held.slice(i * n + from, len) }
            } else {
                &x[(i - before) * n + from..(i - before) * n + from + len]
            }
        };
        for t in 0..rows {
            // SAFETY: every channel belongs to one item.
            let y = unsafe { to.slice(t * n + from, len) };
            match bias {
                Some(b) => y.copy_from_slice(&b[from..from + len]),
                None => y.fill(0.0),
            }
            for j in 0..c.taps {
                let w = &taps[j * n + from..j * n + from + len];
                y.iter_mut().zip(w).zip(input(t + j)).for_each(|((y, w), x)| *y += w * x);
            }
            if let Some(act) = c.act {
                env.simd(Glu { gate: y, up: &ONES[..len], act });
            }
        }
        // The last inputs become the state; rows move towards the front, so none is overwritten before it is read.
        for i in 0..before {
            // SAFETY: every channel belongs to one item; the row that is read is another one.
            unsafe { held.slice(i * n + from, len) }.copy_from_slice(input(i + rows));
        }
    })
}

/// The op of [`crate::ops::delta_net`] on the rows of its inputs qkv, a and b; `state` is advanced by as many tokens.
///
/// # Errors
/// As [`super::pool::Pool::run`].
pub fn delta_net(
    env: Env<'_>,
    d: &DeltaNet,
    [qkv, a, b]: [&[f32]; 3],
    state: &mut [f32],
    out: &mut [f32],
) -> Result<()> {
    let (decay, dt) = (&env.vectors[d.decay.0 as usize], &env.vectors[d.dt_bias.0 as usize]);
    let (cols, y_cols, rows) = (d.qkv_cols(), d.v_heads * d.v_dim, a.len() / d.v_heads);
    let blocks = d.v_dim.div_ceil(COLUMNS);
    let (to, held) = (Out::new(&mut out[..rows * y_cols]), Out::new(state));
    env.pool.run(d.v_heads * blocks, &|_, item| {
        let (h, from) = (item / blocks, item % blocks * COLUMNS);
        let len = COLUMNS.min(d.v_dim - from);
        let (q_at, k_at) = (d.key_head(h) * d.k_dim, (d.k_heads + d.key_head(h)) * d.k_dim);
        let v_at = 2 * d.k_heads * d.k_dim + h * d.v_dim + from;
        for t in 0..rows {
            let row = &qkv[t * cols..(t + 1) * cols];
            let (q, k) = (&row[q_at..q_at + d.k_dim], &row[k_at..k_at + d.k_dim]);
            let (at, speed) = (t * d.v_heads + h, f64::from(decay[h]));
            let token = Token {
                q,
                k,
                v: &row[v_at..v_at + len],
                keep: (speed * softplus(f64::from(a[at]) + f64::from(dt[h]))).exp() as f32,
                beta: sigmoid(f64::from(b[at])) as f32,
                stride: d.v_dim,
                // SAFETY: columns `from .. from + len` of head h belong to this item alone.
                state: |i: usize| unsafe { held.slice((h * d.k_dim + i) * d.v_dim + from, len) },
                // SAFETY: as above, of row t.
                y: unsafe { to.slice(t * y_cols + h * d.v_dim + from, len) },
            };
            env.simd(token);
        }
    })
}

/// The kernel for one token and some columns of a head.
struct Token<'a, S> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    keep: f32,
    beta: f32,
    stride: usize,
    /// Gives these columns of row i of the state.
    state: S,
    y: &'a mut [f32],
}

impl<'a, S: Fn(usize) -> &'a mut [f32]> SimdKernel for Token<'a, S> {
    type Output = ();

    /// A first sweep over the state reads what it holds for the key and for the query; a second one writes the update. What the
    /// query would read after the update follows from both: `Sᵀq̂ + (k̂·q̂) δ`.
    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        debug_assert!(self.y.len() <= self.stride && self.y.len() <= COLUMNS);
        let square = |x: &[f32]| x.iter().map(|v| v * v).sum::<f32>();
        let q_scale = 1.0 / ((square(self.q) + EPS as f32) * self.q.len() as f32).sqrt();
        let k_scale = 1.0 / (square(self.k) + EPS as f32).sqrt();
        let both = self.q.iter().zip(self.k).map(|(q, k)| q * k).sum::<f32>() * q_scale * k_scale;
        let n = self.y.len();
        let whole = n / N * N;
        let (mut known, mut read) = ([0.0f32; COLUMNS], [0.0f32; COLUMNS]);
        for (i, (q, k)) in self.q.iter().zip(self.k).enumerate() {
            let s = (self.state)(i);
            // SAFETY: vectors lie within the first `whole` numbers of slices of `n`; the features are there.
            unsafe {
                for c in (0..whole).step_by(N) {
                    let v = L::load(s.as_ptr().add(c));
                    let (a, b) = (known.as_mut_ptr().add(c), read.as_mut_ptr().add(c));
                    v.fma(L::splat(*k), L::load(a)).store(a);
                    v.fma(L::splat(*q), L::load(b)).store(b);
                }
            }
            for c in whole..n {
                known[c] += s[c] * k;
                read[c] += s[c] * q;
            }
        }
        for c in 0..n {
            let delta = self.beta * (self.v[c] - self.keep * k_scale * known[c]);
            self.y[c] = self.keep * q_scale * read[c] + both * delta;
            known[c] = delta;
        }
        for (i, k) in self.k.iter().enumerate() {
            let (s, k) = ((self.state)(i), k * k_scale);
            // SAFETY: as above.
            unsafe {
                for c in (0..whole).step_by(N) {
                    let at = s.as_mut_ptr().add(c);
                    let kept = L::load(at).mul(L::splat(self.keep));
                    L::load(known.as_ptr().add(c)).fma(L::splat(k), kept).store(at);
                }
            }
            for c in whole..n {
                s[c] = self.keep * s[c] + k * known[c];
            }
        }
    }
}
