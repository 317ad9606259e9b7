//! Nodes that the kernels of a schedule do not compute as they stand, in parts.

use super::super::{
    nodes::{Epilogue, KernelGraph, KernelNode, KernelOp, Route, norm_span, stacked},
    target::Target,
    weights::Weights,
};
use crate::{
    error::Result,
    ir::{CacheId, Graph, Linear, Norm, Rope, Type, ValueId, WeightId},
};
use std::collections::HashMap;

/// Takes apart what this schedule's kernels do not compute in one dispatch.
pub(super) fn take_apart(k: &mut KernelGraph, graph: &Graph, w: &Weights, target: &Target<'_>) -> Result<()> {
    let nodes = std::mem::take(&mut k.nodes);
    let mut a = Apart { k, graph, w, target, normed: HashMap::new() };
    for node in nodes {
        a.node(node)?;
    }
    Ok(())
}

struct Apart<'a> {
    k: &'a mut KernelGraph,
    graph: &'a Graph,
    w: &'a Weights,
    target: &'a Target<'a>,
    /// Normalised values, by what they are made of.
    normed: HashMap<(ValueId, WeightId), ValueId>,
}

impl Apart<'_> {
    /// Adds a node, whole or in parts.
    fn node(&mut self, mut n: KernelNode) -> Result<()> {
        if let Some((x, norm)) = self.norm_to_split(&n) {
            self.norm_before(&mut n, x, norm)?;
        }
        match &n.op {
            KernelOp::LinearPair { parts, norm } if !self.one_dispatch(parts)? => {
                let (parts, norm) = (parts.clone(), *norm);
                let (first, second) = n.outputs.split_at(parts[0].len());
                let op = |parts: &[Linear]| KernelOp::Linear {
                    parts: parts.to_vec(),
                    norm,
                    keep_normed: false,
                    epilogue: Epilogue::NONE,
                };
                let one = |parts: &[Linear], outputs: &[ValueId]| KernelNode {
                    op: op(parts),
                    outputs: outputs.to_vec(),
                    ..n.clone()
                };
                let nodes = [one(&parts[0], first), one(&parts[1], second)];
                self.k.nodes.extend(nodes);
            }
            KernelOp::RopeStore { norms, rope, qk_norm_after_rope, cache } if !self.in_one_kernel(&n) => {
                let (norms, rope, qk_norm_after_rope, cache) = (*norms, rope.clone(), *qk_norm_after_rope, *cache);
                self.rope_store(&n, norms, &rope, qk_norm_after_rope, cache)?;
            }
            KernelOp::ExpertDown { linear, factor, .. } if !self.target.decode() => {
                let (linear, factor) = (*linear, *factor);
                self.expert_down(&n, linear, factor)?;
            }
            _ => self.k.nodes.push(n),
        }
        Ok(())
    }

    /// The norm of x that the kernel of this product does not compute.
    fn norm_to_split(&self, n: &KernelNode) -> Option<(ValueId, Norm)> {
        let norm = match &n.op {
            KernelOp::Linear { norm, .. } | KernelOp::LinearPair { norm, .. } | KernelOp::LinearGlu { norm, .. } => {
                *norm
            }
            _ => None,
        }?;
        let x = n.inputs[0];
        let whole_row = self.graph.weight(norm.weight).shape.first() == Some(&self.k.cols(x));
        (!(whole_row && self.target.folds_norm(&norm))).then_some((x, norm))
    }

    /// Puts the norm of a product's x before it, once for all products of that norm and that x.
    fn norm_before(&mut self, n: &mut KernelNode, x: ValueId, norm: Norm) -> Result<()> {
        let kept = match &mut n.op {
            KernelOp::Linear { norm, keep_normed, .. } => {
                *norm = None;
                std::mem::take(keep_normed).then(|| n.outputs.pop()).flatten()
            }
            KernelOp::LinearPair { norm, .. } | KernelOp::LinearGlu { norm, .. } => {
                *norm = None;
                None
            }
            _ => None,
        };
        let normed = match (kept, self.normed.get(&(x, norm.weight))) {
            (None, Some(v)) => *v,
            (kept, _) => {
                let v = kept.unwrap_or_else(|| self.k.value(self.k.ty(x)));
                self.k.unpack_last(v);
                let (op, inputs, outputs) = (KernelOp::Norm(norm), vec![x], vec![v]);
                self.k.nodes.push(KernelNode { op, inputs, outputs, ..n.clone() });
                self.normed.insert((x, norm.weight), v);
                v
            }
        };
        n.inputs[0] = normed;
        Ok(())
    }

    /// Whether one dispatch takes both matrices: each is one segment.
    fn one_dispatch(&self, parts: &[Vec<Linear>; 2]) -> Result<bool> {
        Ok(self.w.is_whole(&stacked(&parts[0]))? && self.w.is_whole(&stacked(&parts[1]))?)
    }

    /// Whether the kernel of a `rope_store` takes these operands: side by side, norms of heads or of whole rows, and after
    /// the rotation only where that keeps lengths.
    fn in_one_kernel(&self, n: &KernelNode) -> bool {
        let KernelOp::RopeStore { norms, rope, qk_norm_after_rope, cache } = &n.op else { return false };
        let together = n.inputs.iter().all(|v| self.k.together(*v, n.inputs[0]));
        let head = rope.head_dim == self.graph.caches[cache.0 as usize].k_dim;
        let order = !qk_norm_after_rope || keeps_lengths(rope);
        let fits = |(norm, x): (&Option<Norm>, &ValueId)| {
            norm.is_none_or(|n| norm_span(self.graph, &n, rope.head_dim, self.k.cols(*x)).is_some())
        };
        together && head && order && norms.iter().zip(&n.inputs).all(fits)
    }

    fn rope_store(
        &mut self,
        n: &KernelNode,
        norms: [Option<Norm>; 2],
        rope: &Rope,
        qk_norm_after_rope: bool,
        cache: CacheId,
    ) -> Result<()> {
        let (q, k, v) = (n.inputs[0], n.inputs[1], n.inputs[2]);
        let rotated_k = self.k.value(self.k.ty(k));
        for (x, y, norm) in [(q, n.outputs[0], norms[0]), (k, rotated_k, norms[1])] {
            let rotate = KernelOp::Rope(rope.clone());
            let steps = match norm.map(KernelOp::Norm) {
                Some(norm) if qk_norm_after_rope => vec![rotate, norm],
                Some(norm) => vec![norm, rotate],
                None => vec![rotate],
            };
            let (mut from, last) = (x, steps.len() - 1);
            for (i, op) in steps.into_iter().enumerate() {
                let to = if i == last { y } else { self.k.value(self.k.ty(x)) };
                self.k.nodes.push(KernelNode { op, inputs: vec![from], outputs: vec![to], ..n.clone() });
                from = to;
            }
        }
        let (op, inputs, outputs) = (KernelOp::KvStore { cache }, vec![rotated_k, v], vec![n.outputs[1]]);
        self.k.nodes.push(KernelNode { op, inputs, outputs, ..n.clone() });
        Ok(())
    }

    /// The last product of many tokens' experts leaves a row a slot, which are summed then.
    fn expert_down(&mut self, n: &KernelNode, linear: Linear, factor: f32) -> Result<()> {
        let [h, ids, weights, residual] = [n.inputs[0], n.inputs[1], n.inputs[2], n.inputs[3]];
        let (rows, used) = self.k.dims(ids)?;
        let slots = self.k.value(Type::F32(rows, used * self.k.cols(n.outputs[0])));
        let op = KernelOp::ExpertLinear { linear, act: None, route: Route::Slots };
        self.k.nodes.push(KernelNode { op, inputs: vec![h, ids], outputs: vec![slots], ..n.clone() });
        let op = KernelOp::ExpertCombine { residual: Some(factor) };
        self.k.nodes.push(KernelNode { op, inputs: vec![slots, weights, residual], ..n.clone() });
        Ok(())
    }
}

/// Whether rotated vectors are as long as they were.
fn keeps_lengths(r: &Rope) -> bool {
    r.scale == 1.0 && r.temperature.is_none() && r.long.as_ref().is_none_or(|l| l.scale == 1.0)
}
