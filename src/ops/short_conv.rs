//! `short_conv`: causal convolution along the tokens, each channel by itself, over the last few positions.
//!
//! `y[t, c] = act(Σ_j w[j, c] · x[t − (K − 1) + j, c] + b[c])` with K taps; the inputs before this step's first token are the
//! state, and zeros before the sequence's first. The state is the last K − 1 inputs, oldest first, `[K − 1, C]`.
//!
//! Sources: the convolution of Mamba (Gu and Dao 2023) as gated DeltaNet uses it (Hugging Face `modeling_qwen3_next`, with
//! SiLU), and LFM2's short convolutions (`modeling_lfm2_moe`, without). Shapes: x `[T, C]`, w `[K · C]` (tap by tap, so that
//! the channels of a tap lie side by side), b `[C]` → `[T, C]`. Tolerance: 1e-10.

use super::{Array, Weights, arity, elementwise::activate, f32_of, weight_shape};
use crate::ir::{Graph, Rows, ShortConv, Type};

/// Most taps of a convolution.
pub const MOST_TAPS: usize = 16;

/// Shape rule.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer(c: &ShortConv, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, String> {
    let [x] = arity(inputs)?;
    let (rows, cols) = f32_of(&x)?;
    if !(2..=MOST_TAPS).contains(&c.taps) || rows != Rows::Tokens {
        return Err(format!("a convolution of {} taps over {x}", c.taps));
    }
    if let Some(act) = c.act.filter(|a| super::elementwise::gated_only(*a)) {
        return Err(format!("{act:?} without a gate"));
    }
    weight_shape(g, c.weight, &[c.taps * cols])?;
    if let Some(b) = c.bias {
        weight_shape(g, b, &[cols])?;
    }
    super::state_len(g, c.state, (c.taps - 1) * cols)?;
    Ok(vec![Type::F32(rows, cols)])
}

/// Reference code; moves the state on by the rows of `x`.
pub fn eval(x: &Array, c: &ShortConv, state: &mut Vec<f32>, w: Weights<'_>) -> Array {
    let (n, before) = (x.cols, c.taps - 1);
    let (taps, bias) = (w.vector(c.weight), c.bias.map(|b| w.vector(b)));
    // All inputs that count, the state first.
    let mut all = std::mem::take(state);
    all.extend_from_slice(&x.data);
    let mut y = Array::zeros(x.rows, n);
    for t in 0..x.rows {
        for i in 0..n {
            let sum: f64 =
                (0..c.taps).map(|j| f64::from(taps[j * n + i]) * f64::from(all[(t + j) * n + i])).sum::<f64>();
            let sum = sum + bias.as_ref().map_or(0.0, |b| f64::from(b[i]));
            y.row_mut(t)[i] = c.act.map_or(sum, |a| activate(a, sum)) as f32;
        }
    }
    *state = all.split_off(all.len() - before * n);
    y
}
