//! Training on the CPU, on all threads: products (`gemm`), experts (`experts`), attention (`attend`), ops number by number (`vectors`), row by row
//! (`rows`), by tables (`lookup`) and sums over rows (`sums`) in vectors; blocks of rows of others (`blocks`), and what is left, by the
//! pages' reference code in f32.
//!
//! Weights that are trained are f32; frozen ones are read in their own format, a row at a time, so that adapters are trained on
//! quantised files. Every number is computed by one thread in one order: results do not depend on the number of threads.

mod attend;
mod attend_tiles;
mod blocks;
mod experts;
mod gemm;
mod lookup;
mod rows;
mod source;
mod spare;
mod sums;
mod vectors;

use super::{Options, buffer::Out, check_available, pool, pool::Pool, router::choose, simd_level};
use crate::{
    backend::training::{
        Training,
        walk::{Nodes, Walk},
    },
    error::{Error, Result},
    graph::TrainProgram,
    ir::{Grad, Linear, Math, Node, Op, Router, WeightId},
    ops::{
        Array, Weights, self_attend,
        train::{Operands, Scope, Value},
    },
};
use experts::{Experts, Slots};
use gemm::{Left, Machine, Right, Source, Start, Target, gemm};
use source::with_rows;
use spare::Spare;

/// Rows of an item of routers.
const ROUTED: usize = 64;

/// Trains a program on the CPU.
///
/// # Errors
/// [`crate::Error::Invalid`] for 0 threads, [`crate::Error::Unsupported`] for a SIMD level that the processor lacks.
pub fn train(program: TrainProgram, options: &Options) -> Result<Box<dyn Training>> {
    let simd_level = options.simd_level.unwrap_or_else(simd_level::best);
    check_available(simd_level)?;
    let pool = Pool::new(options.threads.unwrap_or_else(pool::default_threads))?;
    Ok(Box::new(Walk::<f32, _>::new(program.fused(), CpuNodes { pool, simd_level, spare: Spare::default() })))
}

struct CpuNodes {
    pool: Pool,
    simd_level: simd_level::SimdLevel,
    spare: Spare,
}

impl Nodes<f32> for CpuNodes {
    fn describe(&self) -> String {
        format!("cpu ({} threads, {})", self.pool.threads(), self.simd_level.name())
    }

    fn begin(&mut self) {
        self.spare.begin();
    }

    fn rest(&mut self) {
        self.spare = Spare::default();
    }

    fn gone(&mut self, value: Value<f32>) {
        if let Value::Numbers(a) = value {
            self.spare.give(a.data);
        }
    }

    fn eval(&mut self, node: &Node, values: &[Value<f32>], s: &mut Scope<'_, f32>) -> Result<Option<Vec<Value<f32>>>> {
        let made = self.eval_node(node, values, s);
        // Frozen weights are read once each way, and the system has the file: they need not stay beside what is trained.
        let weights = node.op.weights().into_iter().map(|w| (w, s.weights.tensor(w)));
        let frozen = weights.filter(|(w, _)| !matches!(s.weights.owned.get(w.0 as usize), Some(Some(_))));
        frozen.for_each(|(_, t)| t.release(0..t.rows()));
        made
    }
}

fn slots<'a>(x: &Operands<'a, f32>) -> Slots<'a> {
    Slots { x: x.nums(0), ids: x.ids(1) }
}

fn attention<'a>(x: &Operands<'a, f32>) -> self_attend::Operands<'a, f32> {
    self_attend::Operands { q: x.nums(0), k: x.nums(1), v: x.nums(2), starts: x.ids(3) }
}

impl CpuNodes {
    fn machine(&self) -> Machine<'_> {
        Machine { pool: &self.pool, simd_level: self.simd_level, spare: &self.spare }
    }

    fn eval_node(&self, node: &Node, values: &[Value<f32>], s: &mut Scope<'_, f32>) -> Result<Option<Vec<Value<f32>>>> {
        let (x, w) = (Operands { node, values }, s.weights);
        let made = match &node.op {
            Op::Linear(l) => self.linear(x.nums(0), l, w)?,
            Op::ExpertLinear(l) => experts::product(self.machine(), slots(&x), Experts::of(l, w), false)?,
            Op::Math(Math::SelfAttend(a)) => {
                let sinks = a.sinks.map(|s| w.vector(s));
                let made = attend::forward(self.machine(), attention(&x), a, sinks.as_deref())?;
                return Ok(Some(made.map(Value::Numbers).to_vec()));
            }
            Op::Grad(Grad::SelfAttend(a)) => {
                let (o, lse, d) = (x.nums(4), x.nums(5), x.nums(6));
                let made = attend::backward(self.machine(), attention(&x), o, lse, d, a)?;
                return Ok(made.map(|m| m.map(Value::Numbers).to_vec()));
            }
            Op::Router(r) => return self.router(x.nums(0), r, w).map(Some),
            Op::Grad(Grad::LinearInput { weight }) => self.linear_input(x.nums(0), *weight, w)?,
            Op::Grad(Grad::ExpertInput { weight }) => {
                experts::product(self.machine(), slots(&x), Experts::plain(*weight, true, w), false)?
            }
            Op::Math(Math::ExpertSum { weight, transposed }) => {
                experts::product(self.machine(), slots(&x), Experts::plain(*weight, *transposed, w), true)?
            }
            Op::Grad(Grad::Outer { into }) => {
                let Some(to) = &mut s.gradients[into.0 as usize] else { return Ok(None) };
                self.outer(x.nums(0), x.nums(1), to)?;
                return Ok(Some(vec![Value::Nothing]));
            }
            Op::Grad(Grad::ExpertOuter { into }) => {
                let Some(to) = &mut s.gradients[into.0 as usize] else { return Ok(None) };
                let [count, out, inp] = s.graph.weight(*into).shape[..] else { return Ok(None) };
                let own = Slots { x: x.nums(0), ids: x.ids(2) };
                experts::outer(self.machine(), own, x.nums(1), [count, out, inp], to)?;
                return Ok(Some(vec![Value::Nothing]));
            }
            op => {
                if let Some(made) = vectors::eval(self.machine(), &x)? {
                    return Ok(Some(made));
                }
                if let Some(made) = rows::eval(self.machine(), &x, s)? {
                    return Ok(Some(made));
                }
                if let Some(made) = lookup::eval(self.machine(), &x, s)? {
                    return Ok(Some(made));
                }
                if let Some(made) = sums::eval(self.machine(), &x, s)? {
                    return Ok(Some(made));
                }
                return if blocks::by_row(op) { blocks::eval(&self.pool, node, values, s) } else { Ok(None) };
            }
        };
        Ok(Some(vec![Value::Numbers(made)]))
    }

    /// `x Wᵀ + b`.
    fn linear(&self, x: &Array<f32>, l: &Linear, w: Weights<'_, f32>) -> Result<Array<f32>> {
        let out = w.tensor(l.weight).rows();
        let mut y = self.spare.array(x.rows, out);
        let bias = l.bias.map(|b| w.vector(b));
        let start = bias.as_deref().map_or(Start::Zero, Start::Row);
        let to = Target { out: &Out::new(&mut y.data), at: &|r| r * out, start };
        let a = Left { row: &|r| x.row(r), summed: false };
        with_rows(w, l.weight, 0, |rows| {
            let b = Right { rows, summed: false };
            gemm(self.machine(), [x.rows, out, x.cols], a, b, to)
        })?;
        Ok(y)
    }

    /// The choice of every row, as inference makes it.
    fn router(&self, logits: &Array<f32>, r: &Router, w: Weights<'_, f32>) -> Result<Vec<Value<f32>>> {
        let (rows, k) = (logits.rows, r.used);
        let (mut ids, mut weights) = (vec![0u32; rows * k], Array::zeros(rows, k));
        let (to_ids, to_weights) = (Out::new(&mut ids), Out::new(&mut weights.data));
        let (bias, factors) = (r.selection_bias.map(|b| w.vector(b)), r.expert_scale.map(|s| w.vector(s)));
        let failed = std::sync::atomic::AtomicBool::new(false);
        self.pool.run(rows.div_ceil(ROUTED), &|_, block| {
            let mut scratch = vec![0f32; 2 * r.experts];
            for t in block * ROUTED..rows.min((block + 1) * ROUTED) {
                // SAFETY: each row is of one item.
                let (ids, w) = unsafe { (to_ids.slice(t * k, k), to_weights.slice(t * k, k)) };
                if !choose(logits.row(t), r, bias.as_deref(), &mut scratch, ids, w) {
                    failed.store(true, std::sync::atomic::Ordering::Relaxed);
                }
                if let Some(s) = &factors {
                    w.iter_mut().zip(&*ids).for_each(|(w, e)| *w *= s[*e as usize]);
                }
            }
        })?;
        if failed.into_inner() {
            return Err(Error::Graph(format!("a router of the kind `{}` finds too few experts", r.variant())));
        }
        Ok(vec![Value::Ids(ids), Value::Numbers(weights)])
    }

    /// `dy W`.
    fn linear_input(&self, dy: &Array<f32>, weight: WeightId, w: Weights<'_, f32>) -> Result<Array<f32>> {
        let inp = w.tensor(weight).cols();
        let mut dx = self.spare.array(dy.rows, inp);
        let to = Target { out: &Out::new(&mut dx.data), at: &|r| r * inp, start: Start::Zero };
        let a = Left { row: &|r| dy.row(r), summed: false };
        with_rows(w, weight, 0, |rows| {
            gemm(self.machine(), [dy.rows, inp, dy.cols], a, Right { rows, summed: true }, to)
        })?;
        Ok(dx)
    }

    /// `into += dyᵀ x`.
    fn outer(&self, x: &Array<f32>, dy: &Array<f32>, into: &mut [f32]) -> Result<()> {
        let to = Target { out: &Out::new(into), at: &|o| o * x.cols, start: Start::There };
        let a = Left { row: &|r| dy.row(r), summed: true };
        let b = Right { rows: Source::Slices(&|r| x.row(r)), summed: true };
        gemm(self.machine(), [dy.cols, x.cols, x.rows], a, b, to)
    }
}
