//! Ops, a page each: formula, shapes, reference code, and the tolerance that other backends are held to with its reason.
//!
//! | op | page | tolerance of `cpu` and `wgpu` against the reference (NMSE) |
//! |---|---|---|
//! | float weights, every op | each page | 1e-10: f32 sums in another order than the reference's f64 sums |
//! | quantised weights on `wgpu` | [`linear`] | 1e-10: the same dequantised numbers, f32 sums |
//! | the same, many rows by tiles of halves | [`linear`] | 1e-6: weights and activations keep 11 bits |
//! | quantised weights, many rows by tiles of bytes, against the reference with [`linear::Activations::Int8`] | [`linear`] | 1e-10 for one product, 1e-5 for several |
//! | quantised weights on `cpu`, against the reference with the same [`linear::Activations`] | [`linear`] | 1e-10 for one product; for several in a row 1e-7 with 16-bit activations, 1e-5 with 8-bit ones |
//! | f16 KV cache | [`attend`] | 1e-6: keys and values keep 11 bits |
//!
//! Each step of a case is held to it as well as all of them together, and no single number may be off by more than 30 times the
//! root of it, relative to the root mean square.
//!
//! The reference code is slow and obvious: it sums in f64, rounds each result to f32 (or not at all, where it is asked for f64:
//! [`Real`]), and follows the formula.
//!
//! Deliberately absent: devices, shaders, threads.

pub mod attend;
pub mod capacity;
pub mod cross_entropy;
pub mod delta_net;
pub mod elementwise;
pub mod embed;
pub mod experts;
pub mod fused;
pub mod heads;
pub mod linear;
pub mod math;
pub mod random;
pub mod rms_norm;
pub mod rope;
pub mod router;
pub mod self_attend;
pub mod short_conv;
pub mod slots;
pub mod train;

use crate::{
    file::Tensor,
    ir::{Graph, Op, Rows, StateId, Type, WeightId},
};

/// A number as reference code stores it. It computes in f64 and rounds each result to this: f32 as other backends do, or f64,
/// where differences of results are to be as exact as gradients need.
pub trait Real: Copy + Default + PartialOrd + std::fmt::Debug + Send + Sync + 'static {
    /// The number.
    fn get(self) -> f64;
    /// The nearest number of this type.
    fn of(x: f64) -> Self;
}

impl Real for f32 {
    fn get(self) -> f64 {
        f64::from(self)
    }
    fn of(x: f64) -> f32 {
        x as f32
    }
}

impl Real for f64 {
    fn get(self) -> f64 {
        self
    }
    fn of(x: f64) -> f64 {
        x
    }
}

/// A dense activation of the reference: row-major `[rows, cols]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Array<T = f32> {
    /// The number of rows.
    pub rows: usize,
    /// The number of columns.
    pub cols: usize,
    /// The `rows * cols` values, row after row.
    pub data: Vec<T>,
}

impl<T: Real> Array<T> {
    /// An array of zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Array { rows, cols, data: vec![T::default(); rows * cols] }
    }

    /// Row `r`.
    pub fn row(&self, r: usize) -> &[T] {
        &self.data[r * self.cols..(r + 1) * self.cols]
    }

    /// Row `r`, to write.
    pub fn row_mut(&mut self, r: usize) -> &mut [T] {
        &mut self.data[r * self.cols..(r + 1) * self.cols]
    }

    /// The same shape with `f` of every number.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Array { data: self.data.iter().map(|x| T::of(f(x.get()))).collect(), ..*self }
    }

    /// `f` of the numbers of two arrays of one shape.
    pub fn zip(&self, other: &Self, f: impl Fn(f64, f64) -> f64) -> Self {
        let data = self.data.iter().zip(&other.data).map(|(a, b)| T::of(f(a.get(), b.get()))).collect();
        Array { data, ..*self }
    }
}

/// Weights of a graph, dequantised a row at a time.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a, T = f32> {
    /// In the order of the graph's declarations.
    pub tensors: &'a [Tensor],
    /// How activations meet those that are quantised.
    pub activations: linear::Activations,
    /// Numbers that stand in the place of a tensor's, by weight: those that are trained. Weights beyond its end have none.
    pub owned: &'a [Option<Vec<T>>],
}

impl<T: Real> Weights<'_, T> {
    /// The tensor of `w`.
    pub fn tensor(&self, w: WeightId) -> &Tensor {
        &self.tensors[w.0 as usize]
    }

    /// Row `r` of `w`.
    pub fn row(&self, w: WeightId, r: usize) -> Vec<T> {
        let t = self.tensor(w);
        if let Some(Some(own)) = self.owned.get(w.0 as usize) {
            return own[r * t.cols()..(r + 1) * t.cols()].to_vec();
        }
        let mut out = vec![0.0; t.cols()];
        // The row is a whole number of blocks by construction of `Tensor`, so this cannot fail.
        if crate::quant::dequantize(t.dtype(), t.row(r), &mut out).is_err() {
            out.fill(f32::NAN);
        }
        out.into_iter().map(|x: f32| T::of(f64::from(x))).collect()
    }

    /// A one-dimensional weight.
    pub fn vector(&self, w: WeightId) -> Vec<T> {
        self.row(w, 0)
    }
}

/// `into += sums`.
pub(crate) fn add_to<T: Real>(into: &mut [T], sums: &[f64]) {
    into.iter_mut().zip(sums).for_each(|(to, s)| *to = T::of(to.get() + s));
}

pub(crate) fn f32_of(t: &Type) -> Result<(Rows, usize), String> {
    match t {
        Type::F32(r, c) => Ok((*r, *c)),
        other => Err(format!("{other} where numbers are expected")),
    }
}

pub(crate) fn u32_of(t: &Type) -> Result<(Rows, usize), String> {
    match t {
        Type::U32(r, c) => Ok((*r, *c)),
        other => Err(format!("{other} where ids are expected")),
    }
}

pub(crate) fn arity<const N: usize>(inputs: &[Type]) -> Result<[Type; N], String> {
    <[Type; N]>::try_from(inputs).map_err(|_| format!("{} operands instead of {N}", inputs.len()))
}

pub(crate) fn weight_shape(g: &Graph, w: WeightId, want: &[usize]) -> Result<(), String> {
    let d = g.weights.get(w.0 as usize).ok_or("an undeclared weight")?;
    if d.shape == want { Ok(()) } else { Err(format!("weight {} is {:?}, not {want:?}", d.name, d.shape)) }
}

pub(crate) fn matrix_shape(g: &Graph, w: WeightId) -> Result<[usize; 2], String> {
    let d = g.weights.get(w.0 as usize).ok_or("an undeclared weight")?;
    <[usize; 2]>::try_from(d.shape.as_slice()).map_err(|_| format!("weight {} is {:?}, not a matrix", d.name, d.shape))
}

pub(crate) fn experts_shape(g: &Graph, w: WeightId) -> Result<[usize; 3], String> {
    let d = g.weights.get(w.0 as usize).ok_or("an undeclared weight")?;
    <[usize; 3]>::try_from(d.shape.as_slice())
        .map_err(|_| format!("weight {} is {:?}, not [experts, out, in]", d.name, d.shape))
}

/// Checks that a recurrent state has `want` values.
pub(crate) fn state_len(g: &Graph, s: StateId, want: usize) -> Result<(), String> {
    match g.states.get(s.0 as usize) {
        Some(d) if d.len == want => Ok(()),
        Some(d) => Err(format!("a state of {} numbers, not {want}", d.len)),
        None => Err("an undeclared state".into()),
    }
}

/// The types of an op's outputs, by the shape rule on its page.
///
/// # Errors
/// What does not fit, in words; the caller adds the op and its operands.
pub fn infer(op: &Op, inputs: &[Type], graph: &Graph) -> Result<Vec<Type>, String> {
    match op {
        Op::Tokens => arity::<0>(inputs).map(|_| vec![Type::U32(Rows::Tokens, 1)]),
        Op::Input { cols, .. } => arity::<0>(inputs).map(|_| vec![Type::F32(Rows::Tokens, *cols)]),
        Op::Embed { table, .. } => embed::infer(*table, inputs, graph),
        Op::RmsNorm(n) => rms_norm::infer(n, inputs, graph),
        Op::Linear(l) => linear::infer(l, inputs, graph),
        Op::Rope(r) => rope::infer(r, inputs),
        Op::HeadIds { heads } => heads::infer_ids(*heads, inputs),
        Op::JoinHeads { heads } => heads::infer_join(*heads, inputs),
        Op::KvStore { cache } => attend::infer_store(*cache, inputs, graph),
        Op::Attend(a) => attend::infer(a, inputs, graph),
        Op::ShortConv(c) => short_conv::infer(c, inputs, graph),
        Op::DeltaNet(d) => delta_net::infer(d, inputs, graph),
        Op::Add | Op::Glu(_) => elementwise::infer_pair(inputs),
        Op::Scale(_) => elementwise::infer_scale(inputs),
        Op::Act(act) => elementwise::infer_act(*act, inputs),
        Op::SigmoidGate => elementwise::infer_sigmoid_gate(inputs),
        Op::Math(m) => train::infer_math(m, inputs, graph),
        Op::Grad(g) => train::infer_grad(g, inputs, graph),
        Op::TakeOutputs => elementwise::infer_take_outputs(inputs),
        Op::HostExperts { cols, .. } => experts::infer_host(*cols, inputs),
        Op::LocalIds { count, .. } => experts::infer_local(*count, inputs),
        Op::Router(r) => router::infer(r, inputs, graph),
        Op::ScaleExpertInputs => experts::infer_scale_inputs(inputs),
        Op::ExpertLinear(l) => experts::infer_linear(l, inputs, graph),
        Op::ExpertCombine => experts::infer_combine(inputs),
        Op::NormLinears { norm, parts } => fused::infer_norm_linears(norm.as_ref(), parts, inputs, graph),
        Op::RopeStore { q_norm, k_norm, rope, cache, qk_norm_after_rope: _ } => {
            fused::infer_rope_store([q_norm.as_ref(), k_norm.as_ref()], rope, *cache, inputs, graph)
        }
        Op::LinearAdd { linear, gated, factor: _ } => fused::infer_linear_add(linear, *gated, inputs, graph),
        Op::LinearGlu { gate, up, act: _ } => fused::infer_linear_glu(*gate, *up, inputs, graph),
        Op::LinearAct { linear, act } => elementwise::infer_act(*act, &linear::infer(linear, inputs, graph)?),
        Op::NormRouter { norm, linear, router } => fused::infer_norm_router(norm, linear, router, inputs, graph),
        Op::ExpertGlu { gate, up, act: _ } => fused::infer_expert_glu(gate, up, inputs, graph),
        Op::ExpertAct { linear, act } => elementwise::infer_act(*act, &experts::infer_linear(linear, inputs, graph)?),
        Op::ExpertDownAdd { linear, factor: _ } => fused::infer_expert_down_add(linear, inputs, graph),
    }
}
