//! The way back from the experts: last product, weighted sum, residual.

use super::{
    super::{Binding, Buffer, Cost, Count, Place, lower::Lower, shared::Shared},
    Routed,
};
use crate::{
    error::Result,
    ir::{Linear, ValueId},
    kernels::{Variant, catalogue, params},
};

impl Lower<'_> {
    /// The experts' last product, its weighted sum, the residual; with the shared expert where there is one.
    pub(super) fn expert_down_add(
        &mut self,
        l: &Linear,
        factor: f32,
        ins: &[ValueId],
        out: ValueId,
        shared: Option<Shared>,
    ) -> Result<()> {
        let [h, ids, weights, residual] = [ins[0], ins[1], ins[2], ins[3]];
        let out = shared.map_or(out, |s| s.out);
        let (k, cols, x) = (self.g.cols(ids), self.g.cols(out), self.place(h)?);
        let residual = self.place(residual)?;
        if !self.decode {
            let slots = self.content(Count::Tokens, k * cols);
            self.expert_linear(l, None, Routed { x, x_slots: self.x_slots(h, l.weight), ids, y: slots })?;
            let y = self.fresh(out)?;
            return self.combine(slots, weights, Some((residual, factor)), y, cols);
        }
        let y = self.fresh(out)?;
        let m = self.w.matrix(&[l.weight])?;
        let matrix = &self.w.matrices[m as usize];
        let (ids, weights) = (self.place(ids)?, self.place(weights)?);
        let variant = self.matrix_variant(&catalogue::EXPERT_DOWN_ADD, matrix.cols, false).formats(&[matrix.dtype]);
        for (i, s) in matrix.segments.iter().enumerate() {
            let mut p = params::ExpertDownAddParams {
                row0: s.row0 as u32,
                rows: s.rows as u32,
                groups: matrix.groups(),
                cols: matrix.cols as u32,
                out: cols as u32,
                used: k as u32,
                flags: if i == 0 { params::RESIDUAL } else { params::ACCUMULATE }
                    | if l.bias.is_some() { params::BIAS } else { 0 },
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
                factor,
                ..params::ExpertDownAddParams::default()
            };
            let data = Buffer::Matrix { matrix: m, segment: i as u32 };
            let mut bindings = vec![
                self.read("x", x.buffer)?,
                self.read("w_data", data)?,
                self.read("ids", ids.buffer)?,
                self.read("weights", weights.buffer)?,
                self.maybe("residual", (i == 0).then_some(residual))?,
                self.weight_vector("bias", l.bias)?,
                self.write("y", y.buffer)?,
            ];
            let grid = self.grid(&variant, cols, Count::Tokens, 1)?;
            let operands = k * matrix.cols + cols;
            let mut reads = self.expert_cost(matrix, s.bytes, k, cols).and(self.row_cost(Count::Tokens, operands));
            let mut variant = variant.clone();
            // The first segment takes the shared expert along.
            if let Some(shared) = shared.filter(|_| i == 0) {
                reads = reads.and(self.take_along(shared, &mut variant, &mut p, &mut bindings)?);
            }
            self.push(variant, &p, bindings, grid, reads, self.row_cost(Count::Tokens, cols));
        }
        Ok(())
    }

    /// Makes of a step with routed experts one that adds the shared expert too; gives what that reads more.
    fn take_along(
        &mut self,
        shared: Shared,
        variant: &mut Variant,
        p: &mut params::ExpertDownAddParams,
        bindings: &mut Vec<Binding>,
    ) -> Result<Cost> {
        let matrix = self.w.matrix(&[shared.down])?;
        let own = &self.w.matrices[matrix as usize];
        let gate = shared.gate.map(|g| self.place(g)).transpose()?;
        (p.shared_cols, p.shared_groups) = (own.cols as u32, own.groups());
        if let Some(gate) = gate {
            (p.gate_offset, p.gate_stride) = (gate.offset, gate.stride);
            p.flags |= params::GATE;
        }
        variant.kernel = &catalogue::EXPERT_DOWN_SHARED_ADD;
        variant.formats.push(own.dtype);
        let tail = u32::from(variant.get("TAIL")? == 1 || !own.cols.is_multiple_of(32));
        *variant = variant.clone().with("TAIL", tail);
        bindings.retain(|b| b.name != "bias");
        bindings.push(self.read("shared_data", Buffer::Matrix { matrix, segment: 0 })?);
        bindings.push(self.maybe("gate", gate)?);
        let fixed = Cost { fixed: own.bytes(), ..Cost::default() };
        Ok(fixed.and(self.row_cost(Count::Tokens, own.cols)))
    }

    /// The weighted sum, or a residual and a factor times it.
    pub(super) fn combine(
        &mut self,
        x: Place,
        weights: ValueId,
        after: Option<(Place, f32)>,
        y: Place,
        cols: usize,
    ) -> Result<()> {
        let residual = after.map(|a| a.0);
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
