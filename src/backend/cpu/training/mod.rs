//! Training on the CPU, on all threads: products and experts (`gemm`), attention (`attend`), ops number by number (`vectors`), row by row
//! (`rows`), by tables (`lookup`) and sums over rows (`sums`) in vectors; blocks of rows of others (`blocks`), and what is left, by the
//! pages' reference code in f32.
//!
//! Weights that are trained are f32; frozen ones are read in their own format, a row at a time, so that adapters are trained on
//! quantised files. Experts take their tokens' slots in ascending order. Every number is computed by one thread in one order:
//! results do not depend on the number of threads.

mod attend;
mod attend_tiles;
mod blocks;
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
        Array, Weights, experts, self_attend,
        train::{Operands, Scope, Value},
    },
};
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
    Ok(Box::new(Walk::<f32, _>::new(program, CpuNodes { pool, simd_level, spare: Spare::default() })))
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
            Op::ExpertLinear(l) => self.expert_linear(x.nums(0), x.ids(1), l, w)?,
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
            Op::Grad(Grad::ExpertInput { weight }) => self.expert_input(x.nums(0), x.ids(1), *weight, w)?,
            Op::Grad(Grad::Outer { into }) => {
                let Some(to) = &mut s.gradients[into.0 as usize] else { return Ok(None) };
                self.outer(x.nums(0), x.nums(1), to)?;
                return Ok(Some(vec![Value::Nothing]));
            }
            Op::Grad(Grad::ExpertOuter { into }) => {
                let Some(to) = &mut s.gradients[into.0 as usize] else { return Ok(None) };
                let experts = s.graph.weight(*into).shape[0];
                self.expert_outer(x.nums(0), x.nums(1), x.ids(2), experts, to)?;
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

    /// Runs `one` for every expert with its slots: experts side by side, or one after the other on all threads where one has most of
    /// the slots. Both give the same numbers.
    fn each_expert(
        &self,
        ids: &[u32],
        count: usize,
        one: &(dyn Fn(usize, &[usize]) -> Result<()> + Sync),
    ) -> Result<()> {
        let slots = experts::by_expert(ids, count);
        let most = slots.iter().map(Vec::len).max().unwrap_or(0);
        if count < 2 * self.pool.threads() || 2 * most > ids.len() {
            return slots.iter().enumerate().try_for_each(|(e, s)| one(e, s));
        }
        // The largest first: at the end, where threads wait for each other, only small ones are left.
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by_key(|e| std::cmp::Reverse(slots[*e].len()));
        let failed = std::sync::Mutex::new(None);
        self.pool.run(count, &|_, i| {
            let e = order[i];
            if let Err(error) = one(e, &slots[e]) {
                *super::pool::lock_unpoisoned(&failed) = Some(error);
            }
        })?;
        failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Each slot through the matrix of its expert.
    fn expert_linear(&self, x: &Array<f32>, ids: &[u32], l: &Linear, w: Weights<'_, f32>) -> Result<Array<f32>> {
        let shape = w.tensor(l.weight).shape();
        let (count, out, inp, k) = (shape[0], shape[1], shape[2], ids.len() / x.rows.max(1));
        let mut y = self.spare.array(x.rows, k * out);
        let to = Out::new(&mut y.data);
        let row = |slot: usize| if x.cols == inp { x.row(slot / k) } else { &x.data[slot * inp..(slot + 1) * inp] };
        self.each_expert(ids, count, &|e, slots| {
            let bias = l.bias.map(|b| w.row(b, e));
            let start = bias.as_deref().map_or(Start::Zero, Start::Row);
            let a = Left { row: &|r| row(slots[r]), summed: false };
            let to = Target { out: &to, at: &|r| slots[r] * out, start };
            with_rows(w, l.weight, e * out, |rows| {
                gemm(self.machine(), [slots.len(), out, inp], a, Right { rows, summed: false }, to)
            })
        })?;
        Ok(y)
    }

    /// Each slot's gradient through the transposed matrix of its expert.
    fn expert_input(&self, dy: &Array<f32>, ids: &[u32], weight: WeightId, w: Weights<'_, f32>) -> Result<Array<f32>> {
        let shape = w.tensor(weight).shape();
        let (count, out, inp, k) = (shape[0], shape[1], shape[2], ids.len() / dy.rows.max(1));
        let mut dx = self.spare.array(dy.rows, k * inp);
        let to = Out::new(&mut dx.data);
        self.each_expert(ids, count, &|e, slots| {
            let row = |r: usize| &dy.data[slots[r] * out..(slots[r] + 1) * out];
            let a = Left { row: &|r| row(r), summed: false };
            let to = Target { out: &to, at: &|r| slots[r] * inp, start: Start::Zero };
            with_rows(w, weight, e * out, |rows| {
                gemm(self.machine(), [slots.len(), inp, out], a, Right { rows, summed: true }, to)
            })
        })?;
        Ok(dx)
    }

    /// `into[e] += Σ dy xᵀ` over the slots of each expert, in ascending order.
    fn expert_outer(&self, x: &Array<f32>, dy: &Array<f32>, ids: &[u32], count: usize, into: &mut [f32]) -> Result<()> {
        let k = ids.len() / x.rows.max(1);
        let out = dy.cols / k.max(1);
        let inp = into.len() / (count * out).max(1);
        let to = Out::new(into);
        let row = |slot: usize| if x.cols == inp { x.row(slot / k) } else { &x.data[slot * inp..(slot + 1) * inp] };
        self.each_expert(ids, count, &|e, slots| {
            if slots.is_empty() {
                return Ok(());
            }
            let a = Left { row: &|r| &dy.data[slots[r] * out..(slots[r] + 1) * out], summed: true };
            let b = Right { rows: Source::Slices(&|r| row(slots[r])), summed: true };
            let to = Target { out: &to, at: &|o| (e * out + o) * inp, start: Start::There };
            gemm(self.machine(), [out, inp, slots.len()], a, b, to)
        })
    }
}
