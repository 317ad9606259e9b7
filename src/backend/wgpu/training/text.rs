//! Expressions of kernels: functions, activations, norms, random numbers.

use crate::ir::{Activation, Arithmetic, Distribution, Function, Norm, NormKind, SelfAttention};

/// Number `i` of those that a kernel reads.
pub fn parameter(i: usize) -> String {
    format!("p[{}].{}", i / 4, ["x", "y", "z", "w"][i % 4])
}

/// A number as a literal.
pub fn number(x: f64) -> String {
    let x = x as f32;
    // The shortest text that reads back as the same number; a negative one in brackets, so that it can stand behind a sign.
    if x < 0.0 { format!("({x:?}f)") } else { format!("{x:?}f") }
}

/// A function of `x`.
pub fn function(f: Function, x: &str) -> String {
    match f {
        Function::Exp => format!("exp({x})"),
        Function::Log => format!("ln({x})"),
        Function::Square => format!("{x} * {x}"),
        Function::Sqrt => format!("sqrt({x})"),
        Function::Reciprocal => format!("1.0 / {x}"),
        Function::Softplus => format!("softplus({x})"),
        Function::Sigmoid => format!("sigmoid({x})"),
        Function::NormalCdf => format!("normal_cdf({x})"),
        Function::Step => format!("select(0.0, 1.0, {x} > 0.0)"),
    }
}

/// Its derivative.
pub fn derivative(f: Function, x: &str) -> String {
    match f {
        Function::Exp => format!("exp({x})"),
        Function::Log => format!("(1.0 / {x})"),
        Function::Square => format!("(2.0 * {x})"),
        Function::Sqrt => format!("(0.5 / sqrt({x}))"),
        Function::Reciprocal => format!("(-1.0 / ({x} * {x}))"),
        Function::Softplus => format!("sigmoid({x})"),
        Function::Sigmoid => format!("(sigmoid({x}) * (1.0 - sigmoid({x})))"),
        Function::NormalCdf => format!("normal_density({x})"),
        Function::Step => "0.0".into(),
    }
}

/// An operation.
pub fn arithmetic(op: Arithmetic, a: &str, b: &str) -> String {
    match op {
        Arithmetic::Add => format!("{a} + {b}"),
        Arithmetic::Sub => format!("{a} - {b}"),
        Arithmetic::Mul => format!("{a} * {b}"),
        Arithmetic::Div => format!("{a} / {b}"),
        Arithmetic::Max => format!("max({a}, {b})"),
    }
}

/// An activation.
pub fn activated(act: Activation, x: &str) -> String {
    match act {
        Activation::Silu => format!("({x} * sigmoid({x}))"),
        Activation::Gelu => format!("({x} * normal_cdf({x}))"),
        Activation::GeluTanh => format!("(0.5 * {x} * (1.0 + gelu_inner({x})))"),
        Activation::Relu => format!("max({x}, 0.0)"),
        Activation::Tanh => format!("tanh_of({x})"),
        Activation::Sigmoid => format!("sigmoid({x})"),
        Activation::Identity => x.into(),
        // As the page has it: the unit with up = 0.
        Activation::ClampedSwiglu { .. } => gated(act, x, "0.0"),
    }
}

/// A gated unit.
pub fn gated(act: Activation, gate: &str, up: &str) -> String {
    let Activation::ClampedSwiglu { alpha, limit } = act else { return format!("{} * {up}", activated(act, gate)) };
    let (alpha, limit) = (number(f64::from(alpha)), number(f64::from(limit)));
    let g = format!("min({gate}, {limit})");
    format!("({g} * sigmoid({alpha} * {g}) * (clamp({up}, -{limit}, {limit}) + 1.0))")
}

/// The derivative of an activation.
pub fn slope(act: Activation, x: &str) -> String {
    match act {
        Activation::Silu => format!("(sigmoid({x}) * (1.0 + {x} * (1.0 - sigmoid({x}))))"),
        Activation::Gelu => format!("(normal_cdf({x}) + {x} * normal_density({x}))"),
        Activation::GeluTanh => format!(
            "(0.5 * (1.0 + gelu_inner({x})) + 0.5 * {x} * (1.0 - gelu_inner({x}) * gelu_inner({x})) \
             * 0.7978845608 * (1.0 + 0.134145 * {x} * {x}))"
        ),
        Activation::Relu => format!("select(0.0, 1.0, {x} > 0.0)"),
        Activation::Tanh => format!("(1.0 - tanh_of({x}) * tanh_of({x}))"),
        Activation::Sigmoid => format!("(sigmoid({x}) * (1.0 - sigmoid({x})))"),
        Activation::Identity => "1.0".into(),
        Activation::ClampedSwiglu { .. } => slopes(act, x, "0.0")[0].clone(),
    }
}

/// The derivatives of a gated unit by gate and up.
pub fn slopes(act: Activation, gate: &str, up: &str) -> [String; 2] {
    let Activation::ClampedSwiglu { alpha, limit } = act else {
        return [format!("({} * {up})", slope(act, gate)), activated(act, gate)];
    };
    let (alpha, limit) = (number(f64::from(alpha)), number(f64::from(limit)));
    let g = format!("min({gate}, {limit})");
    let s = format!("sigmoid({alpha} * {g})");
    let up_part = format!("(clamp({up}, -{limit}, {limit}) + 1.0)");
    [
        format!("select(0.0, {up_part} * {s} * (1.0 + {alpha} * {g} * (1.0 - {s})), {gate} < {limit})"),
        format!("select(0.0, {g} * {s}, abs({up}) < {limit})"),
    ]
}

/// Statements that make `centre` and `scale` of the group of `len` numbers of a that begins at `at`.
pub fn statistics(n: &Norm, len: &str) -> String {
    let centre = match n.kind {
        NormKind::Rms => "let centre = 0.0;".to_string(),
        NormKind::Layer => format!(
            "var total = 0.0;
    for (var j = 0u; j < {len}; j++) {{ total += a[at + j]; }}
    let centre = total / f32({len});"
        ),
    };
    format!(
        "{centre}
    var squares = 0.0;
    for (var j = 0u; j < {len}; j++) {{ squares += (a[at + j] - centre) * (a[at + j] - centre); }}
    let scale = 1.0 / sqrt(squares / f32({len}) + {});",
        number(f64::from(n.eps))
    )
}

/// Statements that make `sum` of the terms of o from 0 to below `count`, 64 at a time: the rounding of a long sum grows with
/// the number of pieces and not of terms.
pub fn long_sum(count: &str, before: &str, term: &str) -> String {
    format!(
        "var sum = 0.0;
    for (var piece = 0u; piece < {count}; piece += 64u) {{
        var part = 0.0;
        for (var o = piece; o < min(piece + 64u, {count}); o++) {{ {before} part += {term}; }}
        sum += part;
    }}"
    )
}

/// A statement that makes `first`, the first row that row `t` sees; `n` are the positions of a window or a chunk.
pub fn first_seen(a: &SelfAttention, n: &str, t: &str, starts: &str) -> String {
    match (a.window, a.attention_chunk) {
        (Some(_), _) => format!("let first = {starts}[{t}] + max({t} - {starts}[{t}] + 1u, {n}) - {n};"),
        (None, Some(_)) => format!("let first = {t} - ({t} - {starts}[{t}]) % {n};"),
        (None, None) => format!("let first = {starts}[{t}];"),
    }
}

/// The random bits of element i of the stream whose part of the counter is `own`.
pub fn bits(own: &str) -> String {
    format!("threefry(draw.xy, vec2<u32>(i, draw.z + {own}))")
}

/// The part of a stream in the counter (`ops/random.rs`).
pub fn stream(stream: u32) -> u32 {
    stream.wrapping_mul(0xc2b2_ae35)
}

/// The least bits whose uniform number is at least p.
pub fn least_bits(p: f64) -> u32 {
    (p * 4_294_967_296.0 - 0.5).ceil().clamp(0.0, f64::from(u32::MAX)) as u32
}

/// A random number of such bits.
pub fn noise(d: Distribution, bits: &str) -> String {
    match d {
        Distribution::Uniform => format!("unit_number({bits}.x)"),
        Distribution::Normal => format!("sqrt(2.0 * minus_ln({bits}.x)) * cos(6.2831853 * unit_number({bits}.y))"),
        Distribution::Gumbel => format!("-ln(minus_ln({bits}.x))"),
    }
}
