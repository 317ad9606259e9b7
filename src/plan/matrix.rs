//! Lowering of matrix products.

use super::{Buffer, Cost, Place, VectorPart, lower::Lower, weights};
use crate::{
    error::Result,
    ir::{Activation, Linear, Norm, NormKind, Op, Rows, ValueId, WeightId},
    kernels::{Style, Variant, catalogue, params},
};

/// What a product is given besides its matrix.
#[derive(Clone, Copy, Default)]
pub(super) struct Extras<'a> {
    /// Applied to x inside the kernel.
    pub norm: Option<&'a Norm>,
    /// Added.
    pub bias: Option<&'a [VectorPart]>,
    /// Added last.
    pub residual: Option<Place>,
    /// Its sigmoid multiplies.
    pub gate: Option<Place>,
    /// Column of y where the normalised x goes as well; one row only.
    pub normed: Option<u32>,
    /// Multiplies, before the residual.
    pub factor: Option<f32>,
    /// Follows the bias.
    pub act: Option<Activation>,
}

impl Lower<'_> {
    pub fn matrix_node(&mut self, op: &Op, ins: &[ValueId], outs: &[ValueId]) -> Result<()> {
        let (x, rows) = (self.place(ins[0])?, self.rows(ins[0])?);
        match op {
            Op::Linear(l) => {
                let y = self.fresh(outs[0])?;
                self.stack(&[*l], x, y, rows, Extras::default())
            }
            Op::LinearAdd { linear, gated, factor } => {
                let gate = if *gated { Some(self.place(ins[2])?) } else { None };
                let residual = Some(self.place(ins[1])?);
                let y = self.fresh(outs[0])?;
                let factor = Some(*factor).filter(|f| *f != 1.0);
                self.stack(&[*linear], x, y, rows, Extras { residual, gate, factor, ..Extras::default() })
            }
            Op::LinearAct { linear, act } => {
                let y = self.fresh(outs[0])?;
                self.stack(&[*linear], x, y, rows, Extras { act: Some(*act), ..Extras::default() })
            }
            Op::NormLinears { norm, parts } => self.norm_linears(norm.as_ref(), parts, (x, rows), ins[0], outs),
            Op::LinearGlu { gate, up, act } => {
                let y = self.fresh(outs[0])?;
                let norm = self.folded.iter().find(|(v, _)| *v == ins[0]).map(|(_, n)| *n);
                self.linear_glu([*gate, *up], *act, norm, (x, rows), y)
            }
            _ => Ok(()),
        }
    }

    /// Whether a norm is computed inside the product that follows it: each workgroup of a GPU sums the squares of the
    /// one row anew, which costs less than a dispatch. A processor has no use for that.
    /// The weight of a root-mean-square norm goes with x and its factor with the sum; a layer norm's mean and bias do not.
    pub fn folds_norm(&self, norm: &Norm) -> bool {
        self.decode && self.style == Style::Lanes && norm.kind == NormKind::Rms && norm.bias.is_none()
    }

    /// All parts lie side by side in one row, those of one matrix together.
    fn norm_linears(
        &mut self,
        norm: Option<&Norm>,
        parts: &[Linear],
        (x, rows): (Place, Rows),
        x_value: ValueId,
        outs: &[ValueId],
    ) -> Result<()> {
        let stacks = weights::stacks(self.g, self.w, parts);
        let mut at = 0;
        let mut offsets = vec![0; parts.len()];
        for stack in &stacks {
            for i in stack {
                offsets[*i] = at;
                at += self.g.cols(outs[*i]);
            }
            at = super::lower::padded(at);
        }
        let y = self.content(rows.into(), at);
        for (v, offset) in outs.iter().zip(&offsets) {
            self.set(*v, Place { offset: *offset as u32, ..y });
        }
        let folded = norm.filter(|n| self.folds_norm(n));
        let mut x = x;
        if let (Some(n), None) = (norm, folded) {
            let cols = self.g.cols(x_value);
            let normed = self.content(rows.into(), cols);
            self.rms_norm(n, x, normed, rows, cols)?;
            x = normed;
        }
        let mut rest = &stacks[..];
        if let [first, second, others @ ..] = rest
            && let Some([a, b]) = self.two_matrices(parts, [first, second])?
        {
            let places = [first, second].map(|s| Place { offset: offsets[s[0]] as u32, ..y });
            let bias = weights::bias_of_two(self.g, parts, [first, second]);
            self.linear_two(
                [a, b],
                x,
                places,
                rows,
                Extras { norm: folded, bias: bias.as_deref(), ..Extras::default() },
            )?;
            rest = others;
        }
        for stack in rest {
            let list: Vec<Linear> = stack.iter().map(|i| parts[*i]).collect();
            let y = Place { offset: offsets[stack[0]] as u32, ..y };
            self.stack(&list, x, y, rows, Extras { norm: folded, ..Extras::default() })?;
        }
        Ok(())
    }

    /// The matrices of two stacks, where one dispatch takes both: each is one segment.
    fn two_matrices(&self, parts: &[Linear], stacks: [&Vec<usize>; 2]) -> Result<Option<[u32; 2]>> {
        let find = |s: &[usize]| self.w.matrix(&s.iter().map(|i| parts[*i].weight).collect::<Vec<_>>());
        let [a, b] = [find(stacks[0])?, find(stacks[1])?];
        let whole = |m: u32| self.w.matrices[m as usize].segments.len() == 1;
        Ok((whole(a) && whole(b)).then_some([a, b]))
    }

    /// Two matrices of any formats on one x, in one dispatch.
    fn linear_two(
        &mut self,
        matrices: [u32; 2],
        x: Place,
        places: [Place; 2],
        rows: Rows,
        extras: Extras<'_>,
    ) -> Result<()> {
        let [a, b] = matrices.map(|m| &self.w.matrices[m as usize]);
        let (lanes, tiles) = (&catalogue::LINEAR_TWO, &catalogue::LINEAR_TWO_TILES);
        let variant = self.product_variant(lanes, tiles, a.cols, &[a.dtype, b.dtype]);
        let variant = if extras.norm.is_some() { variant.with("NORM", 1) } else { variant };
        let blocks = (a.rows as u32).div_ceil(variant.tile()?[0].max(1));
        let y = places[0];
        let p = params::LinearParams {
            outputs: u32::from(rows == Rows::Outputs),
            rows: a.rows as u32,
            groups: a.groups(),
            cols: a.cols as u32,
            out: a.rows as u32,
            x_offset: x.offset,
            x_stride: x.stride,
            y_offset: y.offset,
            y_stride: y.stride,
            flags: if extras.bias.is_some() { params::BIAS } else { 0 },
            eps: extras.norm.map_or(0.0, |n| n.eps),
            blocks,
            rows_1: b.rows as u32,
            column_1: places[1].offset - y.offset,
            ..params::LinearParams::default()
        };
        let data = |matrix: u32| Buffer::Matrix { matrix, segment: 0 };
        let bindings = vec![
            self.read("x", x.buffer)?,
            self.read("w_data", data(matrices[0]))?,
            self.read("second_data", data(matrices[1]))?,
            self.vector("bias", extras.bias)?,
            self.maybe("residual", None)?,
            self.maybe("gate", None)?,
            self.weight_vector("norm", extras.norm.map(|n| n.weight))?,
            self.write("y", y.buffer)?,
        ];
        let items = blocks as usize * variant.tile()?[0] as usize + b.rows;
        let grid = self.grid(&variant, items, rows.into(), 1)?;
        let reads = Cost { fixed: a.bytes() + b.bytes(), ..Cost::default() }.and(self.row_cost(rows.into(), a.cols));
        let writes = self.row_cost(rows.into(), a.rows + b.rows);
        self.push(variant, &p, bindings, grid, reads, writes);
        Ok(())
    }

    /// One matrix of stacked parts.
    pub fn stack(&mut self, parts: &[Linear], x: Place, y: Place, rows: Rows, extras: Extras<'_>) -> Result<()> {
        let bias = weights::bias_parts(self.g, parts);
        let ids: Vec<WeightId> = parts.iter().map(|l| l.weight).collect();
        let m = self.w.matrix(&ids)?;
        let matrix = &self.w.matrices[m as usize];
        let extras = Extras { bias: bias.as_deref(), ..extras };
        let (lanes, tiles) = (&catalogue::LINEAR_KERNEL, &catalogue::LINEAR_TILES);
        let variant = self.product_variant(lanes, tiles, matrix.cols, &[matrix.dtype]);
        let variant = if extras.norm.is_some() { variant.with("NORM", 1) } else { variant };
        // A router's matrix has few rows: more lanes for each.
        let few = |v: Variant| v.with("WG", 64).with("LANES", 32).with("ROWS", 1);
        let variant = if extras.normed.is_some() { few(variant) } else { variant };
        let variant = if let Some(act) = extras.act { variant.act(act) } else { variant };
        for (i, s) in matrix.segments.iter().enumerate() {
            let normed = extras.normed.filter(|_| i == 0);
            let variant = if normed.is_some() { variant.clone().with("NORMED", 1) } else { variant.clone() };
            let flag = |on: bool, bit: u32| if on { bit } else { 0 };
            let p = params::LinearParams {
                outputs: u32::from(rows == Rows::Outputs),
                row0: s.row0 as u32,
                rows: s.rows as u32,
                groups: matrix.groups(),
                cols: matrix.cols as u32,
                out: matrix.rows as u32,
                x_offset: x.offset,
                x_stride: x.stride,
                y_offset: y.offset,
                y_stride: y.stride,
                flags: flag(extras.bias.is_some(), params::BIAS)
                    | flag(extras.residual.is_some(), params::RESIDUAL)
                    | flag(extras.gate.is_some(), params::GATE)
                    | flag(extras.factor.is_some(), params::FACTOR),
                factor: extras.factor.unwrap_or(1.0),
                residual_offset: extras.residual.map_or(0, |p| p.offset),
                residual_stride: extras.residual.map_or(0, |p| p.stride),
                gate_offset: extras.gate.map_or(0, |p| p.offset),
                gate_stride: extras.gate.map_or(0, |p| p.stride),
                eps: extras.norm.map_or(0.0, |n| n.eps),
                normed_offset: normed.unwrap_or(0),
                ..params::LinearParams::default()
            };
            let data = Buffer::Matrix { matrix: m, segment: i as u32 };
            let bindings = vec![
                self.read("x", x.buffer)?,
                self.read("w_data", data)?,
                self.vector("bias", extras.bias)?,
                self.maybe("residual", extras.residual)?,
                self.maybe("gate", extras.gate)?,
                self.weight_vector("norm", extras.norm.map(|n| n.weight))?,
                self.write("y", y.buffer)?,
            ];
            let grid = self.grid(&variant, s.rows, rows.into(), 1)?;
            let operands = matrix.cols + usize::from(extras.residual.is_some()) * s.rows;
            let reads = Cost { fixed: s.bytes, ..Cost::default() }.and(self.row_cost(rows.into(), operands));
            let written = s.rows + normed.map_or(0, |_| matrix.cols);
            self.push(variant, &p, bindings, grid, reads, self.row_cost(rows.into(), written));
        }
        Ok(())
    }

    fn linear_glu(
        &mut self,
        w: [WeightId; 2],
        act: Activation,
        norm: Option<Norm>,
        (x, rows): (Place, Rows),
        y: Place,
    ) -> Result<()> {
        let [gate, up] = [self.w.matrix(&[w[0]])?, self.w.matrix(&[w[1]])?];
        let [g, u] = [&self.w.matrices[gate as usize], &self.w.matrices[up as usize]];
        let (lanes, tiles) = (&catalogue::LINEAR_GLU, &catalogue::LINEAR_GLU_TILES);
        let variant = self.product_variant(lanes, tiles, g.cols, &[g.dtype, u.dtype]).act(act);
        let variant = if norm.is_some() { variant.with("NORM", 1) } else { variant };
        for (i, (s, s_up)) in g.segments.iter().zip(&u.segments).enumerate() {
            let p = params::GluLinearParams {
                outputs: u32::from(rows == Rows::Outputs),
                row0: s.row0 as u32,
                rows: s.rows as u32,
                groups: g.groups(),
                cols: g.cols as u32,
                out: g.rows as u32,
                x_offset: x.offset,
                x_stride: x.stride,
                y_offset: y.offset,
                y_stride: y.stride,
                eps: norm.map_or(0.0, |n| n.eps),
                ..params::GluLinearParams::default()
            };
            let segment = i as u32;
            let bindings = vec![
                self.read("x", x.buffer)?,
                self.read("gate_data", Buffer::Matrix { matrix: gate, segment })?,
                self.read("up_data", Buffer::Matrix { matrix: up, segment })?,
                self.vector("bias", None)?,
                self.weight_vector("norm", norm.map(|n| n.weight))?,
                self.write("y", y.buffer)?,
            ];
            let grid = self.grid(&variant, s.rows, rows.into(), 1)?;
            let reads = Cost { fixed: s.bytes + s_up.bytes, ..Cost::default() };
            let reads = reads.and(self.row_cost(rows.into(), g.cols));
            self.push(variant.clone(), &p, bindings, grid, reads, self.row_cost(rows.into(), s.rows));
        }
        Ok(())
    }
}
