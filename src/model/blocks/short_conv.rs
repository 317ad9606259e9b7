//! A short convolution of each hidden column between two gates, as LFM2 has it.

use super::{
    Site,
    linear::{linear, plain},
};
use crate::{
    error::Result,
    ir::{Activation, Op, ShortConv, ValueId},
    model::{decoder::ConvSpec, loader::Loader},
};

/// W_o · (c · conv(b · x)) with b, c and x from one projection.
pub(in crate::model) fn short_conv(l: &mut Loader<'_>, site: &Site, c: &ConvSpec, x: ValueId) -> Result<ValueId> {
    let at = |name: &str| site.weight(&format!("shortconv.{name}"));
    let (n, name, taps) = (site.hidden, at("in_proj"), c.taps);
    let part = |l: &mut Loader<'_>, j: usize, part: &str| {
        let rows = std::iter::once(j * n..(j + 1) * n);
        let w = l.rows(&name, [3 * n, n], &at(part), rows)?;
        plain(l, w, x)
    };
    let (b, c, x) = (part(l, 0, "in_b")?, part(l, 1, "in_c")?, part(l, 2, "in_x")?); // [T, H]
    let bx = l.b.one(Op::Glu(Activation::Identity), &[b, x])?; // [T, H]
    let weight = l.conv(&at("conv"), n, taps)?;
    let state = l.b.state((taps - 1) * n);
    let y = l.b.one(Op::ShortConv(ShortConv { weight, bias: None, taps, act: None, state }), &[bx])?; // [T, H]
    let y = l.b.one(Op::Glu(Activation::Identity), &[c, y])?; // [T, H]
    linear(l, &at("out_proj"), n, n, y) // [T, H]
}
