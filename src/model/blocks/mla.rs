//! Multi-head latent attention (DeepSeek-AI 2024, *DeepSeek-V2*, section 2.1), in its absorbed form.
//!
//! Keys and values of all heads are made of one latent vector c a position: head h has `k = [W_k[h] c; r]` and
//! `v = W_v[h] c`, r being a rotated key that all heads share. The cache holds `[c; r]` only. A score is
//! `q·k = (W_k[h]ᵀ q_nope)·c + q_rope·r`, and a weighted sum of values is `W_v[h]` of the weighted sum of latents: so the
//! two matrices are applied to the query and to the result, a head each, and attention itself is that of many query heads on
//! one key head whose values are the first part of its keys. The same form serves prompts: it costs
//! `heads · kv_lora · (nope + v)` multiplications a token, as expanding the keys and values would, and
//! `heads · (2 kv_lora + rope)` instead of `heads · (nope + rope + v)` a pair of positions.

use super::{
    Site,
    linear::{linear, plain},
    norm::norm,
};
use crate::{
    error::{Error, Result},
    file::{Bytes, Tensor},
    ir::{Attention, CacheDecl, Linear, Op, ValueId, WeightId},
    model::{
        decoder::LatentSpec,
        loader::Loader,
        tensors::{fitted, numbers},
    },
};

/// What latent attention adds to the residual, of the layer's normalised input; `heads` are the numbers of the heads,
/// `[T, heads]`.
pub(in crate::model) fn attention(
    l: &mut Loader<'_>,
    site: &Site,
    m: &LatentSpec,
    normed: ValueId,
    heads: ValueId,
) -> Result<ValueId> {
    let head = [m.nope, m.rope];
    let (mut x, mut stem, mut inp) = (normed, "attn_q", site.hidden);
    if let Some(rank) = m.q_rank {
        x = linear(l, &site.weight("attn_q_a"), rank, site.hidden, normed)?; // [T, q_rank]
        x = norm(l, &site.norm, &site.weight("attn_q_a_norm"), rank, x)?; // [T, q_rank]
        (stem, inp) = ("attn_q_b", rank);
    }
    let q = site.weight(stem);
    // Of rows that are `groups` times `sizes[0]` and then `sizes[1]` rows, those of one size.
    let part = |l: &mut Loader<'_>, name: &str, groups: usize, sizes: [usize; 2], which: usize, inp: usize, x| {
        let all = sizes[0] + sizes[1];
        let first = if which == 0 { 0 } else { sizes[0] };
        let rows = (0..groups).map(|g| g * all + first..g * all + first + sizes[which]);
        let weight = l.rows(name, [groups * all, inp], &format!("{name}:{which}"), rows)?;
        plain(l, weight, x)
    };
    let q_nope = part(l, &q, m.heads, head, 0, inp, x)?; // [T, heads·nope]
    let q_rope = part(l, &q, m.heads, head, 1, inp, x)?; // [T, heads·rope]
    let kv = site.weight("attn_kv_a_mqa");
    let c = part(l, &kv, 1, [m.kv_rank, m.rope], 0, site.hidden, normed)?; // [T, kv_rank]
    let k_rope = part(l, &kv, 1, [m.kv_rank, m.rope], 1, site.hidden, normed)?; // [T, rope]
    let c = norm(l, &site.norm, &site.weight("attn_kv_a_norm"), m.kv_rank, c)?; // [T, kv_rank]
    let [absorb, expand] = matrices(l, site, m.heads, [m.nope, m.value], m.kv_rank)?;
    let matrix = |weight| Op::ExpertLinear(Linear { weight, bias: None });
    let q_latent = l.b.one(matrix(absorb), &[q_nope, heads])?; // [T, heads·kv_rank]
    let rope = m.rotation.rope()?;
    let q_rope = l.b.one(Op::Rope(rope.clone()), &[q_rope])?; // [T, heads·rope]
    let k_rope = l.b.one(Op::Rope(rope), &[k_rope])?; // [T, rope]
    let q = l.b.one(Op::JoinHeads { heads: m.heads }, &[q_latent, q_rope])?; // [T, heads·(kv_rank + rope)]
    let k = l.b.one(Op::JoinHeads { heads: 1 }, &[c, k_rope])?; // [T, kv_rank + rope]
    let cache = l.b.cache(CacheDecl { v_in_k: true, ..CacheDecl::new(1, m.kv_rank + m.rope, m.kv_rank) });
    let stored = l.b.one(Op::KvStore { cache }, &[k])?;
    let spec = Attention { cache, heads: m.heads, scale: m.scale, window: None, attention_chunk: None, sinks: None };
    let y = l.b.one(Op::Attend(spec), &[q, stored])?; // [T, heads·kv_rank]
    let y = l.b.one(matrix(expand), &[y, heads])?; // [T, heads·value]
    linear(l, &site.weight("attn_output"), site.hidden, m.heads * m.value, y) // [T, H]
}

/// The two matrices of each head: `[heads, rank, nope]`, from a query to the latent space, and `[heads, value, rank]`, from
/// there to a value. Apart in newer GGUF files, merged (keys first, not transposed) elsewhere.
fn matrices(l: &mut Loader<'_>, site: &Site, heads: usize, sizes: [usize; 2], rank: usize) -> Result<[WeightId; 2]> {
    let (k, v) = (site.weight("attn_k_b"), site.weight("attn_v_b"));
    let shapes = [[heads, rank, sizes[0]], [heads, sizes[1], rank]];
    let [a, b] = if l.is_gguf() && l.has(&k) {
        [l.take(&k)?, l.take(&v)?]
    } else {
        let name = l.file_name(&site.weight("attn_kv_b"));
        let t = fitted(l.take(&name)?, &[heads * (sizes[0] + sizes[1]), rank]);
        let keys = head_rows(&t, &name, heads, sizes, 0, rank)?;
        let values = head_rows(&t, &name, heads, sizes, 1, rank)?;
        [transposed(&keys, shapes[0])?, values.reshaped(shapes[1].to_vec())?]
    };
    Ok([l.declare(&k, &shapes[0], a)?, l.declare(&v, &shapes[1], b)?])
}

/// Of rows that are, for each head, `sizes[0]` and then `sizes[1]` rows, those of one size; nothing is copied.
fn head_rows(t: &Tensor, name: &str, heads: usize, sizes: [usize; 2], which: usize, inp: usize) -> Result<Tensor> {
    let (all, first) = (sizes[0] + sizes[1], if which == 0 { 0 } else { sizes[0] });
    let wrong =
        || Error::Model(format!("tensor `{name}` has shape {:?}, expected [{}, {inp}]", t.shape(), heads * all));
    if t.shape() != [heads * all, inp] || t.parts().len() != 1 {
        return Err(wrong());
    }
    let bytes = t.row_bytes();
    let part = |h: usize| t.parts()[0].slice((h * all + first) * bytes..(h * all + first + sizes[which]) * bytes);
    let parts = (0..heads).map(part).collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
    Tensor::new(t.dtype(), vec![heads * sizes[which], inp], parts)
}

/// Each head's matrix `[nope, rank]` as `[rank, nope]`, in the type it has where that is a float type, else as f32.
fn transposed(t: &Tensor, [heads, rank, nope]: [usize; 3]) -> Result<Tensor> {
    let places = || (0..heads).flat_map(|h| (0..rank).map(move |c| (h, c)));
    if t.dtype().is_float() {
        let size = t.row_bytes() / t.cols().max(1);
        let mut bytes = Vec::with_capacity(t.byte_len());
        for (h, c) in places() {
            (0..nope).for_each(|n| bytes.extend_from_slice(&t.row(h * nope + n)[c * size..(c + 1) * size]));
        }
        return Tensor::new(t.dtype(), vec![heads, rank, nope], vec![Bytes::from_vec(bytes)]);
    }
    let x = numbers(t)?;
    let moved = places().flat_map(|(h, c)| (0..nope).map(move |n| (h * nope + n) * rank + c)).map(|i| x[i]).collect();
    Tensor::from_f32(vec![heads, rank, nope], moved)
}
