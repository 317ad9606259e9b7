//! Cases of the ops with recurrent states: in one go, in pieces, token by token, and from the beginning again.

use super::case::{Case, Maker};
use moeray::{
    ir::{Activation, DeltaNet, Op, ShortConv, ValueId},
    quant::DType,
};

/// A sequence in pieces shorter and longer than the convolution, then another sequence.
const STEPS: [(usize, usize, usize); 8] =
    [(3, 0, 1), (1, 3, 1), (1, 4, 1), (7, 5, 0), (1, 12, 1), (65, 13, 1), (2, 0, 1), (1, 2, 1)];

fn conv(m: &mut Maker, x: ValueId, taps: usize, bias: bool, act: Option<Activation>) -> ValueId {
    let n = m.b.graph().cols(x);
    let weight = m.weight(&[taps * n], DType::F32);
    let bias = bias.then(|| m.weight(&[n], DType::F32));
    let state = m.b.state((taps - 1) * n);
    m.one(Op::ShortConv(ShortConv { weight, bias, taps, act, state }), &[x])
}

pub fn short_conv() -> Vec<Case> {
    let table = [
        (2, 1, false, None),
        (3, 64, false, None),
        (4, 100, false, Some(Activation::Silu)),
        (4, 515, true, Some(Activation::Silu)),
        (16, 33, true, Some(Activation::Gelu)),
    ];
    let case = |(taps, n, bias, act)| {
        let mut m = Maker::new(n as u64 + taps as u64);
        let x = m.input(n);
        let y = conv(&mut m, x, taps, bias, act);
        m.finish(format!("short_conv/{taps} taps, {n} channels, bias {bias}, {act:?}"), &[("y0", y)], &STEPS)
    };
    table.into_iter().map(case).collect()
}

pub fn delta_net() -> Vec<Case> {
    let mut cases = vec![];
    for (k_heads, v_heads, k_dim, v_dim, tiled) in
        [(1, 1, 1, 1, false), (2, 2, 8, 8, false), (2, 6, 5, 7, false), (2, 6, 5, 7, true), (1, 2, 128, 128, false)]
    {
        let mut m = Maker::new(k_dim as u64 * 3 + v_heads as u64);
        // From heads that forget within a token to heads that hardly forget.
        let speeds: Vec<f32> = (0..v_heads).map(|h| -4.0 * 0.1f32.powi(h as i32)).collect();
        let decay = m.given(&[v_heads], DType::F32, &speeds);
        let dt_bias = m.weight(&[v_heads], DType::F32);
        let state = m.b.state(v_heads * k_dim * v_dim);
        let d = DeltaNet { k_heads, v_heads, k_dim, v_dim, decay, dt_bias, tiled, state };
        let (qkv, a, b) = (m.input(d.qkv_cols()), m.input(v_heads), m.input(v_heads));
        let y = m.one(Op::DeltaNet(d), &[qkv, a, b]);
        let name = format!("delta_net/{v_heads} heads of {v_dim} on {k_heads} of {k_dim}, tiled {tiled}");
        cases.push(m.finish(name, &[("y0", y)], &STEPS));
    }
    cases
}

/// Two states in one graph, and the gates around them.
pub fn gates() -> Vec<Case> {
    let mut m = Maker::new(9);
    let (x, g) = (m.input(72), m.input(72));
    let y = m.one(Op::Glu(Activation::Identity), &[g, x]);
    let y = conv(&mut m, y, 3, false, None);
    let z = conv(&mut m, y, 4, false, Some(Activation::Silu));
    let z = m.one(Op::Glu(Activation::Sigmoid), &[g, z]);
    vec![m.finish("recurrent/gates", &[("y0", y), ("y1", z)], &STEPS)]
}
