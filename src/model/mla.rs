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
    Decoder, Params,
    blocks::{linear, norm},
    loader::{Loader, to_numbers},
    rope,
};
use crate::{
    error::{Error, Result},
    file::{Bytes, Tensor},
    ir::{Attention, CacheDecl, Linear, Op, Rope, ValueId, WeightId},
};

/// Sizes of latent attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latent {
    /// Length of the latent vector of keys and values.
    pub kv_rank: usize,
    /// Length of the latent vector of queries, where they have one.
    pub q_rank: Option<usize>,
    /// Columns of a head that do not rotate.
    pub nope: usize,
    /// Columns of a head that rotate.
    pub rope: usize,
    /// Length of a head's value.
    pub value: usize,
    /// Factor on the dot products.
    pub scale: f32,
}

impl Latent {
    /// Reads it from Hugging Face's config or llama.cpp's keys, of which older files lack the `_mla` ones.
    ///
    /// # Errors
    /// [`Error::Model`] for missing or impossible sizes.
    pub fn read(p: &Params<'_>) -> Result<Latent> {
        let kv_rank = p.usize("attention.kv_lora_rank", "kv_lora_rank")?;
        let rope = p.usize("rope.dimension_count", "qk_rope_head_dim")?;
        let q_rank = p.opt_usize("attention.q_lora_rank", "q_lora_rank")?.filter(|n| *n > 0);
        let (nope, value) = if p.is_gguf() {
            let size = |key: &str| match p.opt_usize(&format!("{key}_mla"), "")? {
                Some(n) => Ok(n),
                None => p.usize(key, ""),
            };
            let key = size("attention.key_length")?;
            let nope = key.checked_sub(rope).filter(|n| *n > 0);
            let nope = nope.ok_or_else(|| Error::Model(format!("keys of {key} columns, of which {rope} rotate")))?;
            (nope, size("attention.value_length")?)
        } else {
            (p.usize("", "qk_nope_head_dim")?, p.usize("", "v_head_dim")?)
        };
        // A longer context sharpens the softmax (YaRN's temperature), by DeepSeek's own factor.
        let all = mscale_all(p)?;
        let yarn = rope::yarn(p)?.map_or(1.0, |y| y.factor);
        let mscale = if all != 0.0 && yarn > 1.0 { 0.1 * all * yarn.ln() + 1.0 } else { 1.0 };
        let mscale = mscale * own_factor(p)?;
        let scale = mscale * mscale / ((nope + rope) as f32).sqrt();
        Ok(Latent { kv_rank, q_rank, nope, rope, value, scale })
    }
}

/// How strongly a longer context sharpens the softmax: DeepSeek's `mscale_all_dim`, 0 where a file has none.
pub(super) fn mscale_all(p: &Params<'_>) -> Result<f32> {
    let all = p.opt_f32("rope.scaling.yarn_log_multiplier", "rope_parameters.mscale_all_dim")?;
    Ok(match all {
        // llama.cpp stores it times 0.1.
        Some(m) if p.is_gguf() => m / 0.1,
        Some(m) => m,
        None => p.opt_f32("", "rope_scaling.mscale_all_dim")?.unwrap_or(0.0),
    })
}

/// A factor that a GGUF may have besides, and that llama.cpp's graph applies to the rotation and to all dot products.
fn own_factor(p: &Params<'_>) -> Result<f32> {
    let factor = p.opt_f32("rope.scaling.attn_factor", "")?.unwrap_or(1.0);
    if factor > 0.0 { Ok(factor) } else { Err(Error::Model(format!("{factor} as a factor of the rotation"))) }
}

/// The rotation's factor where a GGUF has YaRN: llama.cpp's files keep DeepSeek's two factors, which cancel, to themselves.
pub(super) fn rotation(p: &Params<'_>, mut rope: Rope) -> Result<Rope> {
    if p.is_gguf() {
        rope.scale = own_factor(p)?;
    }
    Ok(rope)
}

/// What latent attention adds to the residual, of the layer's normalised input; `heads` are the numbers of the heads,
/// `[T, heads]`.
pub(super) fn attention(
    d: &Decoder,
    m: &Latent,
    rope: &Rope,
    l: &mut Loader<'_>,
    i: usize,
    normed: ValueId,
    heads: ValueId,
) -> Result<ValueId> {
    let at = |s: &str| format!("blk.{i}.{s}");
    let head = [m.nope, m.rope];
    let (mut x, mut stem, mut inp) = (normed, "attn_q", d.hidden);
    if let Some(rank) = m.q_rank {
        x = linear(l, &at("attn_q_a.weight"), rank, d.hidden, normed)?; // [T, q_rank]
        x = norm(d, l, &at("attn_q_a_norm.weight"), rank, x)?;
        (stem, inp) = ("attn_q_b", rank);
    }
    let q = at(&format!("{stem}.weight"));
    // Of rows that are `groups` times `sizes[0]` and then `sizes[1]` rows, those of one size.
    let part = |l: &mut Loader<'_>, name: &str, groups: usize, sizes: [usize; 2], which: usize, inp: usize, x| {
        let all = sizes[0] + sizes[1];
        let first = if which == 0 { 0 } else { sizes[0] };
        let rows = (0..groups).map(|g| g * all + first..g * all + first + sizes[which]).collect();
        let weight = l.rows(name, [groups * all, inp], &format!("{name}:{which}"), rows)?;
        l.b.one(Op::Linear(Linear { weight, bias: None }), &[x])
    };
    let q_nope = part(l, &q, d.heads, head, 0, inp, x)?; // [T, heads·nope]
    let q_rope = part(l, &q, d.heads, head, 1, inp, x)?; // [T, heads·rope]
    let kv = at("attn_kv_a_mqa.weight");
    let c = part(l, &kv, 1, [m.kv_rank, m.rope], 0, d.hidden, normed)?; // [T, kv_rank]
    let k_rope = part(l, &kv, 1, [m.kv_rank, m.rope], 1, d.hidden, normed)?; // [T, rope]
    let c = norm(d, l, &at("attn_kv_a_norm.weight"), m.kv_rank, c)?;
    let [absorb, expand] = matrices(l, i, d.heads, [m.nope, m.value], m.kv_rank)?;
    let matrix = |weight| Op::ExpertLinear(Linear { weight, bias: None });
    let q_latent = l.b.one(matrix(absorb), &[q_nope, heads])?; // [T, heads·kv_rank]
    let q_rope = l.b.one(Op::Rope(rope.clone()), &[q_rope])?;
    let k_rope = l.b.one(Op::Rope(rope.clone()), &[k_rope])?;
    let q = l.b.one(Op::JoinHeads { heads: d.heads }, &[q_latent, q_rope])?; // [T, heads·(kv_rank + rope)]
    let k = l.b.one(Op::JoinHeads { heads: 1 }, &[c, k_rope])?; // [T, kv_rank + rope]
    let cache = l.b.cache(CacheDecl { v_in_k: true, ..CacheDecl::new(1, m.kv_rank + m.rope, m.kv_rank) });
    let stored = l.b.one(Op::KvStore { cache }, &[k])?;
    let spec = Attention { cache, heads: d.heads, scale: m.scale, window: None, chunk: None, sinks: None };
    let y = l.b.one(Op::Attend(spec), &[q, stored])?; // [T, heads·kv_rank]
    let y = l.b.one(matrix(expand), &[y, heads])?; // [T, heads·value]
    linear(l, &at("attn_output.weight"), d.hidden, d.heads * m.value, y) // [T, H]
}

/// The two matrices of each head: `[heads, rank, nope]`, from a query to the latent space, and `[heads, value, rank]`, from
/// there to a value. Apart in newer GGUF files, merged (keys first, not transposed) elsewhere.
fn matrices(l: &mut Loader<'_>, layer: usize, heads: usize, sizes: [usize; 2], rank: usize) -> Result<[WeightId; 2]> {
    let (k, v) = (format!("blk.{layer}.attn_k_b.weight"), format!("blk.{layer}.attn_v_b.weight"));
    let shapes = [[heads, rank, sizes[0]], [heads, sizes[1], rank]];
    let [a, b] = if l.is_gguf() && l.has(&k) {
        [l.take(&k)?, l.take(&v)?]
    } else {
        let name = l.file_name(&format!("blk.{layer}.attn_kv_b.weight"));
        let t = l.take(&name)?;
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
    let x = to_numbers(t)?;
    let turned = places().flat_map(|(h, c)| (0..nope).map(move |n| (h * nope + n) * rank + c)).map(|i| x[i]).collect();
    Tensor::from_f32(vec![heads, rank, nope], turned)
}
