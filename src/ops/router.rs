//! `router`: which experts a token takes, and with which weights.
//!
//! From logits `[T, E]`: scores (by [`Score`]); the k largest scores, in descending order, ties to the lower id; their
//! weights are their scores, divided by their sum where `renormalise`, times `scale`.
//!
//! | family | score | renormalise | scale | source |
//! |---|---|---|---|---|
//! | Mixtral | softmax | yes | 1 | Jiang et al. 2024 (softmax of the selected: the same numbers) |
//! | Qwen2-MoE | softmax | as `norm_topk_prob` (no) | 1 | Hugging Face `modeling_qwen2_moe` |
//! | Qwen3-MoE | softmax | as `norm_topk_prob` (yes) | 1 | Hugging Face `modeling_qwen3_moe` |
//! | OLMoE | softmax | as `norm_topk_prob` (no) | 1 | Muennighoff et al. 2024 |
//!
//! Shapes: logits `[T, E]` → ids u32 `[T, k]`, weights `[T, k]`. Tolerance: ids identical as (expert, weight) pairs
//! wherever the reference's scores of the last chosen and the first left-out expert differ by more than 1e-5 of their
//! size; weights 1e-10.

use super::{Array, Phrase, arity, elementwise::sigmoid, f32_of};
use crate::ir::{Router, Score, Type};

/// Shape rule.
///
/// # Errors
/// What does not fit.
pub fn infer(r: &Router, inputs: &[Type]) -> Result<Vec<Type>, Phrase> {
    let [logits] = arity(inputs)?;
    let (rows, cols) = f32_of(&logits)?;
    if cols != r.experts || r.used == 0 || r.used > r.experts {
        return Err(format!("top {} of {} experts on {cols} logits", r.used, r.experts));
    }
    Ok(vec![Type::U32(rows, r.used), Type::F32(rows, r.used)])
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = x.iter().map(|v| (v - max).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|v| v / sum).collect()
}

/// The `k` largest of `x`, in descending order, ties to the lower index; not-a-number counts as the smallest.
pub fn top_k(x: &[f64], k: usize) -> Vec<usize> {
    let key = |i: usize| if x[i].is_nan() { f64::NEG_INFINITY } else { x[i] };
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|a, b| key(*b).total_cmp(&key(*a)).then(a.cmp(b)));
    order.truncate(k);
    order
}

/// Reference code: ids `[T · k]` and weights `[T, k]`.
pub fn eval(logits: &Array, r: &Router) -> (Vec<u32>, Array) {
    let mut ids = Vec::with_capacity(logits.rows * r.used);
    let mut weights = Array::zeros(logits.rows, r.used);
    for t in 0..logits.rows {
        let raw: Vec<f64> = logits.row(t).iter().map(|v| f64::from(*v)).collect();
        let scores = match r.score {
            Score::Softmax => softmax(&raw),
            Score::Sigmoid => raw.iter().map(|v| sigmoid(*v)).collect(),
            Score::SoftmaxOfSelected => raw.clone(),
        };
        // The choice is made on the logits: every score grows with its logit, and scores of far-apart logits round to
        // the same number before the logits do.
        let chosen = top_k(&raw, r.used);
        let mut w: Vec<f64> = chosen.iter().map(|e| scores[*e]).collect();
        if r.score == Score::SoftmaxOfSelected {
            w = softmax(&w);
        }
        let sum = if r.renormalise { w.iter().sum::<f64>() } else { 1.0 };
        for (o, w) in weights.row_mut(t).iter_mut().zip(&w) {
            *o = (w / sum * f64::from(r.scale)) as f32;
        }
        ids.extend(chosen.iter().map(|e| *e as u32));
    }
    (ids, weights)
}
