//! Lowering of the ops with recurrent states, which each sequence has in several slots.

use super::{Access, Binding, Buffer, Caps, Cost, Count, Options, limits::fits, lower::Lower};
use crate::{
    error::Result,
    ir::{DeltaNet, Graph, ShortConv, StateId, ValueId},
    kernels::{Variant, catalogue, numbers, params},
};

/// Slots that each sequence has for its states: where a step reads them, where it leaves them, and a snapshot.
pub const STATE_SLOTS: usize = 3;

/// In place of a slot that is read: states that are zeros.
pub const STATE_FRESH: u32 = numbers::STATE_FRESH;

/// Bytes of every state: those of all slots of all sequences.
pub(super) fn states(g: &Graph, caps: &Caps, o: &Options) -> Result<Vec<u64>> {
    let help = "use fewer sequences, a device with larger bindings, or the cpu backend";
    let slots = (o.sequences.unwrap_or(1) as u64).saturating_mul(STATE_SLOTS as u64);
    let bytes = |len: usize| (len as u64).saturating_mul(4).saturating_mul(slots);
    let state =
        |(i, d): (usize, &crate::ir::StateDecl)| fits(caps, bytes(d.len), &format!("the recurrent state {i}"), help);
    g.states.iter().enumerate().map(state).collect()
}

impl Lower<'_> {
    fn state(&self, s: StateId) -> Result<Binding> {
        self.bind("state", Buffer::State(s.0), Access::ReadWrite)
    }

    fn sequences(&self) -> usize {
        self.target.options.sequences.unwrap_or(1)
    }

    /// Reading and writing a state once, whatever the number of tokens.
    fn state_cost(&self, s: StateId) -> Cost {
        self.row_cost(Count::One, self.g.states[s.0 as usize].len)
    }

    pub fn short_conv(&mut self, c: &ShortConv, x: ValueId, out: ValueId) -> Result<()> {
        self.tokens_only(x)?;
        let channels = self.g.cols(x);
        let (x, y) = (self.view(x)?, self.fresh(out)?);
        let p = params::ShortConvParams {
            channels: channels as u32,
            bias_on: u32::from(c.bias.is_some()),
            act_on: u32::from(c.act.is_some()),
            x_offset: x.offset,
            x_stride: x.stride,
            y_offset: y.offset,
            y_stride: y.stride,
        };
        let variant = Variant::new(&catalogue::SHORT_CONV).with("TAPS", c.taps as u32).with("BATCH", self.batch());
        let variant = if let Some(act) = c.act { variant.act(act) } else { variant };
        let bindings = vec![
            self.read("x", x.buffer)?,
            self.weight_vector("w", Some(c.weight))?,
            self.weight_vector("bias", c.bias)?,
            self.state(c.state)?,
            self.read("spans", Buffer::Spans)?,
            self.write("y", y.buffer)?,
        ];
        let grid = self.grid(&variant, channels, Count::One, self.sequences())?;
        let (row, state) = (self.row_cost(Count::Tokens, channels), self.state_cost(c.state));
        let weights = self.row_cost(Count::One, c.taps * channels);
        self.push(variant, &p, bindings, grid, row.and(state).and(weights), row.and(state));
        Ok(())
    }

    pub fn delta_net(&mut self, d: &DeltaNet, ins: &[ValueId], out: ValueId) -> Result<()> {
        self.tokens_only(ins[0])?;
        let (qkv, a, b) = (self.view(ins[0])?, self.view(ins[1])?, self.view(ins[2])?);
        let y = self.fresh(out)?;
        let p = params::DeltaNetParams {
            k_heads: d.k_heads as u32,
            v_heads: d.v_heads as u32,
            k_dim: d.k_dim as u32,
            v_dim: d.v_dim as u32,
            tiled: u32::from(d.tiled),
            qkv_offset: qkv.offset,
            qkv_stride: qkv.stride,
            a_offset: a.offset,
            a_stride: a.stride,
            b_offset: b.offset,
            b_stride: b.stride,
            y_offset: y.offset,
            y_stride: y.stride,
        };
        let variant = Variant::new(&catalogue::DELTA_NET).with("BATCH", self.batch());
        let bindings = vec![
            self.read("qkv", qkv.buffer)?,
            self.read("a", a.buffer)?,
            self.read("b", b.buffer)?,
            self.weight_vector("decay", Some(d.decay))?,
            self.weight_vector("dt_bias", Some(d.dt_bias))?,
            self.state(d.state)?,
            self.read("spans", Buffer::Spans)?,
            self.write("y", y.buffer)?,
        ];
        let grid = self.grid(&variant, d.v_heads * d.v_dim, Count::One, self.sequences())?;
        let y_cols = self.row_cost(Count::Tokens, d.v_heads * d.v_dim);
        let reads = self.row_cost(Count::Tokens, d.qkv_cols() + 2 * d.v_heads).and(self.state_cost(d.state));
        self.push(variant, &p, bindings, grid, reads, y_cols.and(self.state_cost(d.state)));
        Ok(())
    }
}
