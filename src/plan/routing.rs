//! Lowering of the choice of experts: the router, the sort of tokens by expert, and experts that the host computes.

use super::{
    Binding, Buffer, BufferView, Cost, Count, Grid, HostCall, HostInput,
    limits::padded,
    lower::{Lower, SortTables},
    nodes,
};
use crate::{
    error::{Error, Result},
    ir::{GroupScore, Router, ValueId},
    kernels::{Variant, catalogue, params},
};

/// Most experts that the kernels take.
const MOST_EXPERTS: usize = 1024;

impl Lower<'_> {
    /// The choice of experts; with a cache also their slots there, computed as the product of experts would of so many rows that
    /// chooses itself.
    pub fn router(
        &mut self,
        r: &Router,
        logits: ValueId,
        outs: &[ValueId],
        cached: Option<(u32, Option<usize>)>,
    ) -> Result<()> {
        self.tokens_only(logits)?;
        let x = self.view(logits)?;
        if r.experts > MOST_EXPERTS || r.used > r.experts {
            let (e, k) = (r.experts, r.used);
            return Err(Error::Unsupported(format!("{k} of {e} experts on the GPU; at most {MOST_EXPERTS} work")));
        }
        let (ids, weights) = (self.fresh(outs[0])?, self.fresh(outs[1])?);
        let (renormalise, epsilon) = catalogue::renormalise(r);
        let mut p = params::RouterParams {
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
            ..params::RouterParams::default()
        };
        let mut bindings = vec![
            self.read("x", x.buffer)?,
            self.vector("per_expert", nodes::router_numbers(r).as_deref())?,
            self.write("ids", ids.buffer)?,
            self.write("weights", weights.buffer)?,
        ];
        let variant = match cached {
            None => catalogue::router_variant(r)?,
            Some((cache, beside)) => {
                bindings.extend(self.choose_slots(&mut p, cache, outs[2])?);
                let workgroup = beside.map(|rows| self.target.choice_workgroup(rows));
                catalogue::cached_router_variant(r, self.expert_cache(cache)?.slots, workgroup)?
            }
        };
        let grid = self.grid(&variant, 1, Count::Tokens, 1)?;
        let writes = self.row_cost(Count::Tokens, outs.len() * r.used);
        self.push(variant, &p, bindings, grid, self.row_cost(Count::Tokens, r.experts), writes);
        Ok(())
    }

    /// Scratch for the slots of so many chosen experts and for the workgroups that fill them: the uniforms and bindings of who chooses.
    fn slots_of(
        &mut self,
        number: u32,
        places: ValueId,
        chosen: usize,
    ) -> Result<(params::ExpertPlacesParams, [Binding; 3])> {
        let to = self.fresh(places)?;
        let args = self.transient_bytes(16, true, 4);
        self.slots.insert(places, number);
        self.fills.insert(number, args);
        let items = Variant::new(&catalogue::EXPERT_FILL_1).tile()?[0].max(1);
        let cache = self.expert_cache(number)?;
        let p = params::ExpertPlacesParams {
            experts: cache.experts as u32,
            used: cache.used as u32,
            slots: cache.slots as u32,
            policy: cache.policy(),
            pinned: cache.pinned(chosen),
            slots_at: cache.slots_at() as u32,
            fills_at: cache.fills_at() as u32,
            places_offset: to.offset,
            places_stride: to.stride,
            fill_blocks: cache.most_units().div_ceil(items),
            ..params::ExpertPlacesParams::default()
        };
        let bindings = [
            self.write("cache", Buffer::ExpertCache(number))?,
            self.write("places", to.buffer)?,
            self.write("args", args.buffer)?,
        ];
        Ok((p, bindings))
    }

    /// What a router needs to choose slots of a cache, too: the bindings of these, with the uniforms.
    fn choose_slots(&mut self, p: &mut params::RouterParams, number: u32, places: ValueId) -> Result<[Binding; 3]> {
        let (of, bindings) = self.slots_of(number, places, p.used as usize)?;
        (p.slots, p.policy, p.pinned) = (of.slots, of.policy, of.pinned);
        (p.slots_at, p.fills_at) = (of.slots_at, of.fills_at);
        (p.places_offset, p.places_stride, p.fill_blocks) = (of.places_offset, of.places_stride, of.fill_blocks);
        Ok(bindings)
    }

    /// The slots of the experts that were chosen for a few tokens.
    pub fn expert_places(&mut self, number: u32, ids: ValueId, places: ValueId) -> Result<()> {
        self.tokens_only(ids)?;
        let from = self.view(ids)?;
        let chosen = self.expert_cache(number)?.most_chosen();
        let (p, own) = self.slots_of(number, places, chosen)?;
        let p = params::ExpertPlacesParams { ids_offset: from.offset, ids_stride: from.stride, ..p };
        let mut bindings = vec![self.read("ids", from.buffer)?];
        bindings.extend(own);
        let cache = self.expert_cache(number)?;
        let room = (cache.slots as u32).next_multiple_of(64);
        let variant = Variant::new(&catalogue::EXPERT_PLACES).with("CHOSEN", chosen as u32).with("CACHE_ROOM", room);
        let grid = self.grid(&variant, 1, Count::One, 1)?;
        let cost = self.row_cost(Count::Tokens, self.cols(ids));
        self.push(variant, &p, bindings, grid, cost, cost);
        Ok(())
    }

    /// Copies experts that have just taken slots: one dispatch for up to three matrices, as many experts as are missing.
    pub fn expert_fill(&mut self, number: u32) -> Result<()> {
        let missing = || Error::Graph(format!("cache {number} is filled before its experts are chosen"));
        let args = *self.fills.get(&number).ok_or_else(missing)?;
        let Buffer::Scratch(transient) = args.buffer else { return Err(missing()) };
        let grid = Grid::Indirect { buffer: args.buffer, offset: 0, transient };
        let fills = self.expert_cache(number)?.fills(self.w)?;
        for (parts, p) in fills {
            let kernel = match parts.len() {
                1 => &catalogue::EXPERT_FILL_1,
                2 => &catalogue::EXPERT_FILL_2,
                3 => &catalogue::EXPERT_FILL_3,
                n => return Err(Error::Graph(format!("a copy of {n} matrices at once"))),
            };
            let vectors = if p.bias_size_0 > 0 { Buffer::Vectors } else { Buffer::Zero };
            let mut bindings = vec![self.write("cache", Buffer::ExpertCache(number))?, self.read("vectors", vectors)?];
            let names = [("first_from", "first_to"), ("second_from", "second_to"), ("third_from", "third_to")];
            for ((part, segment), (from, to)) in parts.iter().zip(names) {
                let matrix = self.expert_cache(number)?.matrices[*part as usize].matrix;
                bindings.push(self.read(from, Buffer::Matrix { matrix, segment: *segment })?);
                bindings.push(self.write(to, Buffer::ExpertSlots { cache: number, part: *part })?);
            }
            // How much there is to copy is known to the device alone: with every hit, nothing.
            let none = Cost::default();
            self.push(Variant::new(kernel), &p, bindings, grid, none, none);
        }
        Ok(())
    }

    /// The numbers of the experts that are here.
    pub fn local_ids(&mut self, first: u32, count: u32, ids: ValueId, out: ValueId) -> Result<()> {
        self.tokens_only(ids)?;
        let (k, from, y) = (self.cols(ids), self.view(ids)?, self.fresh(out)?);
        let p = params::LocalIdsParams {
            first,
            count,
            used: k as u32,
            ids_offset: from.offset,
            ids_stride: from.stride,
            y_offset: y.offset,
            y_stride: y.stride,
        };
        let variant = Variant::new(&catalogue::LOCAL_IDS);
        let bindings = vec![self.read("ids", from.buffer)?, self.write("y", y.buffer)?];
        let grid = self.grid(&variant, k, Count::Tokens, 1)?;
        let each = self.row_cost(Count::Tokens, k);
        self.push(variant, &p, bindings, grid, each, self.row_cost(Count::Tokens, k));
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
