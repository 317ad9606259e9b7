//! Lowering of the router and of the experts.
//!
//! A single token goes through its k experts slot by slot. Several tokens are sorted by expert first (`expert_sort`), so
//! that a workgroup reads an expert's rows once for a tile of tokens; how many workgroups that takes is known to the
//! device only, which reads it from a buffer.

use super::{Binding, Buffer, Cost, Count, Grid, Matrix, Place, lower::Lower, weights};
use crate::{
    error::{Error, Result},
    ir::{Activation, GroupScore, Linear, Node, Op, Renormalise, Router, ValueId, WeightId},
    kernels::{Kernel, Variant, catalogue, params},
};

/// Most experts that the kernels take.
const MOST_EXPERTS: usize = 1024;

/// The tables of one `expert_sort`.
pub(super) struct Sort {
    ids: ValueId,
    tile: u32,
    pairs: Place,
    tiles: Place,
    args: Place,
    /// Workgroups in x of the dispatches that it has arguments for.
    blocks: Vec<u32>,
}

/// What a product with experts' matrices is given.
#[derive(Clone, Copy)]
struct Routed {
    x: Place,
    /// Whether x has a row a slot.
    x_slots: bool,
    ids: ValueId,
    y: Place,
}

impl Lower<'_> {
    pub fn expert_node(&mut self, node: &Node) -> Result<()> {
        let (op, ins, outs) = (&node.op, &node.inputs[..], &node.outputs[..]);
        self.tokens_only(ins[0])?;
        match op {
            Op::Router(r) => {
                let x = self.place(ins[0])?;
                self.router(r, x, outs[0], outs[1])
            }
            Op::NormRouter { norm, linear, router } => {
                let (x, normed) = (self.place(ins[0])?, self.fresh(outs[0])?);
                let rows = self.rows(ins[0])?;
                self.rms_norm(norm, x, normed, rows, self.g.cols(ins[0]))?;
                let rider = weights::router_rider(self.g, self.w, node);
                let riding = rider.map_or(0, |n| self.g.cols(n.outputs[0]));
                let logits = self.content(Count::Tokens, router.experts + riding);
                let parts = [Some(*linear), rider.and_then(weights::linear_of)];
                let parts: Vec<Linear> = parts.into_iter().flatten().collect();
                self.stack(&parts, normed, logits, rows, super::matrix::Extras::default())?;
                if let Some(n) = rider {
                    self.set(n.outputs[0], Place { offset: router.experts as u32, ..logits });
                }
                self.router(router, logits, outs[1], outs[2])
            }
            Op::ExpertLinear { weight } => {
                let (x, y) = (self.place(ins[0])?, self.fresh(outs[0])?);
                let x_slots = self.x_slots(ins[0], *weight);
                self.expert_linear(*weight, Routed { x, x_slots, ids: ins[1], y })
            }
            Op::ExpertGlu { gate, up, act } => {
                let (x, y) = (self.place(ins[0])?, self.fresh(outs[0])?);
                let x_slots = self.x_slots(ins[0], *gate);
                self.expert_glu([*gate, *up], *act, Routed { x, x_slots, ids: ins[1], y })
            }
            Op::ExpertCombine => {
                let (x, y, cols) = (self.place(ins[0])?, self.fresh(outs[0])?, self.g.cols(outs[0]));
                self.combine(x, ins[1], None, y, cols)
            }
            Op::ExpertDownAdd { weight } => self.expert_down_add(*weight, ins, outs[0]),
            _ => Ok(()),
        }
    }

    fn x_slots(&self, x: ValueId, w: WeightId) -> bool {
        Some(&self.g.cols(x)) != self.g.weight(w).shape.last()
    }

    fn router(&mut self, r: &Router, x: Place, ids: ValueId, weights: ValueId) -> Result<()> {
        if r.experts > MOST_EXPERTS || r.used > r.experts {
            let (e, k) = (r.experts, r.used);
            return Err(Error::Unsupported(format!("{k} of {e} experts on the GPU; at most {MOST_EXPERTS} work")));
        }
        let (ids, weights) = (self.fresh(ids)?, self.fresh(weights)?);
        let (renormalise, epsilon) = match r.renormalise {
            Renormalise::No => (0, 0.0),
            Renormalise::Sum => (1, 0.0),
            Renormalise::SumPlus(e) => (2, e),
            Renormalise::SumAtLeast(e) => (3, e),
        };
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
        let variant = catalogue::router_variant(r);
        let bindings = vec![
            self.read("x", x.buffer)?,
            self.weight_vector("selection_bias", r.selection_bias)?,
            self.write("ids", ids.buffer)?,
            self.write("weights", weights.buffer)?,
        ];
        let grid = self.grid(&variant, 1, Count::Tokens, 1);
        let writes = self.row_cost(Count::Tokens, 2 * r.used);
        self.push(variant, &p, bindings, grid, self.row_cost(Count::Tokens, r.experts), writes);
        Ok(())
    }

    /// The variant and the bindings through which a matrix kernel finds its experts; sorts the tokens where needed.
    fn routing(
        &mut self,
        r: &Routed,
        slots: &'static Kernel,
        grouped: &'static Kernel,
        m: &Matrix,
        out: usize,
    ) -> Result<(Variant, Vec<Binding>, Grid)> {
        let k = self.g.cols(r.ids);
        if self.decode {
            let variant = self.matrix_variant(slots, m.cols, false);
            let ids = self.place(r.ids)?;
            let grid = self.grid(&variant, out, Count::Tokens, k);
            return Ok((variant, vec![self.read("ids", ids.buffer)?], grid));
        }
        let variant = self.matrix_variant(grouped, m.cols, true);
        let [items, tile] = variant.tile();
        let blocks = (out as u32).div_ceil(items.max(1));
        let (sort, slot) = self.sorted(r.ids, tile, blocks)?;
        let (pairs, tiles, args) = (self.sorts[sort].pairs, self.sorts[sort].tiles, self.sorts[sort].args);
        let bindings = vec![self.read("pairs", pairs.buffer)?, self.read("tiles", tiles.buffer)?];
        let Buffer::Scratch(content) = args.buffer else {
            return Err(Error::Graph("sorted experts without scratch".into()));
        };
        Ok((variant, bindings, Grid::Indirect { buffer: args.buffer, offset: 16 * slot as u64, content }))
    }

    /// The `expert_sort` of these ids that has arguments for a dispatch of `blocks` workgroups in x.
    fn sorted(&mut self, ids: ValueId, tile: u32, blocks: u32) -> Result<(usize, usize)> {
        for (i, s) in self.sorts.iter().enumerate() {
            if let (true, Some(slot)) = (s.ids == ids && s.tile == tile, s.blocks.iter().position(|b| *b == blocks)) {
                return Ok((i, slot));
            }
        }
        let mut wanted = vec![blocks];
        wanted.extend(self.later_blocks(ids, tile).into_iter().filter(|b| *b != blocks).take(1));
        let experts = self.experts_of(ids);
        if experts > MOST_EXPERTS {
            return Err(Error::Unsupported(format!("{experts} experts on the GPU; at most {MOST_EXPERTS} work")));
        }
        let k = self.g.cols(ids);
        let all = (self.tokens * k) as u64;
        let pairs = self.content_bytes(4 * all, false, 1);
        let tiles = self.content_bytes(16 * (all / u64::from(tile.max(1)) + all.min(experts as u64) + 1), false, 4);
        let args = self.content_bytes(32, true, 8);
        let place = self.place(ids)?;
        let p = params::ExpertSortParams {
            experts: experts as u32,
            used: k as u32,
            tile,
            ids_offset: place.offset,
            ids_stride: place.stride,
            blocks_0: wanted[0],
            blocks_1: wanted.get(1).copied().unwrap_or(0),
        };
        let variant = Variant::new(&catalogue::EXPERT_SORT);
        let room = (experts as u32).next_multiple_of(variant.get("WG").max(1));
        let variant = variant.with("EXPERTS", room);
        let bindings = vec![
            self.read("ids", place.buffer)?,
            self.write("pairs", pairs.buffer)?,
            self.write("tiles", tiles.buffer)?,
            self.write("args", args.buffer)?,
        ];
        let grid = self.grid(&variant, 1, Count::One, 1);
        let writes = self.row_cost(Count::Tokens, 2 * k);
        self.push(variant, &p, bindings, grid, self.row_cost(Count::Tokens, k), writes);
        self.sorts.push(Sort { ids, tile, pairs, tiles, args, blocks: wanted });
        Ok((self.sorts.len() - 1, slot_of(blocks, &self.sorts)))
    }

    /// Workgroups in x of the grouped dispatches that use these ids.
    fn later_blocks(&self, ids: ValueId, tile: u32) -> Vec<u32> {
        let mut out = Vec::new();
        for n in self.g.nodes.iter().filter(|n| n.inputs.contains(&ids)) {
            let (kernel, w) = match &n.op {
                Op::ExpertGlu { gate, .. } => (&catalogue::EXPERT_GLU_GROUPED, *gate),
                Op::ExpertLinear { weight } | Op::ExpertDownAdd { weight } => {
                    (&catalogue::EXPERT_LINEAR_GROUPED, *weight)
                }
                _ => continue,
            };
            let [_, rows, cols] = self.g.weight(w).shape[..] else { continue };
            let t = self.matrix_variant(kernel, cols, true).tile();
            if t[1] == tile {
                out.push((rows as u32).div_ceil(t[0].max(1)));
            }
        }
        out
    }

    /// E, from the matrices that these ids choose from.
    fn experts_of(&self, ids: ValueId) -> usize {
        let experts = |op: &Op| op.weights().first().and_then(|w| self.g.weight(*w).shape.first().copied());
        let users = self.g.nodes.iter().filter(|n| n.inputs.contains(&ids));
        users.filter_map(|n| experts(&n.op)).max().unwrap_or(1)
    }

    /// Bytes of weights for each token, and at most.
    fn expert_cost(&self, m: &Matrix, bytes: u64, k: usize, out: usize) -> Cost {
        let experts = (m.rows / out.max(1)).max(1) as u64;
        Cost { expert: k as u64 * bytes / experts, at_most: bytes, ..Cost::default() }
    }

    fn expert_linear(&mut self, weight: WeightId, r: Routed) -> Result<()> {
        let k = self.g.cols(r.ids);
        let out = self.g.weight(weight).shape[1];
        let m = self.w.matrix(&[weight])?;
        let matrix = &self.w.matrices[m as usize];
        let ids = self.place(r.ids)?;
        let (variant, via, grid) =
            self.routing(&r, &catalogue::EXPERT_LINEAR, &catalogue::EXPERT_LINEAR_GROUPED, matrix, out)?;
        let variant = variant.formats(&[matrix.dtype]);
        for (i, s) in matrix.segments.iter().enumerate() {
            let p = params::LinearParams {
                row0: s.row0 as u32,
                rows: s.rows as u32,
                groups: matrix.groups(),
                cols: matrix.cols as u32,
                out: out as u32,
                x_offset: r.x.offset,
                x_stride: r.x.stride,
                y_offset: r.y.offset,
                y_stride: r.y.stride,
                used: k as u32,
                x_slots: u32::from(r.x_slots),
                ids_offset: ids.offset,
                ids_stride: ids.stride,
                ..params::LinearParams::default()
            };
            let data = Buffer::Matrix { matrix: m, segment: i as u32 };
            let mut bindings = vec![self.read("x", r.x.buffer)?, self.read("w_data", data)?];
            for unused in ["bias", "residual", "gate"] {
                bindings.push(self.maybe(unused, None)?);
            }
            bindings.extend(via.iter().cloned());
            bindings.push(self.write("y", r.y.buffer)?);
            let x_cols = if r.x_slots { k * matrix.cols } else { matrix.cols };
            let reads = self.expert_cost(matrix, s.bytes, k, out).and(self.row_cost(Count::Tokens, x_cols));
            self.push(variant.clone(), &p, bindings, grid, reads, self.row_cost(Count::Tokens, k * out));
        }
        Ok(())
    }

    fn expert_glu(&mut self, w: [WeightId; 2], act: Activation, r: Routed) -> Result<()> {
        let k = self.g.cols(r.ids);
        let out = self.g.weight(w[0]).shape[1];
        let [gate, up] = [self.w.matrix(&[w[0]])?, self.w.matrix(&[w[1]])?];
        let [g, u] = [&self.w.matrices[gate as usize], &self.w.matrices[up as usize]];
        let ids = self.place(r.ids)?;
        let (variant, via, grid) = self.routing(&r, &catalogue::EXPERT_GLU, &catalogue::EXPERT_GLU_GROUPED, g, out)?;
        let variant = variant.formats(&[g.dtype, u.dtype]).with("ACT", catalogue::activation(act));
        for (i, (s, s_up)) in g.segments.iter().zip(&u.segments).enumerate() {
            let p = params::GluLinearParams {
                row0: s.row0 as u32,
                rows: s.rows as u32,
                groups: g.groups(),
                cols: g.cols as u32,
                out: out as u32,
                x_offset: r.x.offset,
                x_stride: r.x.stride,
                y_offset: r.y.offset,
                y_stride: r.y.stride,
                used: k as u32,
                x_slots: u32::from(r.x_slots),
                ids_offset: ids.offset,
                ids_stride: ids.stride,
                ..params::GluLinearParams::default()
            };
            let segment = i as u32;
            let mut bindings = vec![
                self.read("x", r.x.buffer)?,
                self.read("gate_data", Buffer::Matrix { matrix: gate, segment })?,
                self.read("up_data", Buffer::Matrix { matrix: up, segment })?,
            ];
            bindings.extend(via.iter().cloned());
            bindings.push(self.write("y", r.y.buffer)?);
            let x_cols = if r.x_slots { k * g.cols } else { g.cols };
            let reads = self.expert_cost(g, s.bytes + s_up.bytes, k, out).and(self.row_cost(Count::Tokens, x_cols));
            self.push(variant.clone(), &p, bindings, grid, reads, self.row_cost(Count::Tokens, k * out));
        }
        Ok(())
    }

    fn expert_down_add(&mut self, weight: WeightId, ins: &[ValueId], out: ValueId) -> Result<()> {
        let [h, ids, weights, residual] = [ins[0], ins[1], ins[2], ins[3]];
        let (k, cols, x) = (self.g.cols(ids), self.g.cols(out), self.place(h)?);
        let residual = self.place(residual)?;
        if !self.decode {
            let slots = self.content(Count::Tokens, k * cols);
            self.expert_linear(weight, Routed { x, x_slots: self.x_slots(h, weight), ids, y: slots })?;
            let y = self.fresh(out)?;
            return self.combine(slots, weights, Some(residual), y, cols);
        }
        let y = self.fresh(out)?;
        let m = self.w.matrix(&[weight])?;
        let matrix = &self.w.matrices[m as usize];
        let (ids, weights) = (self.place(ids)?, self.place(weights)?);
        let variant = self.matrix_variant(&catalogue::EXPERT_DOWN_ADD, matrix.cols, false).formats(&[matrix.dtype]);
        for (i, s) in matrix.segments.iter().enumerate() {
            let p = params::ExpertDownAddParams {
                row0: s.row0 as u32,
                rows: s.rows as u32,
                groups: matrix.groups(),
                cols: matrix.cols as u32,
                out: cols as u32,
                used: k as u32,
                flags: if i == 0 { params::RESIDUAL } else { params::ACCUMULATE },
                x_offset: x.offset,
                x_stride: x.stride,
                y_offset: y.offset,
                y_stride: y.stride,
                residual_offset: residual.offset,
                residual_stride: residual.stride,
                ids_offset: ids.offset,
                ids_stride: ids.stride,
                weights_offset: weights.offset,
                weights_stride: weights.stride,
            };
            let data = Buffer::Matrix { matrix: m, segment: i as u32 };
            let bindings = vec![
                self.read("x", x.buffer)?,
                self.read("w_data", data)?,
                self.read("ids", ids.buffer)?,
                self.read("weights", weights.buffer)?,
                self.maybe("residual", (i == 0).then_some(residual))?,
                self.write("y", y.buffer)?,
            ];
            let grid = self.grid(&variant, cols, Count::Tokens, 1);
            let operands = k * matrix.cols + cols;
            let reads = self.expert_cost(matrix, s.bytes, k, cols).and(self.row_cost(Count::Tokens, operands));
            self.push(variant.clone(), &p, bindings, grid, reads, self.row_cost(Count::Tokens, cols));
        }
        Ok(())
    }

    fn combine(&mut self, x: Place, weights: ValueId, residual: Option<Place>, y: Place, cols: usize) -> Result<()> {
        let k = self.g.cols(weights);
        let weights = self.place(weights)?;
        let p = params::ExpertCombineParams {
            cols: cols as u32,
            used: k as u32,
            flags: if residual.is_some() { params::RESIDUAL } else { 0 },
            x_offset: x.offset,
            x_stride: x.stride,
            y_offset: y.offset,
            y_stride: y.stride,
            residual_offset: residual.map_or(0, |r| r.offset),
            residual_stride: residual.map_or(0, |r| r.stride),
            weights_offset: weights.offset,
            weights_stride: weights.stride,
        };
        let variant = Variant::new(&catalogue::EXPERT_COMBINE);
        let bindings = vec![
            self.read("x", x.buffer)?,
            self.read("weights", weights.buffer)?,
            self.maybe("residual", residual)?,
            self.write("y", y.buffer)?,
        ];
        let grid = self.grid(&variant, cols, Count::Tokens, 1);
        let reads = self.row_cost(Count::Tokens, (k + usize::from(residual.is_some())) * cols);
        self.push(variant, &p, bindings, grid, reads, self.row_cost(Count::Tokens, cols));
        Ok(())
    }
}

/// Where the newest sort keeps the arguments of `blocks`.
fn slot_of(blocks: u32, sorts: &[Sort]) -> usize {
    sorts.last().and_then(|s| s.blocks.iter().position(|b| *b == blocks)).unwrap_or(0)
}
