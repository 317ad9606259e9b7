//! Ops that are cheap beside matrix products, and the embedding.

use super::*;

impl State {
    /// Runs an op that treats each row by itself.
    pub(super) fn simple(&self, f: StepContext<'_>, node: &Node, out: &mut [f32]) -> Result<()> {
        let a = self.floats_of(f, node.inputs[0]);
        let b = || self.floats_of(f, node.inputs[1]);
        let (env, cols) = (self.env(f), f.place(node.inputs[0]).cols.max(1));
        let row = |r: usize| r * cols..(r + 1) * cols;
        match &node.op {
            Op::Add => {
                let b = b();
                each_row(env, a, cols, out, &|r, a, y| env.simd(AddScaled { y, a, b: &b[row(r)], factor: 1.0 }))
            }
            Op::Scale(factor) => {
                each_row(env, a, cols, out, &|_, a, y| y.iter_mut().zip(a).for_each(|(y, x)| *y = x * factor))
            }
            Op::Glu(act) => {
                let b = b();
                each_row(env, a, cols, out, &|r, a, y| {
                    y.copy_from_slice(a);
                    env.simd(Glu { gate: y, up: &b[row(r)], act: *act });
                })
            }
            Op::Act(act) => each_row(env, a, cols, out, &|_, a, y| {
                y.copy_from_slice(a);
                env.simd(Act { x: y, act: *act });
            }),
            Op::SigmoidGate => {
                let gates = b();
                each_row(env, a, cols, out, &|r, a, y| {
                    let s = sigmoid(f64::from(gates[r])) as f32;
                    y.iter_mut().zip(a).for_each(|(y, x)| *y = x * s);
                })
            }
            Op::JoinHeads { heads } => {
                let b = b();
                let [m, n] = [0, 1].map(|i| f.place(node.inputs[i]).cols / heads);
                for ((y, a), b) in out.chunks_exact_mut(m + n).zip(a.chunks_exact(m)).zip(b.chunks_exact(n)) {
                    y[..m].copy_from_slice(a);
                    y[m..].copy_from_slice(b);
                }
                Ok(())
            }
            Op::ExpertCombine => {
                let (weights, used) = (b(), f.place(node.inputs[1]).cols);
                let width = cols / used;
                each_output(env, a.len() / cols, cols, out, width, &|r, y| {
                    y.fill(0.0);
                    let slots = a[r * cols..(r + 1) * cols].chunks_exact(width);
                    for (slot, w) in slots.zip(&weights[r * used..(r + 1) * used]) {
                        y.iter_mut().zip(slot).for_each(|(y, s)| *y += w * s);
                    }
                })
            }
            Op::TakeOutputs => {
                let from = (f.step.tokens.len() - f.step.outputs) * cols;
                out[..a.len() - from].copy_from_slice(&a[from..]);
                Ok(())
            }
            op => Err(Error::Graph(format!("the CPU backend has no row code for {}", op.name()))),
        }
    }

    /// Dequantises the rows `ids` of an embedding table, times `scale`, into `out`, `[T, H]`.
    pub(super) fn embed(
        &self,
        f: StepContext<'_>,
        ids: ValueId,
        table: WeightId,
        scale: f32,
        out: &mut [f32],
    ) -> Result<()> {
        let tensor = f.weight(table).tensor();
        let ids = self.ids_of(f, ids);
        if let Some(id) = ids.iter().find(|id| **id as usize >= tensor.rows()) {
            return Err(Error::Invalid(format!("token id {id} is not below the vocabulary's {}", tensor.rows())));
        }
        let failed = AtomicBool::new(false);
        each_output(self.env(f), ids.len(), tensor.cols(), out, tensor.cols(), &|r, y| {
            let row = tensor.row(ids[r] as usize);
            failed.fetch_or(crate::quant::dequantize(tensor.dtype(), row, y).is_err(), Ordering::Relaxed);
            if scale != 1.0 {
                y.iter_mut().for_each(|y| *y *= scale);
            }
        })?;
        if failed.into_inner() {
            return Err(Error::Model("a row of the embedding table is no whole number of blocks".into()));
        }
        Ok(())
    }
}
