//! Many tokens are sorted by expert before the first product with these experts, so that a workgroup reads an expert's rows
//! once for a tile of tokens. How many workgroups that takes is known to the device only, which reads it from a buffer that
//! the sort fills for one or two numbers of workgroups in x.

use super::{
    super::{
        nodes::{KernelGraph, KernelNode, KernelOp, Route},
        target::{self, Target},
        weights::Weights,
    },
    Uses,
};
use crate::{
    error::{Error, Result},
    ir::{Graph, ValueId},
};

/// What the product of a node needs of a sort.
#[derive(Clone, Copy)]
struct Wanted {
    ids: ValueId,
    /// Rows of x that a workgroup takes.
    tile: u32,
    /// Workgroups in x.
    blocks: u32,
    /// E.
    experts: usize,
}

/// The arguments of an earlier sort.
struct Sorted {
    ids: ValueId,
    tile: u32,
    blocks: Vec<u32>,
}

/// Puts a sort before the products that need one, and tells these where its tables are.
pub(super) fn by_expert(k: &mut KernelGraph, graph: &Graph, w: &Weights, t: &Target<'_>) -> Result<()> {
    let uses = Uses::new(k, graph);
    let wanted: Vec<Option<Wanted>> = k.nodes.iter().map(|n| wanted(n, graph, w, t)).collect::<Result<_>>()?;
    let (mut sorts, mut out): (Vec<Sorted>, Vec<KernelNode>) = (vec![], Vec::with_capacity(k.nodes.len()));
    // Of each value of ids, the sorts of it.
    let mut sorts_of: Vec<Vec<usize>> = vec![vec![]; k.values.len()];
    for (i, mut n) in std::mem::take(&mut k.nodes).into_iter().enumerate() {
        if let Some(me) = wanted[i] {
            let known = &mut sorts_of[me.ids.0 as usize];
            let found =
                known.iter().copied().find(|s| sorts[*s].tile == me.tile && sorts[*s].blocks.contains(&me.blocks));
            let sort = found.unwrap_or_else(|| {
                // One sort has arguments for two numbers of workgroups: this product's, and another's.
                let others = uses.users(me.ids).iter().filter_map(|u| wanted[*u]).filter(|o| o.tile == me.tile);
                let other = others.map(|o| o.blocks).find(|b| *b != me.blocks);
                let blocks: Vec<u32> = [me.blocks].into_iter().chain(other).collect();
                let all = uses.users(me.ids).iter().filter_map(|u| wanted[*u]);
                let experts = all.map(|o| o.experts).fold(me.experts, usize::max);
                let op =
                    KernelOp::ExpertSort { sort: sorts.len() as u32, experts, tile: me.tile, blocks: blocks.clone() };
                out.push(KernelNode { op, inputs: vec![me.ids], outputs: vec![], ..n.clone() });
                known.push(sorts.len());
                sorts.push(Sorted { ids: me.ids, tile: me.tile, blocks });
                sorts.len() - 1
            });
            let slot = sorts[sort].blocks.iter().position(|b| *b == me.blocks);
            let slot = slot.filter(|_| sorts[sort].ids == me.ids).ok_or_else(|| {
                Error::Graph(format!("sort {sort} has no arguments for {} workgroups of {}", me.blocks, n.part_of))
            })?;
            if let KernelOp::ExpertLinear { route, .. } | KernelOp::ExpertGlu { route, .. } = &mut n.op {
                *route = Route::Sorted { sort: sort as u32, slot: slot as u32 };
            }
        }
        out.push(n);
    }
    k.nodes = out;
    Ok(())
}

/// What a node needs, where it multiplies with experts' matrices.
fn wanted(n: &KernelNode, graph: &Graph, w: &Weights, t: &Target<'_>) -> Result<Option<Wanted>> {
    let (kernels, weights) = match &n.op {
        KernelOp::ExpertLinear { linear, .. } => (&target::EXPERT_LINEAR, vec![linear.weight]),
        KernelOp::ExpertGlu { gate, up, .. } => (&target::EXPERT_GLU, vec![gate.weight, up.weight]),
        _ => return Ok(None),
    };
    let decl = graph.weight(weights[0]);
    let [experts, rows, cols] = decl.shape[..] else {
        return Err(Error::Graph(format!("{} is no matrix for each expert: {:?}", decl.name, decl.shape)));
    };
    let formats = weights.iter().map(|id| w.dtype(*id)).collect::<Result<Vec<_>>>()?;
    let [items, tile] = t.product_variant(kernels.grouped, kernels.tiles, cols, &formats).tile()?;
    Ok(Some(Wanted { ids: n.inputs[1], tile, blocks: (rows as u32).div_ceil(items.max(1)), experts }))
}
