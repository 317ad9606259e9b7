//! Lowering of the router and of the experts.
//!
//! A single token goes through its k experts slot by slot. Several tokens are sorted by expert first (`expert_sort`), so
//! that a workgroup reads an expert's rows once for a tile of tokens; how many workgroups that takes is known to the
//! device only, which reads it from a buffer.

mod down;

use super::{Binding, Buffer, Cost, Count, Grid, Matrix, Place, lower::Lower, matrix::Extras, shared::Shared, weights};
use crate::{
    error::{Error, Result},
    ir::{Activation, GroupScore, Linear, Node, Op, Renormalise, Router, Score, ValueId, WeightId},
    kernels::{Kernel, Variant, catalogue, params},
    quant::DType,
};

/// Most experts that the kernels take.
const MOST_EXPERTS: usize = 1024;

/// Most experts among which every workgroup chooses anew.
const MOST_CHOSEN_LATER: usize = 512;

/// A choice of experts that the first product with them makes.
#[derive(Clone, Copy)]
pub(super) struct Choice {
    router: Router,
    ids: ValueId,
    weights: ValueId,
    logits: Place,
}

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

/// The kernels of a product with experts' matrices: slot by slot, sorted, and sorted by tiles.
struct Kernels {
    slots: &'static Kernel,
    grouped: &'static Kernel,
    tiles: &'static Kernel,
}

static LINEAR: Kernels = Kernels {
    slots: &catalogue::EXPERT_LINEAR,
    grouped: &catalogue::EXPERT_LINEAR_GROUPED,
    tiles: &catalogue::EXPERT_LINEAR_TILES,
};

static GLU: Kernels = Kernels {
    slots: &catalogue::EXPERT_GLU,
    grouped: &catalogue::EXPERT_GLU_GROUPED,
    tiles: &catalogue::EXPERT_GLU_TILES,
};

impl Lower<'_> {
    pub fn expert_node(&mut self, node: &Node, at: usize) -> Result<()> {
        let (op, ins, outs) = (&node.op, &node.inputs[..], &node.outputs[..]);
        self.tokens_only(ins[0])?;
        match op {
            Op::Router(r) => {
                let x = self.place(ins[0])?;
                self.router(r, x, outs[0], outs[1])
            }
            Op::NormRouter { .. } => self.norm_router(node),
            Op::ExpertLinear(linear) => {
                let (x, y) = (self.place(ins[0])?, self.fresh(outs[0])?);
                let x_slots = self.x_slots(ins[0], linear.weight);
                self.expert_linear(linear, None, Routed { x, x_slots, ids: ins[1], y })
            }
            Op::ExpertAct { linear, act } => {
                let (x, y) = (self.place(ins[0])?, self.fresh(outs[0])?);
                let x_slots = self.x_slots(ins[0], linear.weight);
                self.expert_linear(linear, Some(*act), Routed { x, x_slots, ids: ins[1], y })
            }
            Op::ExpertGlu { gate, up, act } => {
                let shared = self.shared.iter().find(|s| s.nodes[0] == at).copied();
                let (x, y) = (self.place(ins[0])?, self.unit_rows(outs[0], shared)?);
                let x_slots = self.x_slots(ins[0], gate.weight);
                self.expert_glu([*gate, *up], *act, Routed { x, x_slots, ids: ins[1], y }, shared)
            }
            Op::ExpertCombine => {
                let (x, y, cols) = (self.place(ins[0])?, self.fresh(outs[0])?, self.g.cols(outs[0]));
                self.combine(x, ins[1], None, y, cols)
            }
            Op::ExpertDownAdd { linear, factor } => {
                let shared = self.shared.iter().find(|s| s.nodes[1] == at).copied();
                self.expert_down_add(linear, *factor, ins, outs[0], shared)
            }
            _ => Ok(()),
        }
    }

    fn norm_router(&mut self, node: &Node) -> Result<()> {
        let Op::NormRouter { norm, linear, router } = &node.op else { return Ok(()) };
        let (x_value, outs, rows) = (node.inputs[0], &node.outputs[..], self.rows(node.inputs[0])?);
        let (x, hidden) = (self.place(x_value)?, self.g.cols(x_value));
        let rider = weights::router_rider(self.g, self.w, node);
        let logits = router.experts + rider.map_or(0, |n| self.g.cols(n.outputs[0]));
        let parts = [Some(*linear), rider.and_then(weights::linear_of)];
        let parts: Vec<Linear> = parts.into_iter().flatten().collect();
        // The product can normalise x itself and leave it behind the logits.
        let folds = self.folds_norm(norm) && self.g.weight(norm.weight).shape.first() == Some(&hidden);
        let y = if folds {
            let at = super::lower::padded(logits);
            let y = self.content(Count::Tokens, at + hidden);
            self.set(outs[0], Place { offset: at as u32, ..y });
            let extras = Extras { norm: Some(norm), normed: Some(at as u32), ..Extras::default() };
            self.stack(&parts, x, y, rows, extras)?;
            y
        } else {
            let normed = self.fresh(outs[0])?;
            self.rms_norm(norm, x, normed, rows, hidden)?;
            let y = self.content(Count::Tokens, logits);
            self.stack(&parts, normed, y, rows, Extras::default())?;
            y
        };
        if let Some(n) = rider {
            self.set(n.outputs[0], Place { offset: router.experts as u32, ..y });
        }
        if folds && self.can_choose_later(router, outs) {
            self.fresh(outs[1])?;
            self.fresh(outs[2])?;
            self.choices.push(Choice { router: *router, ids: outs[1], weights: outs[2], logits: y });
            return Ok(());
        }
        self.router(router, y, outs[1], outs[2])
    }

    /// Whether the experts' gated unit, the first to use the router's results, can make them itself.
    fn can_choose_later(&self, router: &Router, outs: &[ValueId]) -> bool {
        let first = self.g.nodes.iter().find(|n| n.inputs.iter().any(|v| outs[1..].contains(v)));
        let fits = |n: &Node| matches!(n.op, Op::ExpertGlu { .. }) && n.inputs == [outs[0], outs[1]];
        router.experts <= MOST_CHOSEN_LATER && chooses_simply(router) && first.is_some_and(fits)
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
            self.vector("per_expert", weights::router_parts(r).as_deref())?,
            self.write("ids", ids.buffer)?,
            self.write("weights", weights.buffer)?,
        ];
        let grid = self.grid(&variant, 1, Count::Tokens, 1)?;
        let writes = self.row_cost(Count::Tokens, 2 * r.used);
        self.push(variant, &p, bindings, grid, self.row_cost(Count::Tokens, r.experts), writes);
        Ok(())
    }

    /// The variant and the bindings through which a matrix kernel finds its experts; sorts the tokens where needed.
    fn routing(
        &mut self,
        r: &Routed,
        kernels: &Kernels,
        m: &Matrix,
        formats: &[DType],
        out: usize,
    ) -> Result<(Variant, Vec<Binding>, Grid)> {
        let k = self.g.cols(r.ids);
        if self.decode {
            let variant = self.matrix_variant(kernels.slots, m.cols, false).formats(formats);
            let ids = self.place(r.ids)?;
            let grid = self.grid(&variant, out, Count::Tokens, k)?;
            return Ok((variant, vec![self.read("ids", ids.buffer)?], grid));
        }
        let variant = self.product_variant(kernels.grouped, kernels.tiles, m.cols, formats);
        let [items, tile] = variant.tile()?;
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
        wanted.extend(self.later_blocks(ids, tile)?.into_iter().filter(|b| *b != blocks).take(1));
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
        self.sorts.push(Sort { ids, tile, pairs, tiles, args, blocks: wanted });
        Ok((self.sorts.len() - 1, slot_of(blocks, &self.sorts)))
    }

    /// Workgroups in x of the grouped dispatches that use these ids.
    fn later_blocks(&self, ids: ValueId, tile: u32) -> Result<Vec<u32>> {
        let mut out = Vec::new();
        for n in self.g.nodes.iter().filter(|n| n.inputs.contains(&ids)) {
            let (kernels, w, up) = match &n.op {
                Op::ExpertGlu { gate, up, .. } => (&GLU, gate.weight, Some(up.weight)),
                Op::ExpertLinear(l) | Op::ExpertAct { linear: l, .. } | Op::ExpertDownAdd { linear: l, .. } => {
                    (&LINEAR, l.weight, None)
                }
                _ => continue,
            };
            let [_, rows, cols] = self.g.weight(w).shape[..] else { continue };
            let dtype = |w: WeightId| self.w.dtypes.get(w.0 as usize).copied().unwrap_or(DType::F32);
            let formats: Vec<DType> = [Some(w), up].into_iter().flatten().map(dtype).collect();
            let t = self.product_variant(kernels.grouped, kernels.tiles, cols, &formats).tile()?;
            if t[1] == tile {
                out.push((rows as u32).div_ceil(t[0].max(1)));
            }
        }
        Ok(out)
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

    fn expert_linear(&mut self, l: &Linear, act: Option<Activation>, r: Routed) -> Result<()> {
        let k = self.g.cols(r.ids);
        let out = self.g.weight(l.weight).shape[1];
        let m = self.w.matrix(&[l.weight])?;
        let matrix = &self.w.matrices[m as usize];
        let ids = self.place(r.ids)?;
        let (variant, via, grid) = self.routing(&r, &LINEAR, matrix, &[matrix.dtype], out)?;
        let variant = if let Some(act) = act { variant.act(act) } else { variant };
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
                flags: if l.bias.is_some() { params::BIAS } else { 0 },
                ..params::LinearParams::default()
            };
            let data = Buffer::Matrix { matrix: m, segment: i as u32 };
            let mut bindings = vec![self.read("x", r.x.buffer)?, self.read("w_data", data)?];
            bindings.push(self.weight_vector("bias", l.bias)?);
            for unused in ["residual", "gate"] {
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

    /// Room for the rows between an expert's matrices; those of a shared expert that rides follow the k slots.
    fn unit_rows(&mut self, h: ValueId, shared: Option<Shared>) -> Result<Place> {
        let Some(s) = shared else { return self.fresh(h) };
        let routed = self.g.cols(h);
        let y = self.content(self.rows(h)?.into(), routed + self.g.cols(s.h));
        self.set(h, y);
        self.set(s.h, Place { offset: y.offset + routed as u32, ..y });
        Ok(y)
    }

    fn expert_glu(&mut self, l: [Linear; 2], act: Activation, r: Routed, shared: Option<Shared>) -> Result<()> {
        let k = self.g.cols(r.ids);
        let choice = self.choices.iter().find(|c| c.ids == r.ids).copied().filter(|_| self.decode);
        let out = self.g.weight(l[0].weight).shape[1];
        let [gate, up] = [self.w.matrix(&[l[0].weight])?, self.w.matrix(&[l[1].weight])?];
        let bias = weights::both_biases(&l);
        let [g, u] = [&self.w.matrices[gate as usize], &self.w.matrices[up as usize]];
        let ids = self.place(r.ids)?;
        let (variant, via, grid) = self.routing(&r, &GLU, g, &[g.dtype, u.dtype], out)?;
        let variant = variant.act(act);
        for (i, (s, s_up)) in g.segments.iter().zip(&u.segments).enumerate() {
            let mut p = params::GluLinearParams {
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
                flags: if bias.is_some() { params::BIAS } else { 0 },
                bias_up: g.rows as u32,
                ..params::GluLinearParams::default()
            };
            let segment = i as u32;
            let mut bindings = vec![
                self.read("x", r.x.buffer)?,
                self.read("gate_data", Buffer::Matrix { matrix: gate, segment })?,
                self.read("up_data", Buffer::Matrix { matrix: up, segment })?,
                self.vector("bias", bias.as_ref().map(|b| &b[..]))?,
            ];
            bindings.extend(via.iter().cloned());
            bindings.push(self.write("y", r.y.buffer)?);
            let x_cols = if r.x_slots { k * g.cols } else { g.cols };
            let mut reads = self.expert_cost(g, s.bytes + s_up.bytes, k, out).and(self.row_cost(Count::Tokens, x_cols));
            let mut writes = self.row_cost(Count::Tokens, k * out);
            let (mut variant, mut grid) = (variant.clone(), grid);
            // The first segment takes the shared expert along.
            if let Some(shared) = shared.filter(|_| i == 0) {
                let rows = self.g.cols(shared.h);
                let parts = rows.div_ceil(out.max(1));
                (p.shared_rows, p.shared_parts) = (rows as u32, parts as u32);
                let mut bytes = 0;
                for (name, w) in ["shared_gate_data", "shared_up_data"].into_iter().zip(shared.unit) {
                    let matrix = self.w.matrix(&[w])?;
                    variant.formats.push(self.w.matrices[matrix as usize].dtype);
                    bytes += self.w.matrices[matrix as usize].bytes();
                    bindings.push(self.read(name, Buffer::Matrix { matrix, segment: 0 })?);
                }
                variant.kernel = &catalogue::EXPERT_GLU_SHARED;
                bindings.retain(|b| b.name != "bias");
                grid = self.grid(&variant, out, Count::Tokens, k + parts)?;
                reads = reads.and(Cost { fixed: bytes, ..Cost::default() });
                writes = writes.and(self.row_cost(Count::Tokens, rows));
            }
            if let Some(c) = choice {
                let parts = p.shared_parts as usize;
                (variant, p) = self.choosing(&c, variant, p, &mut bindings)?;
                grid = self.grid(&variant, out, Count::Tokens, k + parts)?;
            }
            self.push(variant, &p, bindings, grid, reads, writes);
        }
        Ok(())
    }

    /// Makes the kernel choose the experts itself.
    fn choosing(
        &self,
        c: &Choice,
        mut variant: Variant,
        p: params::GluLinearParams,
        bindings: &mut Vec<Binding>,
    ) -> Result<(Variant, params::GluLinearParams)> {
        let shared = p.shared_parts > 0;
        variant.kernel = if shared { &catalogue::EXPERT_GLU_SHARED_CHOOSE } else { &catalogue::EXPERT_GLU_CHOOSE };
        let room = (c.router.experts as u32).next_multiple_of(64);
        // Wide workgroups: each chooses once.
        let wide = if self.caps.max_invocations >= 256 && p.out >= 256 { 256 } else { 64 };
        let variant = variant.with("EXPERTS", room).with("WG", wide);
        bindings.retain(|b| b.name != "ids");
        let (ids, weights) = (self.place(c.ids)?, self.place(c.weights)?);
        bindings.push(self.write("ids", ids.buffer)?);
        bindings.push(self.write("weights", weights.buffer)?);
        let p = params::GluLinearParams {
            experts: c.router.experts as u32,
            score: catalogue::score(c.router.score),
            renormalise: catalogue::renormalise(&c.router).0,
            router_scale: c.router.scale,
            logits_offset: c.logits.offset,
            weights_offset: weights.offset,
            weights_stride: weights.stride,
            ..p
        };
        Ok((variant, p))
    }
}

/// Whether a router chooses as the kernels that choose later do.
fn chooses_simply(r: &Router) -> bool {
    r.chooses_by_logits()
        && r.expert_scale.is_none()
        && r.groups.is_none_or(|g| g.used == g.count)
        && matches!(r.score, Score::Softmax | Score::SoftmaxOfSelected | Score::Sigmoid)
        && matches!(r.renormalise, Renormalise::No | Renormalise::Sum)
}

/// Where the newest sort keeps the arguments of `blocks`.
fn slot_of(blocks: u32, sorts: &[Sort]) -> usize {
    sorts.last().and_then(|s| s.blocks.iter().position(|b| *b == blocks)).unwrap_or(0)
}
