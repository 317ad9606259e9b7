//! Lowering of the simple ops: the embedding, norms, what is computed element by element.

use super::{Buffer, Cost, Count, lower::Lower, nodes::Elementwise};
use crate::{
    error::{Error, Result},
    ir::{Norm, NormKind, Rows, ValueId, WeightId},
    kernels::{Variant, catalogue, numbers as n, params},
};

impl Lower<'_> {
    pub fn embed(&mut self, ids: ValueId, table: WeightId, scale: f32, out: ValueId) -> Result<()> {
        self.tokens_only(ids)?;
        let (ids, y, m) = (self.view(ids)?, self.fresh(out)?, self.w.matrix(&[table])?);
        let matrix = &self.w.matrices[m as usize];
        let tail = u32::from(!matrix.cols.is_multiple_of(32));
        let variant = Variant::new(&catalogue::EMBED).formats(&[matrix.dtype]).with("TAIL", tail);
        for (i, s) in matrix.segments.iter().enumerate() {
            let p = params::EmbedParams {
                row0: s.row0 as u32,
                rows: s.rows as u32,
                groups: matrix.groups(),
                cols: matrix.cols as u32,
                ids_offset: ids.offset,
                ids_stride: ids.stride,
                y_offset: y.offset,
                y_stride: y.stride,
                scale,
            };
            let data = Buffer::Matrix { matrix: m, segment: i as u32 };
            let bindings = vec![self.read("ids", ids.buffer)?, self.read("w_data", data)?, self.write("y", y.buffer)?];
            let grid = self.grid(&variant, matrix.groups() as usize, Count::Tokens, 1)?;
            let row = matrix.dtype.row_bytes(matrix.cols).ok_or_else(|| {
                Error::Graph(format!(
                    "{}: {} columns are no whole blocks of {}",
                    matrix.name, matrix.cols, matrix.dtype
                ))
            })? as u64;
            let reads = Cost { token: 4 + row / matrix.segments.len() as u64, ..Cost::default() };
            self.push(variant.clone(), &p, bindings, grid, reads, self.row_cost(Count::Tokens, matrix.cols));
        }
        Ok(())
    }

    /// Normalises rows, or groups of columns where the weight is shorter than a row.
    pub fn norm(&mut self, norm: &Norm, x: ValueId, y: ValueId) -> Result<()> {
        let (cols, rows) = (self.cols(x), self.rows(x)?);
        let (x, y) = (self.view(x)?, self.fresh(y)?);
        let n = self.g.weight(norm.weight).cols().max(1);
        if !n.is_multiple_of(4) {
            let name = &self.g.weight(norm.weight).name;
            return Err(Error::Unsupported(format!(
                "{name}: norms of {n} columns on the GPU; a multiple of 4 is needed"
            )));
        }
        let p = params::RmsNormParams {
            outputs: u32::from(rows == Rows::Outputs),
            cols: n as u32,
            x_offset: x.offset,
            x_stride: x.stride,
            y_offset: y.offset,
            y_stride: y.stride,
            eps: norm.eps,
        };
        let variant = Variant::new(&catalogue::RMS_NORM)
            .with("LAYER", u32::from(norm.kind == NormKind::Layer))
            .with("BIASED", u32::from(norm.bias.is_some()));
        let bindings = vec![
            self.read("x", x.buffer)?,
            self.weight_vector("w", Some(norm.weight))?,
            self.weight_vector("b", norm.bias)?,
            self.write("y", y.buffer)?,
        ];
        let grid = self.grid(&variant, cols / n, rows.into(), 1)?;
        let cost = self.row_cost(rows.into(), cols);
        self.push(variant, &p, bindings, grid, cost.and(self.row_cost(Count::One, n)), cost);
        Ok(())
    }

    /// The inputs of experts times their weights; ones lie behind them in the same rows.
    pub fn scale_expert_inputs(&mut self, ins: &[ValueId], outs: &[ValueId]) -> Result<()> {
        let (a, b, rows) = (self.view(ins[0])?, self.view(ins[1])?, self.rows(ins[0])?);
        let (inner, scaled_inputs, k) = (self.cols(ins[0]), self.cols(outs[0]), self.cols(outs[1]));
        let y = self.fresh(outs[0])?;
        self.fresh(outs[1])?;
        let p = params::ElementwiseParams {
            outputs: u32::from(rows == Rows::Outputs),
            cols: (scaled_inputs + k) as u32,
            a_offset: a.offset,
            a_stride: a.stride,
            b_offset: b.offset,
            b_stride: b.stride,
            y_offset: y.offset,
            y_stride: y.stride,
            inner: inner as u32,
            factor: 0.0,
        };
        let variant = Variant::new(&catalogue::ELEMENTWISE).with("OP", n::OP_SCALE_EXPERT_INPUTS);
        let bindings = vec![self.read("a", a.buffer)?, self.read("b", b.buffer)?, self.write("y", y.buffer)?];
        let grid = self.grid(&variant, scaled_inputs + k, rows.into(), 1)?;
        let cost = |cols: usize| self.row_cost(rows.into(), cols);
        let (reads, writes) = (cost(inner + k), cost(scaled_inputs + k));
        self.push(variant, &p, bindings, grid, reads, writes);
        Ok(())
    }

    pub fn elementwise(&mut self, e: Elementwise, ins: &[ValueId], out: ValueId) -> Result<()> {
        let (op, act, factor) = match e {
            Elementwise::Add => (n::OP_ADD, None, 0.0),
            Elementwise::Scale(factor) => (n::OP_SCALE, None, factor),
            Elementwise::Glu(act) => (n::OP_GLU, Some(act), 0.0),
            Elementwise::SigmoidGate => (n::OP_SIGMOID_GATE, None, 0.0),
            Elementwise::TakeOutputs => (n::OP_TAKE_OUTPUTS, None, 0.0),
            Elementwise::Act(act) => (n::OP_ACT, Some(act), 0.0),
        };
        let (a, b) = (self.view(ins[0])?, ins.get(1).map(|v| self.view(*v)).transpose()?);
        let (y, rows, cols) = (self.fresh(out)?, self.rows(out)?, self.cols(out));
        let p = params::ElementwiseParams {
            outputs: u32::from(rows == Rows::Outputs),
            cols: cols as u32,
            a_offset: a.offset,
            a_stride: a.stride,
            b_offset: b.map_or(0, |b| b.offset),
            b_stride: b.map_or(0, |b| b.stride),
            y_offset: y.offset,
            y_stride: y.stride,
            inner: 0,
            factor,
        };
        let variant = Variant::new(&catalogue::ELEMENTWISE).with("OP", op);
        let variant = if let Some(act) = act { variant.act(act) } else { variant };
        let bindings = vec![self.read("a", a.buffer)?, self.maybe("b", b)?, self.write("y", y.buffer)?];
        let grid = self.grid(&variant, cols, rows.into(), 1)?;
        let reads = ins.iter().map(|v| self.row_cost(rows.into(), self.cols(*v)));
        let reads = reads.fold(Cost::default(), Cost::and);
        self.push(variant, &p, bindings, grid, reads, self.row_cost(rows.into(), cols));
        Ok(())
    }
}
