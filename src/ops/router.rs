//! `router`: which experts a token takes, and with which weights.
//!
//! From logits `[T, E]`, row by row:
//!
//! 1. scores s, by [`Score`] (`softmax of the selected`: after step 4, over the chosen logits);
//! 2. choice values c = s + selection bias;
//! 3. with [`Groups`], E / groups neighbours are a group, which is scored by its largest c or the sum of its two largest;
//!    the best groups take part, ties to the lower one;
//! 4. the k experts with the largest c among those that take part, in descending order, ties to the lower id;
//! 5. their weights are their s (without the bias), divided as [`Renormalise`] says, times `scale`, and times
//!    the chosen expert's own factor where there are such (`expert_scale`).
//!
//! With [`GroupScore::Own`] the row has a logit for each group behind those of the experts. The best groups by these take part, and
//! k / groups of the best experts of each; the ids come group by group, in descending order of the groups' logits and of the experts'
//! in each; a weight is the softmax over the chosen groups' logits times that over the chosen experts' of the group.
//!
//! Which family has which of these, and where that is defined, stands in the family's own description
//! (`model::Architecture::routing`); the README's table of models is made of them. The root of a softplus is DeepSeek-V4's
//! (`modeling_deepseek_v4`), which is not run yet.
//!
//! A router's own bias is the bias of the `linear` that makes the logits. llama.cpp divides by `max(sum, 2⁻¹⁴)` in every family;
//! the two differ only where the chosen scores sum to less.
//!
//! The choice is made on the logits where every score grows with its logit and nothing is added
//! ([`Router::chooses_by_logits`]); else on c in f32, as the sources do. Not-a-number counts as the smallest number in
//! the choice, and its weight is not-a-number.
//!
//! Gradient by the logits, from dw of the weights; ids, groups and selection bias have none. With s the scores of the chosen
//! and u their renormalised values: the factors multiply dw; a division by the sum gives `ds = (du − Σ u du) / divisor` (below the
//! bound of [`Renormalise::SumAtLeast`] `du / e`), a softmax `u (du − Σ u du)`; then through the score: softmax over all experts
//! `dl_e = p_e (g_e − Σ_j g_j p_j)` with g the ds scattered, softmax of the selected the same on the k alone, sigmoid
//! `s (1 − s)`, the root of a softplus `σ(l) / (2 s)`. Of a router over groups both softmaxes have theirs, with dw times the other's
//! value. A sparsemixer has none here and is refused when a trainer is made.
//!
//! Shapes: logits `[T, E]` (`[T, E + groups]` with [`GroupScore::Own`]) → ids u32 `[T, k]`, weights `[T, k]`. Tolerance: ids identical as (expert, weight) pairs
//! wherever the reference's choice values of the last chosen and the first left-out expert (or group) differ by more than 1e-5
//! of their size; weights 1e-10.

use super::{Array, Real, Weights, arity, elementwise::sigmoid, f32_of, weight_shape};
use crate::ir::{Graph, GroupScore, Groups, Renormalise, Router, Score, Type};

/// Shape rule.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer(r: &Router, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, String> {
    let [logits] = arity(inputs)?;
    let (rows, cols) = f32_of(&logits)?;
    if cols != r.logits() {
        return Err(format!("{} experts on {cols} logits", r.experts));
    }
    r.check()?;
    for w in r.selection_bias.into_iter().chain(r.expert_scale) {
        weight_shape(g, w, &[r.experts])?;
    }
    Ok(vec![Type::U32(rows, r.used), Type::F32(rows, r.used)])
}

pub(crate) fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = x.iter().map(|v| (v - max).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|v| v / sum).collect()
}

/// `sqrt(ln(1 + exp(x)))`.
pub fn sqrt_softplus(x: f64) -> f64 {
    // Written so that no exponential overflows.
    (x.max(0.0) + (-x.abs()).exp().ln_1p()).sqrt()
}

/// The `k` largest of `x`, in descending order, ties to the lower index; not-a-number counts as the smallest.
pub fn top_k<T: Real>(x: &[T], k: usize) -> Vec<usize> {
    let key = |i: usize| if x[i].get().is_nan() { f64::NEG_INFINITY } else { x[i].get() };
    let mut order: Vec<usize> = (0..x.len()).collect();
    // Not `total_cmp`: the two zeros are equal.
    order.sort_by(|a, b| key(*b).partial_cmp(&key(*a)).unwrap_or(std::cmp::Ordering::Equal).then(a.cmp(b)));
    order.truncate(k);
    order
}

/// The experts that take part: those of the best groups.
fn in_best_groups<T: Real>(c: &[T], g: &Groups) -> Vec<usize> {
    let size = c.len() / g.count;
    let scores: Vec<T> = (c.chunks(size).map(|group| {
        // As `in_group` has it.
        let best: Vec<f64> = top_k(group, 2).iter().map(|i| group[*i].get().max(f64::from(f32::MIN))).collect();
        match g.score {
            GroupScore::Max => T::of(best[0]),
            GroupScore::TopTwo => T::of(best[0] + best[1]),
            // Those have a code of their own.
            GroupScore::Own => T::of(f64::NAN),
        }
    }))
    .collect();
    let mut groups = top_k(&scores, g.used);
    groups.sort_unstable();
    groups.iter().flat_map(|g| g * size..(g + 1) * size).collect()
}

/// A choice value as a group's score counts it: not-a-number and minus infinity as the smallest number.
pub fn in_group(x: f32) -> f32 {
    // The maximum with not-a-number is the other one.
    x.max(f32::MIN)
}

/// The choice of a router over groups `g` and of those in the groups: experts and their weights, group by group.
fn choose_in_groups<T: Real>(row: &[T], r: &Router, g: Groups) -> Vec<(usize, f64)> {
    let (of_experts, of_groups) = row.split_at(r.experts);
    let (size, each) = (r.experts / g.count, r.used / g.used);
    let softmax_of = |x: &[T], chosen: &[usize]| softmax(&chosen.iter().map(|i| x[*i].get()).collect::<Vec<f64>>());
    let groups = top_k(of_groups, g.used);
    let outer = softmax_of(of_groups, &groups);
    let in_group = |(group, p): (&usize, f64)| {
        let logits = &of_experts[group * size..(group + 1) * size];
        let chosen = top_k(logits, each);
        let inner = softmax_of(logits, &chosen);
        chosen.iter().zip(inner).map(|(e, q)| (group * size + e, p * q)).collect::<Vec<_>>()
    };
    groups.iter().zip(outer).flat_map(in_group).collect()
}

/// The gradient of that choice by the logits.
fn grad_in_groups<T: Real>(row: &[T], r: &Router, g: Groups, chosen: &[usize], dw: &[f64]) -> Vec<f64> {
    let (size, each) = (r.experts / g.count, r.used / g.used);
    let softmax_of = |all: &[usize]| softmax(&all.iter().map(|i| row[*i].get()).collect::<Vec<f64>>());
    let of_groups: Vec<usize> = chosen.chunks(each).map(|c| r.experts + c[0] / size).collect();
    let (outer, mut d) = (softmax_of(&of_groups), vec![0.0; row.len()]);
    let back = |d: &mut [f64], places: &[usize], s: &[f64], ds: &[f64]| {
        let mean: f64 = s.iter().zip(ds).map(|(s, d)| s * d).sum();
        places.iter().zip(s.iter().zip(ds)).for_each(|(i, (s, ds))| d[*i] = s * (ds - mean));
    };
    let mut by_outer: Vec<f64> = vec![];
    for ((experts, dw), p) in chosen.chunks(each).zip(dw.chunks(each)).zip(&outer) {
        let inner = softmax_of(experts);
        by_outer.push(inner.iter().zip(dw).map(|(q, d)| q * d).sum());
        back(&mut d, experts, &inner, &dw.iter().map(|d| d * p).collect::<Vec<f64>>());
    }
    back(&mut d, &of_groups, &outer, &by_outer);
    d
}

/// Reference code: ids `[T · k]` and weights `[T, k]`.
pub fn eval<T: Real>(logits: &Array<T>, r: &Router, w: Weights<'_, T>) -> (Vec<u32>, Array<T>) {
    let mut ids = Vec::with_capacity(logits.rows * r.used);
    let mut weights = Array::zeros(logits.rows, r.used);
    let (bias, factors) = (r.selection_bias.map(|b| w.vector(b)), r.expert_scale.map(|f| w.vector(f)));
    for t in 0..logits.rows {
        if let Some(g) = r.over_groups() {
            let chosen = choose_in_groups(logits.row(t), r, g);
            let to = weights.row_mut(t).iter_mut();
            to.zip(&chosen).for_each(|(to, (_, w))| *to = T::of(w * f64::from(r.scale)));
            ids.extend(chosen.iter().map(|(e, _)| *e as u32));
            continue;
        }
        let raw: Vec<f64> = logits.row(t).iter().map(|v| v.get()).collect();
        let scores = match r.score {
            Score::Softmax => softmax(&raw),
            Score::Sigmoid => raw.iter().map(|v| sigmoid(*v)).collect(),
            Score::SqrtSoftplus => raw.iter().map(|v| sqrt_softplus(*v)).collect(),
            Score::SoftmaxOfSelected | Score::SparseMixer { .. } => raw.clone(),
        };
        let mut by: Vec<T> = scores.iter().map(|s| T::of(*s)).collect();
        if r.chooses_by_logits() {
            by = logits.row(t).to_vec();
        }
        if let Some(b) = &bias {
            by.iter_mut().zip(b).for_each(|(c, b)| *c = T::of(c.get() + b.get()));
        }
        let among = r.groups.as_ref().map_or_else(|| (0..r.experts).collect(), |g| in_best_groups(&by, g));
        let values: Vec<T> = among.iter().map(|e| by[*e]).collect();
        let chosen: Vec<usize> = top_k(&values, r.used).iter().map(|i| among[*i]).collect();
        let mut s: Vec<f64> = chosen.iter().map(|e| scores[*e]).collect();
        match r.score {
            Score::Softmax | Score::Sigmoid | Score::SqrtSoftplus => {}
            Score::SoftmaxOfSelected => s = softmax(&s),
            Score::SparseMixer { threshold } => {
                let row: Vec<f32> = raw.iter().map(|v| *v as f32).collect();
                let weight = |j: usize| sparse_mixer(&row, |e| chosen[..j].contains(&e), chosen[j], threshold);
                s = (0..r.used).map(weight).collect();
            }
        }
        match r.renormalise {
            Renormalise::Softmax => s = softmax(&s),
            Renormalise::No | Renormalise::Sum | Renormalise::SumPlus(_) | Renormalise::SumAtLeast(_) => {}
        }
        let divisor = divisor(r.renormalise, s.iter().sum());
        for ((o, s), e) in weights.row_mut(t).iter_mut().zip(&s).zip(&chosen) {
            let factor = factors.as_ref().map_or(1.0, |f| f[*e].get());
            *o = T::of(s / divisor * f64::from(r.scale) * factor);
        }
        ids.extend(chosen.iter().map(|e| *e as u32));
    }
    (ids, weights)
}

/// The weight of expert `chosen` in a sparsemixer, once others are `gone`: with m its logit, a softmax over all that are left
/// but those with `(m − x) / max(|x|, m) > threshold`, which is compared in f32 as the source does (Hugging Face
/// `modeling_phimoe`, `sparsemixer` outside training: the first two choices there, any number here).
pub fn sparse_mixer(logits: &[f32], gone: impl Fn(usize) -> bool, chosen: usize, threshold: f32) -> f64 {
    let m = logits[chosen];
    // Written so that not-a-number is not masked, and ends up in the weight.
    let masked = |x: f32| (m - x) / x.abs().max(m) > threshold;
    let left = logits.iter().enumerate().filter(|(e, x)| !gone(*e) && !masked(**x));
    1.0 / left.map(|(_, x)| (f64::from(*x) - f64::from(m)).exp()).sum::<f64>()
}

/// What the weights are divided by, from the sum of the chosen scores.
pub fn divisor(r: Renormalise, sum: f64) -> f64 {
    match r {
        Renormalise::No | Renormalise::Softmax => 1.0,
        Renormalise::Sum => sum,
        Renormalise::SumPlus(e) => sum + f64::from(e),
        // Written so that not-a-number stays.
        Renormalise::SumAtLeast(e) if sum < f64::from(e) => f64::from(e),
        Renormalise::SumAtLeast(_) => sum,
    }
}

/// Reference code of the gradient by the logits.
pub fn grad<T: Real>(logits: &Array<T>, ids: &[u32], dw: &Array<T>, r: &Router, w: Weights<'_, T>) -> Array<T> {
    let mut d = Array::zeros(logits.rows, logits.cols);
    let factors = r.expert_scale.map(|f| w.vector(f));
    for t in 0..logits.rows {
        let raw: Vec<f64> = logits.row(t).iter().map(|v| v.get()).collect();
        let chosen: Vec<usize> = ids[t * r.used..(t + 1) * r.used].iter().map(|e| *e as usize).collect();
        let factor = |e: usize| factors.as_ref().map_or(1.0, |f| f[e].get()) * f64::from(r.scale);
        let du: Vec<f64> = chosen.iter().zip(dw.row(t)).map(|(e, d)| d.get() * factor(*e)).collect();
        if let Some(g) = r.over_groups() {
            let by_logits = grad_in_groups(logits.row(t), r, g, &chosen, &du);
            d.row_mut(t).iter_mut().zip(by_logits).for_each(|(to, v)| *to = T::of(v));
            continue;
        }
        let of = |x: &[f64]| chosen.iter().map(|e| x[*e]).collect::<Vec<f64>>();
        let p = softmax(&raw);
        let s = match r.score {
            Score::Softmax => of(&p),
            Score::SoftmaxOfSelected | Score::SparseMixer { .. } => softmax(&of(&raw)),
            Score::Sigmoid => of(&raw).into_iter().map(sigmoid).collect(),
            Score::SqrtSoftplus => of(&raw).into_iter().map(sqrt_softplus).collect(),
        };
        let ds = renormalise_grad(r.renormalise, &s, &du);
        let row = d.row_mut(t);
        match r.score {
            Score::Softmax => {
                let mean: f64 = s.iter().zip(&ds).map(|(s, d)| s * d).sum();
                row.iter_mut().zip(&p).for_each(|(x, p)| *x = T::of(-p * mean));
                chosen.iter().zip(&ds).for_each(|(e, d)| row[*e] = T::of(p[*e] * (d - mean)));
            }
            Score::SoftmaxOfSelected | Score::SparseMixer { .. } => {
                let mean: f64 = s.iter().zip(&ds).map(|(s, d)| s * d).sum();
                chosen.iter().zip(s.iter().zip(&ds)).for_each(|(e, (s, d))| row[*e] = T::of(s * (d - mean)));
            }
            Score::Sigmoid => {
                chosen.iter().zip(s.iter().zip(&ds)).for_each(|(e, (s, d))| row[*e] = T::of(s * (1.0 - s) * d));
            }
            Score::SqrtSoftplus => {
                let one = |e: usize, s: f64, d: f64| sigmoid(raw[e]) / (2.0 * s) * d;
                chosen.iter().zip(s.iter().zip(&ds)).for_each(|(e, (s, d))| row[*e] = T::of(one(*e, *s, *d)));
            }
        }
    }
    d
}

/// The gradient by the scores of the chosen, from that by their renormalised values.
fn renormalise_grad(r: Renormalise, s: &[f64], du: &[f64]) -> Vec<f64> {
    let divisor = divisor(r, s.iter().sum());
    let centred = |u: &[f64]| {
        let mean: f64 = u.iter().zip(du).map(|(u, d)| u * d).sum();
        du.iter().map(|d| d - mean).collect::<Vec<f64>>()
    };
    match r {
        Renormalise::No => du.to_vec(),
        Renormalise::SumAtLeast(e) if divisor == f64::from(e) => du.iter().map(|d| d / divisor).collect(),
        Renormalise::Sum | Renormalise::SumPlus(_) | Renormalise::SumAtLeast(_) => {
            let u: Vec<f64> = s.iter().map(|s| s / divisor).collect();
            centred(&u).into_iter().map(|d| d / divisor).collect()
        }
        Renormalise::Softmax => {
            let u = softmax(s);
            centred(&u).into_iter().zip(u).map(|(d, u)| d * u).collect()
        }
    }
}
