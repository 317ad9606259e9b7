//! Lowering of the choice of experts: the router, the sort of tokens by expert, and experts that the host computes.

use super::{
    Buffer, BufferView, Count, HostCall, HostInput,
    lower::{Lower, SortTables},
    nodes,
    sizes::padded,
};
use crate::{
    error::{Error, Result},
    ir::{GroupScore, Router, ValueId},
    kernels::{Variant, catalogue, params},
};

/// Most experts that the kernels take.
const MOST_EXPERTS: usize = 1024;

impl Lower<'_> {
    pub fn router(&mut self, r: &Router, logits: ValueId, outs: &[ValueId]) -> Result<()> {
        self.tokens_only(logits)?;
        let x = self.view(logits)?;
        if r.experts > MOST_EXPERTS || r.used > r.experts {
            let (e, k) = (r.experts, r.used);
            return Err(Error::Unsupported(format!("{k} of {e} experts on the GPU; at most {MOST_EXPERTS} work")));
        }
        let (ids, weights) = (self.fresh(outs[0])?, self.fresh(outs[1])?);
        let (renormalise, epsilon) = catalogue::renormalise(r);
        let p = params::RouterParams {
            experts: r.experts as u32,
            used: r.used as u32,
            score: catalogue::score(r.score),
            groups_used: r.groups.map_or(1, |g| g.used as u32),
            top_two: u32::from(r.groups.is_some_and(|g| g.score == GroupScore::TopTwo)),
            renormalise,
            x_offset: x.offset,
            x_stride: x.stride,
            ids_offset: ids.offset,
            ids_stride: ids.stride,
            weights_offset: weights.offset,
            weights_stride: weights.stride,
            epsilon,
            scale: r.scale,
        };
        let variant = catalogue::router_variant(r)?;
        let bindings = vec![
            self.read("x", x.buffer)?,
            self.vector("per_expert", nodes::router_numbers(r).as_deref())?,
            self.write("ids", ids.buffer)?,
            self.write("weights", weights.buffer)?,
        ];
        let grid = self.grid(&variant, 1, Count::Tokens, 1)?;
        let writes = self.row_cost(Count::Tokens, 2 * r.used);
        self.push(variant, &p, bindings, grid, self.row_cost(Count::Tokens, r.experts), writes);
        Ok(())
    }

    /// Sorts the tokens by expert, for dispatches of so many workgroups in x, each of which takes `tile` rows.
    pub fn expert_sort(&mut self, sort: u32, experts: usize, tile: u32, blocks: &[u32], ids: ValueId) -> Result<()> {
        self.tokens_only(ids)?;
        if experts > MOST_EXPERTS {
            return Err(Error::Unsupported(format!("{experts} experts on the GPU; at most {MOST_EXPERTS} work")));
        }
        let (k, place) = (self.cols(ids), self.view(ids)?);
        let all = (self.tokens * k) as u64;
        let pairs = self.transient_bytes(4 * all, false, 1);
        let tiles = self.transient_bytes(16 * (all / u64::from(tile.max(1)) + all.min(experts as u64) + 1), false, 4);
        let args = self.transient_bytes(32, true, 8);
        let (blocks_0, blocks_1) = match blocks[..] {
            [a] => (a, 0),
            [a, b] => (a, b),
            _ => return Err(Error::Graph(format!("a sort for {} dispatches", blocks.len()))),
        };
        let p = params::ExpertSortParams {
            experts: experts as u32,
            used: k as u32,
            tile,
            ids_offset: place.offset,
            ids_stride: place.stride,
            blocks_0,
            blocks_1,
        };
        let variant = Variant::new(&catalogue::EXPERT_SORT);
        let room = (experts as u32).next_multiple_of(variant.get("WG")?.max(1));
        let variant = variant.with("EXPERTS", room);
        let bindings = vec![
            self.read("ids", place.buffer)?,
            self.write("pairs", pairs.buffer)?,
            self.write("tiles", tiles.buffer)?,
            self.write("args", args.buffer)?,
        ];
        let grid = self.grid(&variant, 1, Count::One, 1)?;
        let writes = self.row_cost(Count::Tokens, 2 * k);
        self.push(variant, &p, bindings, grid, self.row_cost(Count::Tokens, k), writes);
        self.sorts.insert(sort, SortTables { pairs, tiles, args });
        Ok(())
    }
}

impl Lower<'_> {
    /// Experts that the host computes, from what the dispatches so far have left.
    pub fn host_experts(&mut self, region: u32, ins: &[ValueId], out: ValueId) -> Result<()> {
        self.tokens_only(out)?;
        let input = |v: &ValueId| -> Result<HostInput> {
            self.tokens_only(*v)?;
            let view = self.view(*v)?;
            let transient = if let Buffer::Scratch(c) = view.buffer { Some(c) } else { None };
            Ok(HostInput { view, cols: self.cols(*v), transient })
        };
        let inputs = ins.iter().map(input).collect::<Result<Vec<_>>>()?;
        let (cols, stride) = (self.cols(out), padded(self.cols(out)));
        self.set(out, BufferView { buffer: Buffer::Host(region), offset: 0, stride: stride as u32 });
        self.call_host(HostCall { region, layer: None, before: 0, needed: 0, inputs, cols, stride });
        Ok(())
    }
}
