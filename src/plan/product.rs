//! Lowering of matrix products: one builder for all of them, plain and routed, single, paired and gated.

use super::{
    Binding, Buffer, BufferView, Cost, Grid, Matrix, Segment,
    lower::Lower,
    nodes::{self, Epilogue, VectorPart},
    weights::Weights,
};
use crate::{
    error::{Error, Result},
    ir::{Activation, Linear, Norm, Rows, ValueId, WeightId},
    kernels::{Kernel, Variant, catalogue, params},
    quant::DType,
};

/// The uniform of a product's kernel.
#[derive(Clone, Copy)]
pub(super) enum Uniform {
    Linear(params::LinearParams),
    Glu(params::GluLinearParams),
    Down(params::ExpertDownAddParams),
}

/// Copies the fields of the same names.
macro_rules! fill {
    ($p:ident, $from:ident, $($field:ident),*) => { $($p.$field = $from.$field;)* };
}

impl Uniform {
    /// Sets what every product's uniform has: where operands lie, and the segment.
    fn set(&mut self, c: &Common) {
        match self {
            Uniform::Linear(p) => {
                fill!(p, c, outputs, row0, rows, groups, cols, out, x_offset, x_stride, y_offset, y_stride);
                fill!(p, c, used, x_slots, ids_offset, ids_stride);
            }
            Uniform::Glu(p) => {
                fill!(p, c, outputs, row0, rows, groups, cols, out, x_offset, x_stride, y_offset, y_stride);
                fill!(p, c, used, x_slots, ids_offset, ids_stride);
            }
            Uniform::Down(p) => {
                fill!(p, c, row0, rows, groups, cols, out, x_offset, x_stride, y_offset, y_stride);
                fill!(p, c, used, ids_offset, ids_stride);
            }
        }
    }
}

/// The fields that the uniforms of all products share, by their names there.
struct Common {
    outputs: u32,
    row0: u32,
    rows: u32,
    groups: u32,
    cols: u32,
    out: u32,
    x_offset: u32,
    x_stride: u32,
    y_offset: u32,
    y_stride: u32,
    used: u32,
    x_slots: u32,
    ids_offset: u32,
    ids_stride: u32,
}

/// How a product with experts' matrices finds its experts.
#[derive(Clone, Copy)]
pub(super) struct Routed {
    /// Experts used a token, k.
    pub used: usize,
    /// Rows of one expert's matrix.
    pub out: usize,
    /// Whether x has a row a slot.
    pub x_slots: bool,
    /// Ids of experts, or the slots where they are.
    pub ids: BufferView,
    /// The cache whose slots these are.
    pub cache: Option<u32>,
}

/// A product: x with one matrix or two, whose segments are read by one dispatch each.
pub(super) struct Product<'a> {
    /// The matrices, by the names of their bindings. Two are cut at the same rows.
    pub matrices: &'a [(&'static str, u32)],
    pub variant: Variant,
    /// What is particular to the kernel; the rest is filled in.
    pub uniform: Uniform,
    /// Every binding but those of x and of the matrices.
    pub bindings: Vec<Binding>,
    pub x: BufferView,
    pub y: BufferView,
    pub rows: Rows,
    pub routed: Option<Routed>,
    /// The grid; `None`: over the rows of a segment.
    pub grid: Option<Grid>,
    /// Columns of the result that a dispatch writes; `None`: as many as a segment has rows.
    pub written: Option<usize>,
    /// Whether as many columns of a residual are read.
    pub residual: bool,
}

/// A dispatch of a product, which fusions may add to.
pub(super) struct Dispatch {
    pub variant: Variant,
    pub uniform: Uniform,
    pub bindings: Vec<Binding>,
    pub grid: Grid,
    pub reads: Cost,
    pub writes: Cost,
}

impl Dispatch {
    /// Takes a binding out that the kernel does not have.
    pub fn unbind(&mut self, name: &str) {
        self.bindings.retain(|b| b.name != name);
    }
}

/// The number of a matrix, and the matrix.
pub(super) fn matrix<'a>(w: &'a Weights, parts: &[WeightId]) -> Result<(u32, &'a Matrix)> {
    let m = w.matrix(parts)?;
    Ok((m, &w.matrices[m as usize]))
}

/// Bytes of an expert's matrices for each token, and at most; `bytes` are those of a segment of matrices of so many `rows`.
fn expert_cost(rows: usize, bytes: u64, r: &Routed) -> Cost {
    let experts = (rows / r.out.max(1)).max(1) as u64;
    Cost { expert: r.used as u64 * bytes / experts, at_most: bytes, ..Cost::default() }
}

/// The kernels of one matrix, and of two: dot products and tiles.
const ONE: [&Kernel; 2] = [&catalogue::LINEAR_KERNEL, &catalogue::LINEAR_TILES];
const TWO: [&Kernel; 2] = [&catalogue::LINEAR_TWO, &catalogue::LINEAR_TWO_TILES];

fn flag(on: bool, bit: u32) -> u32 {
    if on { bit } else { 0 }
}

impl Lower<'_> {
    /// The dispatches of a product, one for each segment.
    pub fn product(&self, p: &Product<'_>) -> Result<Vec<Dispatch>> {
        let matrices: Vec<(&'static str, u32, &Matrix)> =
            p.matrices.iter().map(|(name, m)| (*name, *m, &self.w.matrices[*m as usize])).collect();
        let m = matrices[0].2;
        if let Some((_, _, other)) = matrices.iter().find(|(_, _, x)| x.segments.len() != m.segments.len()) {
            return Err(Error::Graph(format!("{} and {} are not cut alike", m.name, other.name)));
        }
        let (used, x_slots, ids) = p.routed.map_or((0, false, None), |r| (r.used, r.x_slots, Some(r.ids)));
        let x_cols = if x_slots { used * m.cols } else { m.cols };
        let parts = matrices.iter().map(|(name, number, m)| self.segments(name, (*number, *m), p.routed.as_ref()));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let segments: Vec<Segment> = parts[0].iter().map(|s| s.0).collect();
        let stacked: usize = segments.iter().map(|s| s.rows).sum();
        let mut out = Vec::with_capacity(segments.len());
        for (i, s) in segments.iter().enumerate() {
            let mut uniform = p.uniform;
            uniform.set(&Common {
                outputs: u32::from(p.rows == Rows::Outputs),
                row0: s.row0 as u32,
                rows: s.rows as u32,
                groups: m.groups(),
                cols: m.cols as u32,
                out: p.routed.map_or(stacked, |r| r.out) as u32,
                x_offset: p.x.offset,
                x_stride: p.x.stride,
                y_offset: p.y.offset,
                y_stride: p.y.stride,
                used: used as u32,
                x_slots: u32::from(x_slots),
                ids_offset: ids.map_or(0, |p| p.offset),
                ids_stride: ids.map_or(0, |p| p.stride),
            });
            let mut bindings = vec![self.read("x", p.x.buffer)?];
            bindings.extend(parts.iter().map(|of| of[i].1.clone()));
            bindings.extend(p.bindings.iter().cloned());
            let bytes: u64 = parts.iter().map(|of| of[i].0.bytes).sum();
            let weights = match &p.routed {
                Some(r) => expert_cost(stacked, bytes, r),
                None => Cost { fixed: bytes, ..Cost::default() },
            };
            let written = p.written.unwrap_or(s.rows);
            let operands = x_cols + if p.residual { written } else { 0 };
            out.push(Dispatch {
                grid: match p.grid {
                    Some(grid) => grid,
                    None => self.grid(&p.variant, s.rows, p.rows.into(), 1)?,
                },
                variant: p.variant.clone(),
                uniform,
                bindings,
                reads: weights.and(self.row_cost(p.rows.into(), operands)),
                writes: self.row_cost(p.rows.into(), written),
            });
        }
        Ok(out)
    }

    /// The segments of a matrix with their bindings: its own, or the slots of its experts.
    fn segments(
        &self,
        name: &'static str,
        (matrix, m): (u32, &Matrix),
        routed: Option<&Routed>,
    ) -> Result<Vec<(Segment, Binding)>> {
        if let Some(number) = routed.and_then(|r| r.cache) {
            let cache = self.expert_cache(number)?;
            let part = cache.part(matrix)?;
            let slots = self.read(name, Buffer::ExpertSlots { cache: number, part })?;
            return Ok(vec![(cache.matrices[part as usize].segment, slots)]);
        }
        let own = |(i, s): (u32, &Segment)| Ok((*s, self.read(name, Buffer::Matrix { matrix, segment: i })?));
        (0..).zip(&m.segments).map(own).collect()
    }

    /// Adds the steps of a product.
    pub fn dispatch(&mut self, list: Vec<Dispatch>) {
        for Dispatch { variant, uniform, bindings, grid, reads, writes } in list {
            match &uniform {
                Uniform::Linear(p) => self.push(variant, p, bindings, grid, reads, writes),
                Uniform::Glu(p) => self.push(variant, p, bindings, grid, reads, writes),
                Uniform::Down(p) => self.push(variant, p, bindings, grid, reads, writes),
            }
        }
    }

    /// One matrix of stacked parts, and what follows.
    pub fn linear(
        &mut self,
        parts: &[Linear],
        (norm, keep_normed): (Option<&Norm>, bool),
        e: Epilogue,
        ins: &[ValueId],
        outs: &[ValueId],
    ) -> Result<()> {
        let (x, rows) = (self.view(ins[0])?, self.rows(ins[0])?);
        let residual = if e.residual { Some(self.view(ins[1])?) } else { None };
        let gate = match (e.gated, ins.last()) {
            (true, Some(g)) => Some(self.view(*g)?),
            _ => None,
        };
        let y = self.fresh_all(outs)?;
        let (m, matrix) = matrix(self.w, &nodes::stacked(parts))?;
        let bias = nodes::stacked_bias(self.g, parts);
        let variant = self.linear_variant(ONE, &[matrix.dtype], matrix.cols, norm, e.act);
        // A router's matrix has few rows: more lanes for each.
        let variant = if keep_normed { variant.with("WG", 64).with("LANES", 32).with("ROWS", 1) } else { variant };
        let uniform = params::LinearParams {
            flags: flag(bias.is_some(), params::BIAS)
                | flag(residual.is_some(), params::RESIDUAL)
                | flag(gate.is_some(), params::GATE)
                | flag(e.factor != 1.0, params::FACTOR),
            factor: e.factor,
            residual_offset: residual.map_or(0, |p| p.offset),
            residual_stride: residual.map_or(0, |p| p.stride),
            gate_offset: gate.map_or(0, |p| p.offset),
            gate_stride: gate.map_or(0, |p| p.stride),
            eps: norm.map_or(0.0, |n| n.eps),
            ..params::LinearParams::default()
        };
        let mut list = self.product(&Product {
            matrices: &[("w_data", m)],
            variant,
            uniform: Uniform::Linear(uniform),
            bindings: self.linear_bindings(bias.as_deref(), [residual, gate], norm, y[0])?,
            x,
            y: y[0],
            rows,
            routed: None,
            grid: None,
            written: None,
            residual: e.residual,
        })?;
        // The first segment leaves the normalised x too.
        if let (true, Some(first), Some(normed)) = (keep_normed, list.first_mut(), y.last()) {
            first.variant = first.variant.clone().with("NORMED", 1);
            first.writes = first.writes.and(self.row_cost(rows.into(), matrix.cols));
            if let Uniform::Linear(p) = &mut first.uniform {
                p.normed_offset = normed.offset;
            }
        }
        self.dispatch(list);
        Ok(())
    }

    fn linear_variant(
        &self,
        kernels: [&'static Kernel; 2],
        formats: &[DType],
        cols: usize,
        norm: Option<&Norm>,
        act: Option<Activation>,
    ) -> Variant {
        let variant = self.target.product_variant(kernels[0], kernels[1], cols, formats);
        let variant = if norm.is_some() { variant.with("NORM", 1) } else { variant };
        if let Some(act) = act { variant.act(act) } else { variant }
    }

    fn linear_bindings(
        &self,
        bias: Option<&[VectorPart]>,
        [residual, gate]: [Option<BufferView>; 2],
        norm: Option<&Norm>,
        y: BufferView,
    ) -> Result<Vec<Binding>> {
        Ok(vec![
            self.vector("bias", bias)?,
            self.maybe("residual", residual)?,
            self.maybe("gate", gate)?,
            self.weight_vector("norm", norm.map(|n| n.weight))?,
            self.write("y", y.buffer)?,
        ])
    }

    /// Two matrices of any formats on one x, in one dispatch.
    pub fn linear_pair(
        &mut self,
        parts: &[Vec<Linear>; 2],
        norm: Option<&Norm>,
        x: ValueId,
        outs: &[ValueId],
    ) -> Result<()> {
        let (x, rows) = (self.view(x)?, self.rows(x)?);
        let places = self.fresh_all(outs)?;
        let (y, second) = (places[0], places[parts[0].len()]);
        let [(m, a), (n, b)] =
            [matrix(self.w, &nodes::stacked(&parts[0]))?, matrix(self.w, &nodes::stacked(&parts[1]))?];
        let bias = nodes::pair_bias(self.g, parts);
        let variant = self.linear_variant(TWO, &[a.dtype, b.dtype], a.cols, norm, None);
        let blocks = (a.rows as u32).div_ceil(variant.tile()?[0].max(1));
        let items = blocks as usize * variant.tile()?[0] as usize + b.rows;
        let uniform = params::LinearParams {
            flags: flag(bias.is_some(), params::BIAS),
            eps: norm.map_or(0.0, |n| n.eps),
            blocks,
            rows_1: b.rows as u32,
            column_1: second.offset - y.offset,
            ..params::LinearParams::default()
        };
        let list = self.product(&Product {
            matrices: &[("w_data", m), ("second_data", n)],
            grid: Some(self.grid(&variant, items, rows.into(), 1)?),
            variant,
            uniform: Uniform::Linear(uniform),
            bindings: self.linear_bindings(bias.as_deref(), [None, None], norm, y)?,
            x,
            y,
            rows,
            routed: None,
            written: Some(a.rows + b.rows),
            residual: false,
        })?;
        self.dispatch(list);
        Ok(())
    }

    /// A gated unit.
    pub fn linear_glu(
        &mut self,
        w: [WeightId; 2],
        act: Activation,
        norm: Option<&Norm>,
        x: ValueId,
        out: ValueId,
    ) -> Result<()> {
        let (x, rows, y) = (self.view(x)?, self.rows(x)?, self.fresh(out)?);
        let [(gate, g), (up, u)] = [matrix(self.w, &w[..1])?, matrix(self.w, &w[1..])?];
        let (lanes, tiles) = (&catalogue::LINEAR_GLU, &catalogue::LINEAR_GLU_TILES);
        let variant = self.target.product_variant(lanes, tiles, g.cols, &[g.dtype, u.dtype]).act(act);
        let variant = if norm.is_some() { variant.with("NORM", 1) } else { variant };
        let uniform =
            params::GluLinearParams { eps: norm.map_or(0.0, |n| n.eps), ..params::GluLinearParams::default() };
        let bindings = vec![
            self.vector("bias", None)?,
            self.weight_vector("norm", norm.map(|n| n.weight))?,
            self.write("y", y.buffer)?,
        ];
        let list = self.product(&Product {
            matrices: &[("gate_data", gate), ("up_data", up)],
            variant,
            uniform: Uniform::Glu(uniform),
            bindings,
            x,
            y,
            rows,
            routed: None,
            grid: None,
            written: None,
            residual: false,
        })?;
        self.dispatch(list);
        Ok(())
    }

    /// Scratch for all results of a node.
    fn fresh_all(&mut self, outs: &[ValueId]) -> Result<Vec<BufferView>> {
        let places: Vec<BufferView> = outs.iter().map(|v| self.fresh(*v)).collect::<Result<_>>()?;
        if places.is_empty() { Err(Error::Graph("a product without a result".into())) } else { Ok(places) }
    }
}
