//! Attention with heads of queries that share heads of keys and values.

use super::{
    Site,
    linear::plain,
    norm::{norm, unweighted},
};
use crate::{
    error::Result,
    ir::{Activation, Attention, CacheDecl, Linear, Op, Rope, RopePairs, Temperature, ValueId},
    model::{
        decoder::{AttentionSpec, Bias, NormOver, Position, Span},
        loader::Loader,
    },
};

/// W_o · attention(x) of the layer's normalised input x.
pub(in crate::model) fn attention(l: &mut Loader<'_>, site: &Site, a: &AttentionSpec, x: ValueId) -> Result<ValueId> {
    let (q, gate) = if a.gated {
        let [q, gate] = gated_query(l, site, a, x)?;
        (q, Some(gate))
    } else {
        (part_of_qkv(l, site, a, 0, x)?, None) // [T, heads·D]
    };
    let k = part_of_qkv(l, site, a, 1, x)?; // [T, kv_heads·D]
    let mut v = if a.k_eq_v { k } else { part_of_qkv(l, site, a, 2, x)? }; // [T, kv_heads·D]
    if a.v_norm {
        v = unweighted(l, &site.norm, &site.weight("attn_v_norm"), a.head_dim, v)?; // [T, kv_heads·D]
    }
    let [q, k] = qk_norm_rope(l, site, a, [q, k])?;
    let cache = l.b.cache(CacheDecl::new(a.kv_heads, a.head_dim, a.head_dim));
    let stored = l.b.one(Op::KvStore { cache }, &[k, v])?;
    let sinks = if a.sinks { Some(l.vector(&site.weight("attn_sinks"), a.heads)?) } else { None }; // [heads]
    let (window, attention_chunk) = match a.span {
        Span::Context => (None, None),
        Span::Window(n) => (Some(n), None),
        Span::AttentionChunk(n) => (None, Some(n)),
    };
    let spec = Attention { cache, heads: a.heads, scale: a.scale, window, attention_chunk, sinks };
    let mut y = l.b.one(Op::Attend(spec), &[q, stored])?; // [T, heads·D]
    if let Some(gate) = gate {
        y = l.b.one(Op::Glu(Activation::Sigmoid), &[gate, y])?; // [T, heads·D]
    }
    // The output projection has no bias, unless the file says otherwise.
    projection(l, &site.at("attn_output"), [site.hidden, a.heads * a.head_dim], Bias::IfPresent, y) // [T, H]
}

/// Queries (0), keys (1) or values (2), from a matrix of their own or from one that has the rows of all three in this order.
fn part_of_qkv(l: &mut Loader<'_>, site: &Site, a: &AttentionSpec, which: usize, x: ValueId) -> Result<ValueId> {
    let (q_cols, kv_cols) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
    let (stem, first, cols) =
        [("attn_q", 0, q_cols), ("attn_k", q_cols, kv_cols), ("attn_v", q_cols + kv_cols, kv_cols)][which];
    let (own, joined) = (site.weight(stem), site.weight("attn_qkv"));
    if l.has(&own) || !l.has(&joined) {
        return projection(l, &site.at(stem), [cols, site.hidden], a.bias, x);
    }
    let rows = std::iter::once(first..first + cols);
    let weight = l.rows(&joined, [q_cols + 2 * kv_cols, site.hidden], &own, rows)?;
    plain(l, weight, x)
}

/// A projection `[out, inp]` with its bias.
fn projection(l: &mut Loader<'_>, stem: &str, [out, inp]: [usize; 2], bias: Bias, x: ValueId) -> Result<ValueId> {
    let weight = l.matrix(&format!("{stem}.weight"), out, inp)?;
    let name = format!("{stem}.bias");
    let bias = if bias == Bias::Yes || l.has(&name) { Some(l.vector(&name, out)?) } else { None };
    l.b.one(Op::Linear(Linear { weight, bias }), &[x])
}

/// Queries `[T, heads·D]` and the gate of the attention's output `[T, heads·D]`, from one matrix that has the rows of each
/// head's query and then those of its gate.
fn gated_query(l: &mut Loader<'_>, site: &Site, a: &AttentionSpec, x: ValueId) -> Result<[ValueId; 2]> {
    let (name, n) = (site.weight("attn_q"), a.head_dim);
    let mut half = |which: usize, part: &str| {
        let rows = (0..a.heads).map(|h| (2 * h + which) * n..(2 * h + which + 1) * n);
        let weight = l.rows(&name, [2 * a.heads * n, site.hidden], part, rows)?;
        plain(l, weight, x)
    };
    Ok([half(0, &name)?, half(1, &site.weight("attn_q_gate"))?])
}

/// Queries and keys normalised and rotated, as the layer has it.
fn qk_norm_rope(l: &mut Loader<'_>, site: &Site, a: &AttentionSpec, qk: [ValueId; 2]) -> Result<[ValueId; 2]> {
    let normed = |l: &mut Loader<'_>, qk: [ValueId; 2], after_rope: bool| match a.qk_norm {
        Some(n) if n.after_rope == after_rope => qk_norm(l, site, a, n.over, qk),
        _ => Ok(qk),
    };
    let [q, k] = normed(l, qk, false)?;
    let rotated = match &a.position {
        Position::Rope(spec) => {
            let rope = spec.rope()?;
            [l.b.one(Op::Rope(rope.clone()), &[q])?, l.b.one(Op::Rope(rope), &[k])?]
        }
        Position::Unrotated(None) => [q, k],
        Position::Unrotated(Some(t)) => [l.b.one(Op::Rope(still(a.head_dim, *t)), &[q])?, k],
    };
    normed(l, rotated, true)
}

/// Queries `[T, heads·D]` and keys `[T, kv_heads·D]`, normalised.
fn qk_norm(
    l: &mut Loader<'_>,
    site: &Site,
    a: &AttentionSpec,
    over: NormOver,
    [q, k]: [ValueId; 2],
) -> Result<[ValueId; 2]> {
    let names = [site.weight("attn_q_norm"), site.weight("attn_k_norm")];
    let cols = match over {
        NormOver::Unweighted => {
            let q = unweighted(l, &site.norm, &names[0], a.head_dim, q)?;
            return Ok([q, unweighted(l, &site.norm, &names[1], a.head_dim, k)?]);
        }
        NormOver::PerHead => [a.head_dim; 2],
        NormOver::WholeRow => [a.heads * a.head_dim, a.kv_heads * a.head_dim],
    };
    Ok([norm(l, &site.norm, &names[0], cols[0], q)?, norm(l, &site.norm, &names[1], cols[1], k)?])
}

/// A rotation by angles of 0, which leaves the temperature alone of what a rotation does.
fn still(head_dim: usize, temperature: Temperature) -> Rope {
    Rope {
        head_dim,
        dims: head_dim,
        pairs: RopePairs::Interleaved,
        inv_freq: vec![0.0; head_dim / 2].into(),
        scale: 1.0,
        long: None,
        temperature: Some(temperature),
    }
}
