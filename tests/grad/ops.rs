//! Rules, op by op.

use super::net::Net;
use moeray::ir::{
    Activation, Arithmetic, Axis, Function, Linear, Math, Norm, NormKind, Op, RopePairs, Rotation, SelfAttention,
};

/// Rows that break things: one, primes, more than a head has columns.
const ROWS: [usize; 6] = [1, 2, 3, 5, 7, 13];

/// Runs a case on all numbers of rows.
fn each(what: &str, build: impl Fn(&mut Net)) {
    for (i, rows) in ROWS.into_iter().enumerate() {
        let mut net = Net::new(rows, 100 + i as u64);
        build(&mut net);
        net.check(&format!("{what}, {rows} rows"), &[]);
    }
}

/// The first rows of sequences of 4 rows.
fn starts(net: &mut Net) -> moeray::ir::ValueId {
    let rows = net.feed.rows;
    net.ids("starts", 1, (0..rows).map(|r| (r - r % 4) as u32).collect())
}

#[test]
pub fn gradient_of_embed() {
    each("embed", |n| {
        let table = n.weight("table", &[5, 3]);
        n.feed.tokens = (0..n.feed.rows).map(|r| (r * r % 4) as u32).collect();
        let ids = n.b.one(Op::Tokens, &[]).unwrap();
        let y = n.b.one(Op::Embed { table, scale: 1.5 }, &[ids]).unwrap();
        n.enters(y);
    });
}

#[test]
pub fn gradient_of_norms() {
    for (kind, groups, with_bias) in
        [(NormKind::Rms, 1, false), (NormKind::Rms, 3, true), (NormKind::Layer, 1, true), (NormKind::Layer, 2, false)]
    {
        each(&format!("{kind:?} in {groups}"), |n| {
            let weight = n.weight("w", &[5]);
            let bias = with_bias.then(|| n.weight("b", &[5]));
            let x = n.input(5 * groups);
            let y = n.b.one(Op::RmsNorm(Norm { kind, weight, bias, eps: 1e-2 }), &[x]).unwrap();
            n.enters(y);
        });
    }
}

#[test]
pub fn gradient_of_linear() {
    each("linear", |n| {
        let l = Linear { weight: n.weight("w", &[4, 3]), bias: Some(n.weight("b", &[4])) };
        let x = n.input(3);
        let y = n.b.one(Op::Linear(l), &[x]).unwrap();
        // A tied matrix: its second use adds to the same gradient.
        let z = n.b.one(Op::Linear(Linear { bias: None, ..l }), &[x]).unwrap();
        n.enters(y);
        n.enters(z);
    });
}

#[test]
pub fn gradient_of_rotate() {
    for (pairs, inverse) in [(RopePairs::Interleaved, false), (RopePairs::Halves, true)] {
        each("rotate", |n| {
            let (x, starts) = (n.input(12), starts(n));
            let freq = vec![1.0, 0.3].into();
            let temperature = inverse.then_some(moeray::ir::Temperature { every: 2, scale: 0.3 });
            let r = Rotation { head_dim: 6, dims: 4, pairs, freq, scale: 1.5, temperature, inverse };
            let y = n.b.math(Math::Rotate(r), &[x, starts]).unwrap();
            n.enters(y);
        });
    }
}

#[test]
pub fn gradient_of_self_attend() {
    let plain = SelfAttention {
        heads: 4,
        kv_heads: 2,
        k_dim: 3,
        v_dim: 2,
        scale: 0.6,
        window: None,
        attention_chunk: None,
        sinks: None,
    };
    for (what, window, attention_chunk, sinks) in
        [("all", None, None, false), ("window", Some(2), None, true), ("chunks", None, Some(3), false)]
    {
        each(&format!("self_attend {what}"), |n| {
            let (q, k, v, starts) = (n.input(12), n.input(6), n.input(4), starts(n));
            let sinks = sinks.then(|| n.weight("sinks", &[4]));
            let a = SelfAttention { window, attention_chunk, sinks, ..plain };
            let y = n.b.add(Op::Math(Math::SelfAttend(a)), &[q, k, v, starts]).unwrap()[0];
            n.enters(y);
        });
    }
}

#[test]
pub fn gradient_of_cross_entropy() {
    each("cross_entropy", |n| {
        let x = n.input(6);
        let targets = (0..n.feed.rows).map(|r| (r * 5 % 6) as u32).collect();
        let targets = n.ids("targets", 1, targets);
        let y = n.b.add(Op::Math(Math::CrossEntropy), &[x, targets]).unwrap()[0];
        n.enters(y);
    });
}

#[test]
pub fn gradient_of_elementwise_ops() {
    each("add, scale, join_heads, sigmoid_gate", |n| {
        let (x, y, g) = (n.input(4), n.input(4), n.input(1));
        let sum = n.b.one(Op::Add, &[x, y]).unwrap();
        let scaled = n.b.one(Op::Scale(-0.75), &[sum]).unwrap();
        let gated = n.b.one(Op::SigmoidGate, &[scaled, g]).unwrap();
        let joined = n.b.one(Op::JoinHeads { heads: 2 }, &[gated, x]).unwrap();
        n.enters(joined);
        n.enters(scaled);
    });
}

#[test]
pub fn gradient_of_activations() {
    let acts = [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Tanh,
        Activation::Sigmoid,
        Activation::Identity,
        Activation::ClampedSwiglu { alpha: 1.702, limit: 1.0 },
    ];
    for act in acts {
        for rows in [1, 3, 5] {
            let mut n = Net::new(rows, 7 + rows as u64);
            // Away from the kinks at 0, 1 and −1, which the affine map leaves there.
            let far = |n: &mut Net| {
                let x = n.numbers(rows * 3).into_iter().map(|v| {
                    let y = 1.25 * f64::from(v) + 0.125;
                    let near = [-1.0, 0.0, 1.0].iter().any(|k: &f64| (y - k).abs() < 0.02);
                    f64::from(v) + if near { 0.05 } else { 0.0 }
                });
                let x = x.collect();
                n.input_of(3, x)
            };
            let (g, u) = (far(&mut n), far(&mut n));
            let y = n.b.one(Op::Glu(act), &[g, u]).unwrap();
            n.enters(y);
            if !matches!(act, Activation::ClampedSwiglu { .. }) {
                let y = n.b.one(Op::Act(act), &[g]).unwrap();
                n.enters(y);
            }
            n.check(&format!("{act:?}, {rows} rows"), &[]);
        }
    }
}

#[test]
pub fn gradient_of_functions() {
    use Function::{Exp, Log, NormalCdf, Reciprocal, Sigmoid, Softplus, Sqrt, Square, Step};
    for f in [Exp, Log, Square, Sqrt, Reciprocal, Softplus, Sigmoid, NormalCdf, Step] {
        each(&format!("{f:?}"), |n| {
            let x = n.input(3);
            // Where a function needs it, its operand is positive.
            let positive = n.b.apply(Softplus, x).unwrap();
            let positive = n.b.shifted(positive, 0.5).unwrap();
            let y = n.b.apply(f, if matches!(f, Log | Sqrt | Reciprocal) { positive } else { x }).unwrap();
            n.enters(y);
            let both = n.b.plus(y, x).unwrap();
            n.enters(both);
        });
    }
}

#[test]
pub fn gradient_of_arithmetic_with_repeated_operands() {
    for op in [Arithmetic::Add, Arithmetic::Sub, Arithmetic::Mul, Arithmetic::Div, Arithmetic::Max] {
        each(&format!("{op:?}"), |n| {
            let (x, y, col) = (n.input(3), n.input(3), n.input(1));
            let y = n.b.apply(Function::Softplus, y).unwrap();
            // Of a maximum the operands are so far apart that no difference changes the choice.
            let y = n.b.shifted(y, if op == Arithmetic::Max { 4.0 } else { 0.5 }).unwrap();
            let row = n.b.mean_rows(y).unwrap();
            let one = n.b.mean_all(y).unwrap();
            let mut pairs = vec![(x, y), (x, row), (col, y), (x, one), (one, x), (row, x)];
            if op != Arithmetic::Max {
                pairs.extend([(one, y), (row, y), (row, one)]);
            }
            for (a, b) in pairs {
                let b = if op == Arithmetic::Div && b == x { y } else { b };
                let z = n.b.math(Math::Binary(op), &[a, b]).unwrap();
                n.enters(z);
            }
        });
    }
}

#[test]
pub fn gradient_of_reductions() {
    each("reduce, expand, softmax, log_sum_exp", |n| {
        let x = n.input(6);
        for (axis, mean) in [(Axis::Rows, false), (Axis::Rows, true), (Axis::Cols, false), (Axis::Cols, true)] {
            let y = n.b.math(Math::Reduce { axis, mean }, &[x]).unwrap();
            n.enters(y);
            let z = n.b.math(Math::Expand { mean }, &[y, x]).unwrap();
            let z = n.b.times(z, x).unwrap();
            n.enters(z);
        }
        let one = n.b.sum_all(x).unwrap();
        let z = n.b.math(Math::Expand { mean: true }, &[one, x]).unwrap();
        n.enters(z);
        for groups in [1, 2, 3] {
            let p = n.b.math(Math::Softmax { groups }, &[x]).unwrap();
            n.enters(p);
        }
        let y = n.b.math(Math::LogSumExp, &[x]).unwrap();
        n.enters(y);
    });
}

#[test]
pub fn gradient_of_dropout_and_noise() {
    each("dropout", |n| {
        let x = n.input(5);
        let y = n.b.math(Math::Dropout { p: 0.3, stream: 4 }, &[x]).unwrap();
        n.enters(y);
        let distribution = moeray::ir::Distribution::Normal;
        let noise = n.b.math(Math::Noise { distribution, cols: 5, stream: 5 }, &[]).unwrap();
        let z = n.b.times(noise, x).unwrap();
        n.enters(z);
    });
}
