//! Gated DeltaNet (Yang et al. 2024), as Qwen3-Next's checkpoints store it.

use super::{
    Site,
    linear::{linear, plain},
};
use crate::{
    error::Result,
    ir::{Activation, DeltaNet, Norm, Op, ShortConv, ValueId, WeightId},
    model::{decoder::DeltaSpec, loader::Loader},
};

/// W_o · (norm(delta(conv(qkv), a, b)) · silu(z)).
pub(in crate::model) fn delta(l: &mut Loader<'_>, site: &Site, s: &DeltaSpec, x: ValueId) -> Result<ValueId> {
    let (keys, values) = (s.k_heads * s.k_dim, s.v_heads * s.v_dim);
    let [qkv, z] = qkv_and_z(l, site, s)?;
    let [b, a] = beta_and_alpha(l, site, s)?;
    let qkv = plain(l, qkv, x)?; // [T, 2·Hk·Dk + Hv·Dv]
    let z = plain(l, z, x)?; // [T, Hv·Dv]
    let (b, a) = (plain(l, b, x)?, plain(l, a, x)?); // [T, Hv]
    let weight = l.conv(&site.at("ssm_conv1d.weight"), 2 * keys + values, s.taps)?;
    let state = l.b.state((s.taps - 1) * (2 * keys + values));
    let conv = ShortConv { weight, bias: None, taps: s.taps, act: Some(Activation::Silu), state };
    let qkv = l.b.one(Op::ShortConv(conv), &[qkv])?; // [T, 2·Hk·Dk + Hv·Dv]
    // GGUF holds A, other files its logarithm.
    let decay = match l.is_gguf() {
        true => l.vector(&site.at("ssm_a"), s.v_heads)?,
        false => l.vector_of(&site.at("ssm_a"), s.v_heads, |x| -x.exp())?,
    };
    let dt_bias = l.vector(&site.at("ssm_dt.bias"), s.v_heads)?;
    let state = l.b.state(s.v_heads * s.k_dim * s.v_dim);
    let DeltaSpec { k_heads, v_heads, k_dim, v_dim, tiled, .. } = *s;
    let op = DeltaNet { k_heads, v_heads, k_dim, v_dim, decay, dt_bias, tiled, state };
    let y = l.b.one(Op::DeltaNet(op), &[qkv, a, b])?; // [T, Hv·Dv]
    // This norm's weight is stored as it is, whatever the others do.
    let weight = l.vector(&site.at("ssm_norm.weight"), s.v_dim)?;
    let y = l.b.one(Op::RmsNorm(Norm::rms(weight, site.norm.eps)), &[y])?; // [T, Hv·Dv]
    let y = l.b.one(Op::Glu(Activation::Silu), &[z, y])?; // [T, Hv·Dv]
    linear(l, &site.at("ssm_out.weight"), site.hidden, values, y) // [T, H]
}

/// The projections to q, k and v (together) and to the gate z. Either two matrices, or one whose rows come key head after
/// key head, each with its q, k, v and z (Qwen3-Next's checkpoints, and the first GGUF files of it).
fn qkv_and_z(l: &mut Loader<'_>, site: &Site, s: &DeltaSpec) -> Result<[WeightId; 2]> {
    let at = |name: &str| site.weight(name);
    let (keys, values) = (s.k_heads * s.k_dim, s.v_heads * s.v_dim);
    if l.has(&at("attn_qkv")) {
        return Ok([
            l.matrix(&at("attn_qkv"), 2 * keys + values, site.hidden)?,
            l.matrix(&at("attn_gate"), values, site.hidden)?,
        ]);
    }
    let group = values / s.k_heads;
    let each = 2 * s.k_dim + 2 * group;
    let piece = |from: usize, len: usize| (0..s.k_heads).map(move |h| h * each + from..h * each + from + len);
    let qkv = piece(0, s.k_dim).chain(piece(s.k_dim, s.k_dim)).chain(piece(2 * s.k_dim, group));
    let whole = (at("ssm_in"), [each * s.k_heads, site.hidden]);
    Ok([
        l.rows(&whole.0, whole.1, &at("attn_qkv"), qkv)?,
        l.rows(&whole.0, whole.1, &at("attn_gate"), piece(2 * s.k_dim + group, group))?,
    ])
}

/// The projections to b and a, from two matrices or from one, as above.
fn beta_and_alpha(l: &mut Loader<'_>, site: &Site, s: &DeltaSpec) -> Result<[WeightId; 2]> {
    let at = |name: &str| site.weight(name);
    if l.has(&at("ssm_beta")) {
        return Ok([
            l.matrix(&at("ssm_beta"), s.v_heads, site.hidden)?,
            l.matrix(&at("ssm_alpha"), s.v_heads, site.hidden)?,
        ]);
    }
    let group = s.v_heads / s.k_heads;
    let piece = |from: usize| (0..s.k_heads).map(move |h| 2 * h * group + from..2 * h * group + from + group);
    let whole = (at("ssm_ba"), [2 * s.v_heads, site.hidden]);
    Ok([
        l.rows(&whole.0, whole.1, &at("ssm_beta"), piece(0))?,
        l.rows(&whole.0, whole.1, &at("ssm_alpha"), piece(group))?,
    ])
}
