//! Lowering of the experts; the choice among them is in `routing.rs`.
//!
//! A single token goes through its k experts slot by slot. Several tokens are sorted by expert first (`expert_sort`), so
//! that a workgroup reads an expert's rows once for a tile of tokens; how many workgroups that takes is known to the
//! device only, which reads it from a buffer.

use super::{
    Binding, Buffer, BufferView, Cost, Count, Grid, Matrix,
    lower::Lower,
    nodes::{self, Route, SharedDown, VectorPart},
    product::{Dispatch, Product, Routed, Uniform, matrix},
    target::{self, ExpertKernels},
};
use crate::{
    error::{Error, Result},
    ir::{Activation, Linear, Router, Rows, ValueId, WeightId},
    kernels::{Variant, catalogue, params},
    quant::DType,
};

/// The bias of experts' matrices.
fn bias_of(l: &Linear) -> Option<Vec<VectorPart>> {
    l.bias.map(|b| vec![VectorPart::Weight(b)])
}

impl Lower<'_> {
    /// Rows of all experts of a matrix, or of those in slots.
    fn stacked_rows(&self, m: &Matrix, r: &Routed) -> Result<usize> {
        Ok(match r.cache {
            None => m.rows,
            Some(c) => self.expert_cache(c)?.slots * r.out,
        })
    }

    /// The variant and the grid of a product with experts' matrices, and the bindings through which its kernel finds them.
    fn route(
        &self,
        route: Route,
        kernels: &ExpertKernels,
        m: &Matrix,
        formats: &[DType],
        r: &Routed,
    ) -> Result<(Variant, Vec<Binding>, Grid)> {
        match route {
            Route::Slots => {
                let variant = self.target.matrix_variant(kernels.slots, m.cols, false).formats(formats);
                let grid = self.grid(&variant, r.out, Count::Tokens, r.used)?;
                Ok((variant, vec![self.read("ids", r.ids.buffer)?], grid))
            }
            Route::Sorted { sort, slot } => {
                let variant = self.target.product_variant(kernels.grouped, kernels.tiles, m.cols, formats);
                let t = self.sorts.get(&sort).ok_or_else(|| Error::Graph(format!("sort {sort} was not lowered")))?;
                let bindings = vec![self.read("pairs", t.pairs.buffer)?, self.read("tiles", t.tiles.buffer)?];
                let Buffer::Scratch(transient) = t.args.buffer else {
                    return Err(Error::Graph("sorted experts without scratch".into()));
                };
                let grid = Grid::Indirect { buffer: t.args.buffer, offset: 16 * u64::from(slot), transient };
                Ok((variant, bindings, grid))
            }
        }
    }

    /// What is routed: x through matrices `[E, out, in]`, by these ids.
    fn routed(&self, x: ValueId, ids: ValueId, w: WeightId) -> Result<Routed> {
        let decl = self.g.weight(w);
        let [_, out, cols] = decl.shape[..] else {
            return Err(Error::Graph(format!("{} is no matrix for each expert: {:?}", decl.name, decl.shape)));
        };
        let cache = self.slots.get(&ids).copied();
        Ok(Routed { used: self.cols(ids), out, x_slots: self.cols(x) != cols, ids: self.view(ids)?, cache })
    }

    pub fn expert_linear(
        &mut self,
        l: &Linear,
        act: Option<Activation>,
        route: Route,
        ins: &[ValueId],
        out: ValueId,
    ) -> Result<()> {
        self.tokens_only(ins[0])?;
        let (x, y) = (self.view(ins[0])?, self.fresh(out)?);
        let routed = self.routed(ins[0], ins[1], l.weight)?;
        let (m, matrix) = matrix(self.w, &[l.weight])?;
        let (variant, via, grid) = self.route(route, &target::EXPERT_LINEAR, matrix, &[matrix.dtype], &routed)?;
        let variant = if let Some(act) = act { variant.act(act) } else { variant };
        let mut bindings = vec![
            self.expert_bias(bias_of(l).as_deref(), routed.cache)?,
            self.maybe("residual", None)?,
            self.maybe("gate", None)?,
            self.write("y", y.buffer)?,
        ];
        bindings.extend(via);
        let flags = if l.bias.is_some() { params::BIAS } else { 0 };
        let list = self.product(&Product {
            matrices: &[("w_data", m)],
            variant,
            uniform: Uniform::Linear(params::LinearParams { flags, ..params::LinearParams::default() }),
            bindings,
            x,
            y,
            rows: Rows::Tokens,
            written: Some(routed.used * routed.out),
            routed: Some(routed),
            grid: Some(grid),
            residual: false,
        })?;
        self.dispatch(list);
        Ok(())
    }

    /// The gated units of the chosen experts; with the shared expert's, or choosing the experts, where these are asked for.
    pub fn expert_glu(
        &mut self,
        l: [&Linear; 2],
        act: Activation,
        route: Route,
        (shared, choose): (Option<[WeightId; 2]>, Option<&Router>),
        ins: &[ValueId],
        outs: &[ValueId],
    ) -> Result<()> {
        self.tokens_only(ins[0])?;
        let results = &outs[1 + usize::from(shared.is_some())..];
        // Those that choose make the ids that the others are given.
        let ids = if choose.is_some() { results[0] } else { ins[1] };
        for v in results.iter().chain(&outs[..1]).chain(&outs[1..outs.len() - results.len()]) {
            self.fresh(*v)?;
        }
        let (x, y) = (self.view(ins[0])?, self.view(outs[0])?);
        let routed = self.routed(ins[0], ids, l[0].weight)?;
        let [(gate, g), (up, u)] = [matrix(self.w, &[l[0].weight])?, matrix(self.w, &[l[1].weight])?];
        let bias = nodes::glu_bias(l[0], l[1]);
        let (variant, via, grid) = self.route(route, &target::EXPERT_GLU, g, &[g.dtype, u.dtype], &routed)?;
        let mut bindings = vec![self.expert_bias(bias.as_deref(), routed.cache)?, self.write("y", y.buffer)?];
        bindings.extend(via);
        let uniform = params::GluLinearParams {
            flags: if bias.is_some() { params::BIAS } else { 0 },
            bias_up: self.stacked_rows(g, &routed)? as u32,
            ..params::GluLinearParams::default()
        };
        let mut list = self.product(&Product {
            matrices: &[("gate_data", gate), ("up_data", up)],
            variant: variant.act(act),
            uniform: Uniform::Glu(uniform),
            bindings,
            x,
            y,
            rows: Rows::Tokens,
            written: Some(routed.used * routed.out),
            routed: Some(routed),
            grid: Some(grid),
            residual: false,
        })?;
        if let (Some(unit), Some(first)) = (shared, list.first_mut()) {
            self.add_shared_unit(first, unit, self.cols(outs[1]), &routed)?;
        }
        if let Some(router) = choose {
            for d in &mut list {
                self.choose_experts(d, router, self.view(ins[1])?, [results[0], results[1]], &routed)?;
            }
        }
        self.dispatch(list);
        Ok(())
    }

    /// Makes of a dispatch with routed experts' units one that computes the shared expert's too.
    fn add_shared_unit(&self, d: &mut Dispatch, unit: [WeightId; 2], rows: usize, r: &Routed) -> Result<()> {
        let parts = rows.div_ceil(r.out.max(1));
        let mut bytes = 0;
        for (name, w) in ["shared_gate_data", "shared_up_data"].into_iter().zip(unit) {
            let (m, own) = matrix(self.w, &[w])?;
            d.variant.formats.push(own.dtype);
            bytes += own.bytes();
            d.bindings.push(self.read(name, Buffer::Matrix { matrix: m, segment: 0 })?);
        }
        d.variant.kernel = &catalogue::EXPERT_GLU_SHARED;
        d.unbind("bias");
        if let Uniform::Glu(p) = &mut d.uniform {
            (p.shared_rows, p.shared_parts) = (rows as u32, parts as u32);
        }
        d.grid = self.grid(&d.variant, r.out, Count::Tokens, r.used + parts)?;
        d.reads = d.reads.and(Cost { fixed: bytes, ..Cost::default() });
        d.writes = d.writes.and(self.row_cost(Count::Tokens, rows));
        Ok(())
    }

    /// Makes of a dispatch with experts' units one that chooses the experts itself.
    fn choose_experts(
        &self,
        d: &mut Dispatch,
        router: &Router,
        logits: BufferView,
        [ids, weights]: [ValueId; 2],
        r: &Routed,
    ) -> Result<()> {
        let Uniform::Glu(p) = &mut d.uniform else {
            return Err(Error::Graph(format!("{} cannot choose experts", d.variant.kernel.name)));
        };
        let shared = p.shared_parts > 0;
        d.variant.kernel = if shared { &catalogue::EXPERT_GLU_SHARED_CHOOSE } else { &catalogue::EXPERT_GLU_CHOOSE };
        let room = (router.experts as u32).next_multiple_of(64);
        let wide = self.target.choice_workgroup(r.out);
        d.variant = d.variant.clone().with("EXPERTS", room).with("WG", wide);
        let (ids, weights) = (self.view(ids)?, self.view(weights)?);
        p.experts = router.experts as u32;
        p.score = catalogue::score(router.score);
        p.renormalise = catalogue::renormalise(router).0;
        p.router_scale = router.scale;
        p.logits_offset = logits.offset;
        (p.weights_offset, p.weights_stride) = (weights.offset, weights.stride);
        let parts = p.shared_parts as usize;
        d.unbind("ids");
        d.bindings.push(self.write("ids", ids.buffer)?);
        d.bindings.push(self.write("weights", weights.buffer)?);
        d.grid = self.grid(&d.variant, r.out, Count::Tokens, r.used + parts)?;
        Ok(())
    }

    /// One token's last product of its experts, its weighted sum, the residual; with the shared expert where there is one.
    pub fn expert_down(
        &mut self,
        l: &Linear,
        factor: f32,
        shared: Option<SharedDown>,
        ins: &[ValueId],
        out: ValueId,
    ) -> Result<()> {
        self.tokens_only(ins[0])?;
        let (x, weights, residual) = (self.view(ins[0])?, self.view(ins[2])?, self.view(ins[3])?);
        let y = self.fresh(out)?;
        // The kernel sums over the slots: x has one row of them.
        let routed = Routed { x_slots: true, ..self.routed(ins[0], ins[1], l.weight)? };
        let (m, matrix) = matrix(self.w, &[l.weight])?;
        let variant =
            self.target.with_subgroups(self.target.reduction.down(matrix.cols, routed.used)).formats(&[matrix.dtype]);
        let flags = if l.bias.is_some() { params::BIAS } else { 0 };
        let uniform = params::ExpertDownAddParams {
            flags: flags | params::ACCUMULATE,
            residual_offset: residual.offset,
            residual_stride: residual.stride,
            weights_offset: weights.offset,
            weights_stride: weights.stride,
            factor,
            ..params::ExpertDownAddParams::default()
        };
        let bindings = vec![
            self.read("ids", routed.ids.buffer)?,
            self.read("weights", weights.buffer)?,
            self.maybe("residual", None)?,
            self.expert_bias(bias_of(l).as_deref(), routed.cache)?,
            self.write("y", y.buffer)?,
        ];
        let mut list = self.product(&Product {
            matrices: &[("w_data", m)],
            grid: Some(self.grid(&variant, routed.out, Count::Tokens, 1)?),
            variant,
            uniform: Uniform::Down(uniform),
            bindings,
            x,
            y,
            rows: Rows::Tokens,
            written: Some(routed.out),
            routed: Some(routed),
            residual: true,
        })?;
        // The first segment begins with the residual, and takes the shared expert along.
        if let Some(first) = list.first_mut() {
            if let Uniform::Down(p) = &mut first.uniform {
                p.flags = flags | params::RESIDUAL;
            }
            first.unbind("residual");
            first.bindings.push(self.read("residual", residual.buffer)?);
            if let Some(shared) = shared {
                let gate = if shared.gated { Some(self.view(ins[5])?) } else { None };
                self.add_shared_down(first, shared.down, gate)?;
            }
        }
        self.dispatch(list);
        Ok(())
    }

    /// Makes of a dispatch with routed experts' last product one that adds the shared expert's too.
    fn add_shared_down(&self, d: &mut Dispatch, down: WeightId, gate: Option<BufferView>) -> Result<()> {
        let (m, own) = matrix(self.w, &[down])?;
        if let Uniform::Down(p) = &mut d.uniform {
            (p.shared_cols, p.shared_groups) = (own.cols as u32, own.groups());
            if let Some(gate) = gate {
                (p.gate_offset, p.gate_stride) = (gate.offset, gate.stride);
                p.flags |= params::GATE;
            }
        }
        d.variant.kernel = &catalogue::EXPERT_DOWN_SHARED_ADD;
        d.variant.formats.push(own.dtype);
        let tail = u32::from(d.variant.get("TAIL")? == 1 || !own.cols.is_multiple_of(32));
        d.variant = d.variant.clone().with("TAIL", tail);
        d.unbind("bias");
        d.bindings.push(self.read("shared_data", Buffer::Matrix { matrix: m, segment: 0 })?);
        d.bindings.push(self.maybe("gate", gate)?);
        let more = Cost { fixed: own.bytes(), ..Cost::default() };
        d.reads = d.reads.and(more.and(self.row_cost(Count::Tokens, own.cols)));
        Ok(())
    }

    /// The weighted sum, or a residual and a factor times it.
    pub fn combine(&mut self, residual: Option<f32>, ins: &[ValueId], out: ValueId) -> Result<()> {
        self.tokens_only(ins[0])?;
        let (x, k, cols) = (self.view(ins[0])?, self.cols(ins[1]), self.cols(out));
        let weights = self.view(ins[1])?;
        let after = residual.map(|factor| self.view(ins[2]).map(|p| (p, factor))).transpose()?;
        let y = self.fresh(out)?;
        let residual = after.map(|a| a.0);
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
            factor: after.map_or(1.0, |a| a.1),
        };
        let variant = Variant::new(&catalogue::EXPERT_COMBINE);
        let bindings = vec![
            self.read("x", x.buffer)?,
            self.read("weights", weights.buffer)?,
            self.maybe("residual", residual)?,
            self.write("y", y.buffer)?,
        ];
        let grid = self.grid(&variant, cols, Count::Tokens, 1)?;
        let reads = self.row_cost(Count::Tokens, (k + usize::from(residual.is_some())) * cols);
        self.push(variant, &p, bindings, grid, reads, self.row_cost(Count::Tokens, cols));
        Ok(())
    }
}
