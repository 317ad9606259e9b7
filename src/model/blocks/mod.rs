//! The blocks that layers are made of. A block gets its part of a layer's description and the values that it reads, declares
//! its weights on the way, and knows no architecture and no other part of the layer.

pub(super) mod attention;
pub(super) mod delta;
pub(super) mod ffn;
pub(super) mod linear;
pub(super) mod mla;
pub(super) mod moe;
pub(super) mod norm;
pub(super) mod short_conv;

use super::decoder::NormSpec;

/// The layer that a block stands in.
#[derive(Clone, Copy)]
pub(super) struct Site {
    /// The layer's number.
    pub layer: usize,
    /// Hidden size, H, in columns.
    pub hidden: usize,
    /// What the norms share.
    pub norm: NormSpec,
}

impl Site {
    /// The canonical name of one of the layer's weights: `attn_q` → `blk.3.attn_q`.
    pub fn at(&self, name: &str) -> String {
        format!("blk.{}.{name}", self.layer)
    }

    /// The canonical name of one of the layer's matrices: `attn_q` → `blk.3.attn_q.weight`.
    pub fn weight(&self, stem: &str) -> String {
        format!("blk.{}.{stem}.weight", self.layer)
    }
}
