//! Chooses the experts of a token by the formula of [`crate::ops::router`], without allocating.

use crate::{
    ir::{GroupScore, Groups, Renormalise, Router, Score},
    ops::{
        elementwise::sigmoid,
        router::{divisor, in_group, sparse_mixer, sqrt_softplus},
    },
};

/// Marks experts and groups that take no part in a choice, or no longer do. Values that are compared are never not-a-number.
const OUT: f32 = f32::NAN;

/// Chooses the experts of one token from its `logits`, `[E]` (`[E + groups]` of a router over groups): writes their `ids` and `weights`,
/// `[k]` each. `bias` is the selection bias, `[E]`; `scratch` has room for two values an expert. Takes E · k steps; scores are computed in
/// f64, as in the reference.
///
/// Gives `false` where fewer experts take part than are asked for, which [`Router::check`] refuses.
pub fn choose(
    logits: &[f32],
    r: &Router,
    bias: Option<&[f32]>,
    scratch: &mut [f32],
    ids: &mut [u32],
    weights: &mut [f32],
) -> bool {
    if let Some(g) = r.over_groups() {
        return choose_in_groups(logits, r, g, scratch, ids, weights);
    }
    let (values, groups) = scratch.split_at_mut(logits.len());
    if r.chooses_by_logits() {
        values.copy_from_slice(logits);
    } else {
        let softmax = match r.score {
            Score::Softmax => top_and_sum(logits.iter().map(|l| f64::from(*l))),
            Score::SoftmaxOfSelected | Score::Sigmoid | Score::SqrtSoftplus | Score::SparseMixer { .. } => NO_SOFTMAX,
        };
        for (i, v) in values.iter_mut().enumerate() {
            *v = score(r, logits[i], softmax) as f32 + bias.map_or(0.0, |b| b[i]);
        }
    }
    values.iter_mut().filter(|v| v.is_nan()).for_each(|v| *v = f32::NEG_INFINITY);
    if let Some(g) = &r.groups
        && !limit_to_groups(values, g, &mut groups[..g.count])
    {
        return false;
    }
    for id in ids.iter_mut() {
        let Some(best) = take_best(values) else { return false };
        *id = best as u32;
    }
    weigh(logits, r, ids, weights);
    true
}

/// [`choose`] of a router over groups `g` and those in the groups.
fn choose_in_groups(
    logits: &[f32],
    r: &Router,
    g: Groups,
    scratch: &mut [f32],
    ids: &mut [u32],
    weights: &mut [f32],
) -> bool {
    let (of_experts, of_groups) = logits.split_at(r.experts);
    let (values, rest) = scratch.split_at_mut(r.experts);
    let groups = &mut rest[..g.count];
    values.copy_from_slice(of_experts);
    groups.copy_from_slice(of_groups);
    values.iter_mut().chain(groups.iter_mut()).filter(|v| v.is_nan()).for_each(|v| *v = f32::NEG_INFINITY);
    let (size, each) = (r.experts / g.count, r.used / g.used);
    for ids in ids.chunks_exact_mut(each) {
        let Some(group) = take_best(groups) else { return false };
        for id in ids {
            let Some(best) = take_best(&mut values[group * size..(group + 1) * size]) else { return false };
            *id = (group * size + best) as u32;
        }
    }
    let logit = |e: &u32| f64::from(of_experts[*e as usize]);
    let of_group = |ids: &[u32]| f64::from(of_groups[ids[0] as usize / size]);
    let (top, sum) = top_and_sum(ids.chunks_exact(each).map(of_group));
    for (ids, weights) in ids.chunks_exact(each).zip(weights.chunks_exact_mut(each)) {
        let outer = (of_group(ids) - top).exp() / sum;
        let (top, sum) = top_and_sum(ids.iter().map(logit));
        for (w, e) in weights.iter_mut().zip(ids) {
            *w = (outer * (logit(e) - top).exp() / sum * f64::from(r.scale)) as f32;
        }
    }
    true
}

/// The largest logit and the sum of exponentials of scores that are no softmax: they change nothing.
const NO_SOFTMAX: (f64, f64) = (0.0, 1.0);

/// The score of a logit; `top` and `sum` are those of [`top_and_sum`] over the logits of the softmax.
fn score(r: &Router, logit: f32, (top, sum): (f64, f64)) -> f64 {
    let logit = f64::from(logit);
    match r.score {
        Score::Softmax | Score::SoftmaxOfSelected | Score::SparseMixer { .. } => (logit - top).exp() / sum,
        Score::Sigmoid => sigmoid(logit),
        Score::SqrtSoftplus => sqrt_softplus(logit),
    }
}

/// Computes the `weights` of the chosen experts `ids`, `[k]` each.
fn weigh(logits: &[f32], r: &Router, ids: &[u32], weights: &mut [f32]) {
    let softmax = match r.score {
        Score::Softmax => top_and_sum(logits.iter().map(|l| f64::from(*l))),
        Score::SoftmaxOfSelected => top_and_sum(ids.iter().map(|i| f64::from(logits[*i as usize]))),
        Score::Sigmoid | Score::SqrtSoftplus => NO_SOFTMAX,
        Score::SparseMixer { threshold } => {
            for (j, w) in weights.iter_mut().enumerate() {
                let s = sparse_mixer(logits, |e| ids[..j].contains(&(e as u32)), ids[j] as usize, threshold);
                *w = (s * f64::from(r.scale)) as f32;
            }
            return;
        }
    };
    let score = |i: &u32| score(r, logits[*i as usize], softmax);
    match r.renormalise {
        Renormalise::Softmax => {
            let (top, sum) = top_and_sum(ids.iter().map(score));
            for (w, i) in weights.iter_mut().zip(ids) {
                *w = ((score(i) - top).exp() / sum * f64::from(r.scale)) as f32;
            }
        }
        Renormalise::No | Renormalise::Sum | Renormalise::SumPlus(_) | Renormalise::SumAtLeast(_) => {
            let divisor = divisor(r.renormalise, ids.iter().map(score).sum());
            for (w, i) in weights.iter_mut().zip(ids) {
                *w = (score(i) / divisor * f64::from(r.scale)) as f32;
            }
        }
    }
}

/// The largest value, and the sum of the exponentials of all values relative to it: what a softmax needs.
fn top_and_sum(x: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let top = x.clone().fold(f64::NEG_INFINITY, f64::max);
    (top, x.map(|v| (v - top).exp()).sum())
}

/// The index of the largest value that takes part, the first among equals, which is marked [`OUT`]; `None` where none takes
/// part.
fn take_best(values: &mut [f32]) -> Option<usize> {
    let free = (0..values.len()).filter(|i| !values[*i].is_nan());
    let best = free.reduce(|a, b| if values[b] > values[a] { b } else { a })?;
    values[best] = OUT;
    Some(best)
}

/// Marks the experts of all but the best groups [`OUT`]. `scores` has room for one value a group. Gives `false` where more
/// groups are asked for than there are.
fn limit_to_groups(values: &mut [f32], g: &Groups, scores: &mut [f32]) -> bool {
    let size = values.len() / g.count;
    for (s, group) in scores.iter_mut().zip(values.chunks_exact(size)) {
        let (mut best, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for v in group.iter().map(|v| in_group(*v)) {
            second = second.max(best.min(v));
            best = best.max(v);
        }
        *s = match g.score {
            GroupScore::Max => best,
            GroupScore::TopTwo => best + second,
            // Those have a code of their own.
            GroupScore::Own => return false,
        };
    }
    if (0..g.used).any(|_| take_best(scores).is_none()) {
        return false;
    }
    for (s, group) in scores.iter().zip(values.chunks_exact_mut(size)) {
        if !s.is_nan() {
            group.fill(OUT);
        }
    }
    true
}
