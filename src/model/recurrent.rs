//! Layers with recurrent states: gated DeltaNet (Yang et al. 2024) as Qwen3-Next has it, and LFM2's short convolutions.

use super::{Decoder, blocks::linear, loader::Loader};
use crate::{
    error::{Error, Result},
    ir::{Activation, DeltaNet, Norm, Op, ShortConv, ValueId, WeightId},
    ops::short_conv::MOST_TAPS,
};

/// Sizes of gated DeltaNet layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta {
    /// Heads of queries and keys.
    pub k_heads: usize,
    /// Heads of values.
    pub v_heads: usize,
    /// Columns of a query and of a key.
    pub k_dim: usize,
    /// Columns of a value.
    pub v_dim: usize,
    /// Taps of the convolution before it.
    pub taps: usize,
    /// Value heads lie key head after key head within each group (`h % k_heads`), as llama.cpp stores Qwen3.5.
    pub tiled: bool,
}

impl Delta {
    /// Refuses sizes that contradict each other.
    ///
    /// # Errors
    /// [`Error::Model`].
    pub fn check(&self) -> Result<()> {
        let sizes = [self.k_heads, self.v_heads, self.k_dim, self.v_dim];
        if sizes.contains(&0) || self.v_heads % self.k_heads != 0 || !(2..=MOST_TAPS).contains(&self.taps) {
            return Err(Error::Model(format!("linear attention of the sizes {self:?}")));
        }
        Ok(())
    }
}

/// What mixes the tokens of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mixer {
    /// Attention over the KV cache.
    Attention,
    /// Gated DeltaNet.
    Delta(Delta),
    /// A short convolution between two gates.
    Conv {
        /// Its taps.
        taps: usize,
    },
}

/// x + the mixer's output; `normed` is the layer's normalised input.
pub(super) fn mixed(
    d: &Decoder,
    l: &mut Loader<'_>,
    mixer: Mixer,
    i: usize,
    x: ValueId,
    normed: ValueId,
) -> Result<ValueId> {
    let y = match mixer {
        Mixer::Delta(s) => delta(d, l, &s, i, normed)?,
        Mixer::Conv { taps } => short_conv(d, l, taps, i, normed)?,
        Mixer::Attention => return Err(Error::Graph("attention has no recurrent state".into())),
    };
    l.b.one(Op::Add, &[x, y])
}

/// W_o · (norm(delta(conv(qkv), a, b)) · silu(z)).
fn delta(d: &Decoder, l: &mut Loader<'_>, s: &Delta, i: usize, x: ValueId) -> Result<ValueId> {
    let at = |name: &str| format!("blk.{i}.{name}");
    let (keys, values) = (s.k_heads * s.k_dim, s.v_heads * s.v_dim);
    let [qkv, z] = qkv_and_z(d, l, s, i)?;
    let [b, a] = beta_and_alpha(d, l, s, i)?;
    let qkv = plain(l, qkv, x)?; // [T, 2·Hk·Dk + Hv·Dv]
    let z = plain(l, z, x)?; // [T, Hv·Dv]
    let (b, a) = (plain(l, b, x)?, plain(l, a, x)?); // [T, Hv]
    let weight = l.conv(&at("ssm_conv1d.weight"), 2 * keys + values, s.taps)?;
    let state = l.b.state((s.taps - 1) * (2 * keys + values));
    let conv = ShortConv { weight, bias: None, taps: s.taps, act: Some(Activation::Silu), state };
    let qkv = l.b.one(Op::ShortConv(conv), &[qkv])?;
    // GGUF holds A, other files its logarithm.
    let decay = match l.is_gguf() {
        true => l.vector(&at("ssm_a"), s.v_heads)?,
        false => l.vector_of(&at("ssm_a"), s.v_heads, |x| -x.exp())?,
    };
    let dt_bias = l.vector(&at("ssm_dt.bias"), s.v_heads)?;
    let state = l.b.state(s.v_heads * s.k_dim * s.v_dim);
    let Delta { k_heads, v_heads, k_dim, v_dim, tiled, .. } = *s;
    let op = DeltaNet { k_heads, v_heads, k_dim, v_dim, decay, dt_bias, tiled, state };
    let y = l.b.one(Op::DeltaNet(op), &[qkv, a, b])?; // [T, Hv·Dv]
    // This norm's weight is stored as it is, whatever the others do.
    let weight = l.vector(&at("ssm_norm.weight"), s.v_dim)?;
    let y = l.b.one(Op::RmsNorm(Norm::rms(weight, d.eps)), &[y])?;
    let y = l.b.one(Op::Glu(Activation::Silu), &[z, y])?;
    linear(l, &at("ssm_out.weight"), d.hidden, values, y)
}

fn plain(l: &mut Loader<'_>, weight: WeightId, x: ValueId) -> Result<ValueId> {
    l.b.one(Op::Linear(crate::ir::Linear { weight, bias: None }), &[x])
}

/// The projections to q, k and v (together) and to the gate z. Either two matrices, or one whose rows come key head after
/// key head, each with its q, k, v and z (Qwen3-Next's checkpoints, and the first GGUF files of it).
fn qkv_and_z(d: &Decoder, l: &mut Loader<'_>, s: &Delta, i: usize) -> Result<[WeightId; 2]> {
    let at = |name: &str| format!("blk.{i}.{name}.weight");
    let (keys, values) = (s.k_heads * s.k_dim, s.v_heads * s.v_dim);
    if l.has(&at("attn_qkv")) {
        return Ok([
            l.matrix(&at("attn_qkv"), 2 * keys + values, d.hidden)?,
            l.matrix(&at("attn_gate"), values, d.hidden)?,
        ]);
    }
    let group = values / s.k_heads;
    let each = 2 * s.k_dim + 2 * group;
    let piece = |from: usize, len: usize| (0..s.k_heads).map(move |h| h * each + from..h * each + from + len);
    let qkv = piece(0, s.k_dim).chain(piece(s.k_dim, s.k_dim)).chain(piece(2 * s.k_dim, group));
    let whole = (at("ssm_in"), [each * s.k_heads, d.hidden]);
    Ok([
        l.rows(&whole.0, whole.1, &at("attn_qkv"), qkv.collect())?,
        l.rows(&whole.0, whole.1, &at("attn_gate"), piece(2 * s.k_dim + group, group).collect())?,
    ])
}

/// The projections to b and a, from two matrices or from one, as above.
fn beta_and_alpha(d: &Decoder, l: &mut Loader<'_>, s: &Delta, i: usize) -> Result<[WeightId; 2]> {
    let at = |name: &str| format!("blk.{i}.{name}.weight");
    if l.has(&at("ssm_beta")) {
        return Ok([l.matrix(&at("ssm_beta"), s.v_heads, d.hidden)?, l.matrix(&at("ssm_alpha"), s.v_heads, d.hidden)?]);
    }
    let group = s.v_heads / s.k_heads;
    let piece = |from: usize| (0..s.k_heads).map(move |h| 2 * h * group + from..2 * h * group + from + group);
    let whole = (at("ssm_ba"), [2 * s.v_heads, d.hidden]);
    Ok([
        l.rows(&whole.0, whole.1, &at("ssm_beta"), piece(0).collect())?,
        l.rows(&whole.0, whole.1, &at("ssm_alpha"), piece(group).collect())?,
    ])
}

/// W_o · (c · conv(b · x)) with b, c and x from one projection.
fn short_conv(d: &Decoder, l: &mut Loader<'_>, taps: usize, i: usize, x: ValueId) -> Result<ValueId> {
    let at = |name: &str| format!("blk.{i}.shortconv.{name}.weight");
    let (n, name) = (d.hidden, at("in_proj"));
    let part = |l: &mut Loader<'_>, j: usize, part: &str| {
        let rows = std::iter::once(j * n..(j + 1) * n).collect();
        let w = l.rows(&name, [3 * n, n], &at(part), rows)?;
        plain(l, w, x)
    };
    let (b, c, x) = (part(l, 0, "in_b")?, part(l, 1, "in_c")?, part(l, 2, "in_x")?); // [T, H]
    let bx = l.b.one(Op::Glu(Activation::Identity), &[b, x])?;
    let weight = l.conv(&at("conv"), n, taps)?;
    let state = l.b.state((taps - 1) * n);
    let y = l.b.one(Op::ShortConv(ShortConv { weight, bias: None, taps, act: None, state }), &[bx])?;
    let y = l.b.one(Op::Glu(Activation::Identity), &[c, y])?;
    linear(l, &at("out_proj"), n, n, y)
}
