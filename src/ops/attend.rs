//! `kv_store` and `attend`: grouped-query causal attention over the cache.
//!
//! `kv_store` writes the keys and values of this step's T tokens at positions P..P+T. `attend` gives, for query head h of
//! row t, `Σ_j softmax_j(scale · q·k_j) v_j` over the positions `j ≤ P + t` (and `j > P + t − window`, or
//! `floor(j / chunk) = floor((P + t) / chunk)`), with the keys and values of head `h / (heads / kv_heads)`. In a cache with
//! `v_in_k` the value is the first Dv numbers of the key. A sink adds `exp(sink_h)` to the softmax's denominator and nothing
//! else.
//!
//! Sources: Vaswani et al. 2017; Ainslie et al. 2023 (grouped queries); sinks as in GPT-OSS's reference code; chunks as in
//! Hugging Face's `modeling_llama4`. Shapes: q `[T, heads·Dk]`, k `[T, kv_heads·Dk]`, v `[T, kv_heads·Dv]` →
//! `[T, heads·Dv]`.
//!
//! Tolerance: 1e-10 with an f32 cache; 1e-6 with an f16 cache, whose keys and values keep 11 bits (relative error up to
//! 2⁻¹¹, 8e-8 in mean square, on both factors), and with a q8_0 cache, where a number that differs in its last bit between
//! backends may fall on the other side of a tie: one code in some ten thousand, by a 127th of its block's largest. The CPU
//! multiplies a q8_0 cache with queries and weights of 16 bits, 1e-5: beside an outlier Q of its block a query is off by
//! Q / 65534, a score by that times the keys' magnitudes, and a weight by as much in proportion: a percent where queries and
//! keys both have outliers of thirty deviations. (An f16 cache rounds such keys by sixteen times as much.)

use super::{Array, Weights, arity, f32_of, linear::dot, weight_shape};
use crate::ir::{Attention, CacheDecl, CacheId, Graph, Type};

fn decl(g: &Graph, c: CacheId) -> Result<&CacheDecl, String> {
    g.caches.get(c.0 as usize).ok_or_else(|| "an undeclared cache".into())
}

/// Shape rule of `kv_store`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_store(cache: CacheId, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, String> {
    let d = decl(g, cache)?;
    if d.v_in_k {
        let [k] = arity(inputs)?;
        let cols = f32_of(&k)?.1;
        let fits = cols == d.kv_heads * d.k_dim && d.v_dim <= d.k_dim;
        return if fits { Ok(vec![Type::Cache(cache)]) } else { Err(format!("keys of {cols} columns in {d:?}")) };
    }
    let [k, v] = arity(inputs)?;
    let (kc, vc) = (f32_of(&k)?.1, f32_of(&v)?.1);
    if kc != d.kv_heads * d.k_dim || vc != d.kv_heads * d.v_dim {
        return Err(format!("keys of {kc} and values of {vc} columns in {d:?}"));
    }
    Ok(vec![Type::Cache(cache)])
}

/// Shape rule of `attend`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer(a: &Attention, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, String> {
    let [q, c] = arity(inputs)?;
    let (rows, cols) = f32_of(&q)?;
    let d = decl(g, a.cache)?;
    if c != Type::Cache(a.cache) {
        return Err(format!("{c} where cache{} is expected", a.cache.0));
    }
    if d.kv_heads == 0 || a.heads == 0 || a.heads % d.kv_heads != 0 || cols != a.heads * d.k_dim {
        return Err(format!("{} query heads in {cols} columns on {d:?}", a.heads));
    }
    if a.window == Some(0) || a.attention_chunk == Some(0) {
        return Err("a window or a chunk of 0 positions".into());
    }
    if a.window.is_some() && a.attention_chunk.is_some() {
        return Err("a window and chunks at once".into());
    }
    if let Some(s) = a.sinks {
        weight_shape(g, s, &[a.heads])?;
    }
    Ok(vec![Type::F32(rows, a.heads * d.v_dim)])
}

/// A cache of the reference: one row a position.
#[derive(Clone, Debug, PartialEq)]
pub struct Cache {
    /// `[ctx, kv_heads·Dk]`.
    pub k: Array,
    /// `[ctx, kv_heads·Dv]`; empty where values are part of keys.
    pub v: Array,
}

/// Reference code of `kv_store`: `round` makes of a head's numbers what the storage makes of them.
pub fn eval_store(
    k: &Array,
    v: Option<&Array>,
    past: usize,
    d: &CacheDecl,
    cache: &mut Cache,
    round: impl Fn(&mut [f32]),
) {
    for (from, to, cols) in [(Some(k), &mut cache.k, d.k_dim), (v, &mut cache.v, d.v_dim)] {
        let Some(from) = from else { continue };
        for t in 0..from.rows {
            let row = to.row_mut(past + t);
            row.copy_from_slice(from.row(t));
            row.chunks_exact_mut(cols.max(1)).for_each(&round);
        }
    }
}

/// Reference code of `attend`.
pub fn eval(q: &Array, a: &Attention, past: usize, d: &CacheDecl, cache: &Cache, w: Weights<'_>) -> Array {
    let mut out = Array::zeros(q.rows, a.heads * d.v_dim);
    let sinks = a.sinks.map(|s| w.vector(s));
    for t in 0..q.rows {
        let end = past + t + 1;
        let start = a.first_seen(past + t);
        for h in 0..a.heads {
            let kv = h / (a.heads / d.kv_heads);
            let qh = &q.row(t)[h * d.k_dim..(h + 1) * d.k_dim];
            let key = |j: usize| &cache.k.row(j)[kv * d.k_dim..(kv + 1) * d.k_dim];
            let scores: Vec<f64> = (start..end).map(|j| dot(qh, key(j)) * f64::from(a.scale)).collect();
            let sink = sinks.as_ref().map(|s| f64::from(s[h]));
            let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
            let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum = p.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - max).exp());
            for c in 0..d.v_dim {
                let value = |j: usize| match d.v_in_k {
                    true => cache.k.row(j)[kv * d.k_dim + c],
                    false => cache.v.row(j)[kv * d.v_dim + c],
                };
                let acc: f64 = p.iter().zip(start..end).map(|(p, j)| p * f64::from(value(j))).sum();
                out.row_mut(t)[h * d.v_dim + c] = (acc / sum) as f32;
            }
        }
    }
    out
}
