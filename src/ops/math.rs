//! The arithmetic that losses and routers in training are made of.
//!
//! | op | formula | gradient (dy: of the result) |
//! |---|---|---|
//! | `constant` | one value in `[1, cols]` | none |
//! | `affine` | factor · x + shift | factor · dy |
//! | `unary` | f(x) | f'(x) · dy, as [`derivative`] has it |
//! | `binary` | a ∘ b; an operand with one row or column is repeated | by the rules of calculus, summed over what was repeated |
//! | `reduce` | Σ or mean over rows `[1, c]` or columns `[R, 1]` | `expand` of dy, by a mean divided |
//! | `expand` | x repeated to the shape of the second operand | `reduce` of dy |
//! | `softmax` | e^x / Σ e^x, in groups of neighbouring columns | p · (dy − Σ p dy) |
//! | `log_sum_exp` | ln Σ e^x | softmax(x) · dy |
//! | `columns` | some columns | `pad_columns` of dy |
//! | `pad_columns` | zeros around x | `columns` of dy |
//!
//! Means and variances, the loss of squares, z-losses and the balancing losses are graphs of these. Sums are in f64. Tolerance 1e-10.

use super::{Array, Real, arity, elementwise::erf, elementwise::sigmoid, f32_of, router};
use crate::ir::{Arithmetic, Axis, Function, Rows, Type};

/// Shape rule of `binary`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_binary(inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [a, b] = arity(inputs)?;
    let ((ra, ca), (rb, cb)) = (f32_of(&a)?, f32_of(&b)?);
    let rows = match (ra, rb) {
        (Rows::Fixed(1), other) | (other, Rows::Fixed(1)) => other,
        (a, b) if a == b => a,
        (_, _) => return Err(format!("{a} and {b}, of different rows")),
    };
    if ca != cb && ca != 1 && cb != 1 {
        return Err(format!("{a} and {b}, of different columns"));
    }
    Ok(vec![Type::F32(rows, if ca == 1 { cb } else { ca })])
}

/// Shape rule of `reduce`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_reduce(axis: Axis, inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [x] = arity(inputs)?;
    let (rows, cols) = f32_of(&x)?;
    Ok(vec![match axis {
        Axis::Rows => Type::F32(Rows::Fixed(1), cols),
        Axis::Cols => Type::F32(rows, 1),
    }])
}

/// Shape rule of `expand`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_expand(inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [x, like] = arity(inputs)?;
    let ((rx, cx), (rl, cl)) = (f32_of(&x)?, f32_of(&like)?);
    let fits = (rx == rl || rx == Rows::Fixed(1)) && (cx == cl || cx == 1);
    if fits { Ok(vec![Type::F32(rl, cl)]) } else { Err(format!("{x} in the shape of {like}")) }
}

/// Shape rule of `softmax`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_softmax(groups: usize, inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [x] = arity(inputs)?;
    let (_, cols) = f32_of(&x)?;
    if groups == 0 || cols == 0 || cols % groups != 0 {
        return Err(format!("{groups} groups of {cols} columns"));
    }
    Ok(vec![x])
}

/// A function in f64.
pub fn function(f: Function, x: f64) -> f64 {
    match f {
        Function::Exp => x.exp(),
        Function::Log => x.ln(),
        Function::Square => x * x,
        Function::Sqrt => x.sqrt(),
        Function::Reciprocal => 1.0 / x,
        // Written so that no exponential overflows.
        Function::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        Function::Sigmoid => sigmoid(x),
        Function::NormalCdf => 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Function::Step => f64::from(u8::from(x > 0.0)),
    }
}

/// Its derivative.
pub fn derivative(f: Function, x: f64) -> f64 {
    match f {
        Function::Exp => x.exp(),
        Function::Log => 1.0 / x,
        Function::Square => 2.0 * x,
        Function::Sqrt => 0.5 / x.sqrt(),
        Function::Reciprocal => -1.0 / (x * x),
        Function::Softplus => sigmoid(x),
        Function::Sigmoid => sigmoid(x) * (1.0 - sigmoid(x)),
        Function::NormalCdf => (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt(),
        Function::Step => 0.0,
    }
}

/// An operation in f64.
pub fn arithmetic(op: Arithmetic, a: f64, b: f64) -> f64 {
    match op {
        Arithmetic::Add => a + b,
        Arithmetic::Sub => a - b,
        Arithmetic::Mul => a * b,
        Arithmetic::Div => a / b,
        Arithmetic::Max => a.max(b),
    }
}

/// Reference code of `binary`.
pub fn binary<T: Real>(a: &Array<T>, b: &Array<T>, op: Arithmetic) -> Array<T> {
    let at = |x: &Array<T>, r: usize, c: usize| {
        x.data[if x.rows == 1 { 0 } else { r * x.cols } + if x.cols == 1 { 0 } else { c }].get()
    };
    let rows = if a.rows == 1 { b.rows } else { a.rows };
    let mut y = Array::zeros(rows, a.cols.max(b.cols));
    for r in 0..y.rows {
        for c in 0..y.cols {
            y.data[r * y.cols + c] = T::of(arithmetic(op, at(a, r, c), at(b, r, c)));
        }
    }
    y
}

/// Reference code of `reduce`.
pub fn reduce<T: Real>(x: &Array<T>, axis: Axis, mean: bool) -> Array<T> {
    let (mut y, count) = match axis {
        Axis::Rows => (Array::zeros(1, x.cols), x.rows),
        Axis::Cols => (Array::zeros(x.rows, 1), x.cols),
    };
    let by = if mean { count as f64 } else { 1.0 };
    for (i, y) in y.data.iter_mut().enumerate() {
        let sum: f64 = match axis {
            Axis::Rows => (0..x.rows).map(|r| x.data[r * x.cols + i].get()).sum(),
            Axis::Cols => x.row(i).iter().map(|v| v.get()).sum(),
        };
        *y = T::of(sum / by);
    }
    y
}

/// Reference code of `expand`.
pub fn expand<T: Real>(x: &Array<T>, like: &Array<T>, mean: bool) -> Array<T> {
    let zeros = Array::zeros(like.rows, like.cols);
    let by = if mean { (zeros.data.len() as f64 / x.data.len() as f64).max(1.0) } else { 1.0 };
    binary(x, &zeros, Arithmetic::Add).map(|v| v / by)
}

/// Reference code of `softmax`.
pub fn softmax<T: Real>(x: &Array<T>, groups: usize) -> Array<T> {
    let mut y = x.clone();
    for group in y.data.chunks_mut((x.cols / groups).max(1)) {
        let numbers: Vec<f64> = group.iter().map(|v| v.get()).collect();
        group.iter_mut().zip(router::softmax(&numbers)).for_each(|(v, p)| *v = T::of(p));
    }
    y
}

/// Reference code of the gradient of `softmax`, from its result.
pub fn softmax_grad<T: Real>(p: &Array<T>, dy: &Array<T>, groups: usize) -> Array<T> {
    let (mut dx, n) = (dy.clone(), (p.cols / groups).max(1));
    for (dx, p) in dx.data.chunks_mut(n).zip(p.data.chunks(n)) {
        let mean: f64 = dx.iter().zip(p).map(|(d, p)| d.get() * p.get()).sum();
        dx.iter_mut().zip(p).for_each(|(d, p)| *d = T::of(p.get() * (d.get() - mean)));
    }
    dx
}

/// `ln Σ e^x` without overflow.
pub fn log_sum_exp(x: impl Iterator<Item = f64> + Clone) -> f64 {
    let max = x.clone().fold(f64::NEG_INFINITY, f64::max);
    max + x.map(|v| (v - max).exp()).sum::<f64>().ln()
}

/// Reference code of `log_sum_exp`.
pub fn rows_log_sum_exp<T: Real>(x: &Array<T>) -> Array<T> {
    let row = |r: usize| T::of(log_sum_exp(x.row(r).iter().map(|v| v.get())));
    Array { rows: x.rows, cols: 1, data: (0..x.rows).map(row).collect() }
}

/// Reference code of `columns`.
pub fn columns<T: Real>(x: &Array<T>, first: usize, count: usize) -> Array<T> {
    let data = (0..x.rows).flat_map(|r| x.row(r)[first..first + count].to_vec()).collect();
    Array { rows: x.rows, cols: count, data }
}

/// Reference code of `pad_columns`.
pub fn pad_columns<T: Real>(x: &Array<T>, before: usize, after: usize) -> Array<T> {
    let mut y = Array::zeros(x.rows, before + x.cols + after);
    for r in 0..x.rows {
        y.row_mut(r)[before..before + x.cols].copy_from_slice(x.row(r));
    }
    y
}
