//! Slots: what a token's k choices are made of, weighed with and summed by.
//!
//! | op | formula | gradient |
//! |---|---|---|
//! | `top_k` | the columns of the k largest numbers of each group, largest first, ties to the lower | none |
//! | `gather_slots` | y[r, j] = x[r, ids[r, j]] | `scatter_slots` of dy |
//! | `scatter_slots` | y[r, ids[r, j]] = w[r, j], 0 elsewhere | `gather_slots` of dy |
//! | `multi_hot` | y[r, e] = how often e is among `ids[r]` | none |
//! | `repeat_slots` | y[r, j, :] = x[r, :] | `sum_slots` of dy |
//! | `sum_slots` | y[r, :] = Σ_j x[r, j, :] | `repeat_slots` of dy |
//! | `scale_slots` | y[r, j, :] = w[r, j] · x[r, j, :] (or x[r, :]) | `scale_slots` of dy (summed over slots where x was shared); `slot_dots` |
//! | `slot_dots` | y[r, j] = a[r, j, :] · b[r, j, :] (or b[r, :]) | `scale_slots` of b and of a (summed over slots where b was shared) |
//!
//! `scale_slots` is `scale_expert_inputs` without its ones, and the gradient of `expert_combine` by its slots; `slot_dots` is the
//! one by its weights. Sums are in f64, slots in order. Tolerance 1e-10.

use super::{Array, Real, arity, f32_of, router, u32_of};
use crate::ir::{Rows, Type};

/// Shape rule of `top_k`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_top_k(used: usize, groups: usize, inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [x] = arity(inputs)?;
    let (rows, cols) = f32_of(&x)?;
    if groups == 0 || cols % groups != 0 || used == 0 || used > cols / groups {
        return Err(format!("top {used} of {groups} groups in {cols} columns"));
    }
    Ok(vec![Type::U32(rows, groups * used)])
}

fn same_rows(a: Rows, b: Rows) -> Result<Rows, String> {
    if a == b { Ok(a) } else { Err("operands of different rows".into()) }
}

/// Shape rule of `gather_slots`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_gather(inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [x, ids] = arity(inputs)?;
    let ((rows, _), (other, k)) = (f32_of(&x)?, u32_of(&ids)?);
    Ok(vec![Type::F32(same_rows(rows, other)?, k)])
}

/// Shape rule of `scatter_slots`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_scatter(experts: usize, inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [w, ids] = arity(inputs)?;
    let ((rows, cols), (other, k)) = (f32_of(&w)?, u32_of(&ids)?);
    if cols != k {
        return Err(format!("{cols} numbers for {k} ids"));
    }
    Ok(vec![Type::F32(same_rows(rows, other)?, experts)])
}

/// Shape rule of `scale_slots`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_scale(shared: bool, inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [x, w] = arity(inputs)?;
    let ((rows, cols), (other, k)) = (f32_of(&x)?, f32_of(&w)?);
    if !shared && (k == 0 || cols % k != 0) {
        return Err(format!("{cols} columns in {k} slots"));
    }
    Ok(vec![Type::F32(same_rows(rows, other)?, if shared { cols * k } else { cols })])
}

/// Shape rule of `slot_dots`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_dots(slots: usize, inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [a, b] = arity(inputs)?;
    let ((rows, ca), (other, cb)) = (f32_of(&a)?, f32_of(&b)?);
    if slots == 0 || ca % slots != 0 || (cb != ca && cb * slots != ca) {
        return Err(format!("{slots} slots in {ca} and {cb} columns"));
    }
    Ok(vec![Type::F32(same_rows(rows, other)?, slots)])
}

/// Reference code of `top_k`.
pub fn top_k<T: Real>(x: &Array<T>, used: usize, groups: usize) -> Vec<u32> {
    let n = x.cols / groups;
    let row = |r: usize| {
        let group = move |g: usize| {
            router::top_k(&x.row(r)[g * n..(g + 1) * n], used).into_iter().map(move |i| (g * n + i) as u32)
        };
        (0..groups).flat_map(group)
    };
    (0..x.rows).flat_map(row).collect()
}

/// Reference code of `gather_slots`.
pub fn gather<T: Real>(x: &Array<T>, ids: &[u32]) -> Array<T> {
    let k = ids.len() / x.rows.max(1);
    let data = ids.iter().enumerate().map(|(i, id)| x.row(i / k)[*id as usize]).collect();
    Array { rows: x.rows, cols: k, data }
}

/// Reference code of `scatter_slots`. An id that comes twice takes the sum.
pub fn scatter<T: Real>(w: &Array<T>, ids: &[u32], experts: usize) -> Array<T> {
    let mut y: Array<T> = Array::zeros(w.rows, experts);
    for (i, id) in ids.iter().enumerate() {
        let at = &mut y.row_mut(i / w.cols)[*id as usize];
        *at = T::of(at.get() + w.data[i].get());
    }
    y
}

/// Reference code of `multi_hot`.
pub fn multi_hot<T: Real>(ids: &[u32], rows: usize, experts: usize) -> Array<T> {
    let ones = Array { rows, cols: ids.len() / rows.max(1), data: vec![T::of(1.0); ids.len()] };
    scatter(&ones, ids, experts)
}

/// Reference code of `repeat_slots`.
pub fn repeat<T: Real>(x: &Array<T>, slots: usize) -> Array<T> {
    let data = (0..x.rows).flat_map(|r| x.row(r).repeat(slots)).collect();
    Array { rows: x.rows, cols: slots * x.cols, data }
}

/// Reference code of `sum_slots`.
pub fn sum<T: Real>(x: &Array<T>, slots: usize) -> Array<T> {
    let n = x.cols / slots;
    let mut y = Array::zeros(x.rows, n);
    for r in 0..x.rows {
        for c in 0..n {
            y.row_mut(r)[c] = T::of((0..slots).map(|j| x.row(r)[j * n + c].get()).sum());
        }
    }
    y
}

/// Reference code of `scale_slots`; `shared`: x has one row for all slots.
pub fn scale<T: Real>(x: &Array<T>, w: &Array<T>, shared: bool) -> Array<T> {
    let n = if shared { x.cols } else { x.cols / w.cols };
    let mut y = Array::zeros(x.rows, w.cols * n);
    for r in 0..x.rows {
        for j in 0..w.cols {
            let from = if shared { 0 } else { j * n };
            for c in 0..n {
                y.row_mut(r)[j * n + c] = T::of(w.row(r)[j].get() * x.row(r)[from + c].get());
            }
        }
    }
    y
}

/// Reference code of `slot_dots`.
pub fn dots<T: Real>(a: &Array<T>, b: &Array<T>, slots: usize) -> Array<T> {
    let n = a.cols / slots;
    let mut y = Array::zeros(a.rows, slots);
    for r in 0..a.rows {
        for j in 0..slots {
            let b = if b.cols == a.cols { &b.row(r)[j * n..(j + 1) * n] } else { b.row(r) };
            y.row_mut(r)[j] = T::of(super::linear::dot(&a.row(r)[j * n..(j + 1) * n], b));
        }
    }
    y
}
