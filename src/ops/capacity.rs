//! `capacity`: which of the chosen slots an expert has room for.
//!
//! An expert takes C = `max(ceil(tokens / E · k · factor), least)` slots. With [`Keep::Position`] a slot's place in its expert is
//! the number of slots before it, where all first choices come before all second ones and tokens come in order; with
//! [`Keep::Largest`] the number of slots of the expert with a larger p (ties to the earlier slot). Slots whose p is 0 take no
//! place. keep is 1 where the place is below C, else 0; places are −1 there. No gradient: a dropped slot has weight 0.
//!
//! Source: Lepikhin et al. 2020, *GShard*, algorithm 1; DeepSpeed's `top2gating`; Fedus et al. 2021 (k = 1). Shapes: ids `[T, k]`,
//! p `[T, k]` → `[T, k]` twice. Exact.

use super::{Array, Real, arity, f32_of, u32_of};
use crate::ir::{Capacity, Keep, Type};

/// Shape rule.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer(c: &Capacity, inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [ids, p] = arity(inputs)?;
    let ((rows, k), (other, cols)) = (u32_of(&ids)?, f32_of(&p)?);
    if rows != other || k != cols || c.experts == 0 {
        return Err(format!("{ids} and {p} for {} experts", c.experts));
    }
    if !(c.factor.is_finite() && c.factor >= 0.0) || (c.factor == 0.0 && c.least == 0) {
        return Err(format!("a capacity factor of {} with at least {} tokens", c.factor, c.least));
    }
    Ok(vec![p, p])
}

/// The slots that an expert takes of `tokens` tokens with `used` choices each.
pub fn slots(c: &Capacity, tokens: usize, used: usize) -> usize {
    ((tokens as f64 / c.experts as f64 * used as f64 * c.factor).ceil() as usize).max(c.least)
}

/// Reference code: keep and places.
pub fn eval<T: Real>(ids: &[u32], p: &Array<T>, c: &Capacity) -> [Array<T>; 2] {
    let (k, room) = (p.cols, slots(c, p.rows, p.cols));
    let mut order: Vec<usize> = (0..k).flat_map(|j| (0..p.rows).map(move |t| t * k + j)).collect();
    if c.keep == Keep::Largest {
        order.sort_by(|a, b| p.data[*b].partial_cmp(&p.data[*a]).unwrap_or(std::cmp::Ordering::Equal));
    }
    let mut taken = vec![0; c.experts];
    let (mut keep, mut places) = (Array::zeros(p.rows, k), Array::zeros(p.rows, k).map(|_| -1.0));
    for slot in order.into_iter().filter(|s| p.data[*s].get() != 0.0) {
        let place = &mut taken[ids[slot] as usize];
        if *place < room {
            keep.data[slot] = T::of(1.0);
            places.data[slot] = T::of(*place as f64);
        }
        *place += 1;
    }
    [keep, places]
}
