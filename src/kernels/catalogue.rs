//! The catalogue: every kernel, what it computes, its bindings and its grid. The long story is in each file's header.

mod attention;
mod matrix;
mod simple;

pub use attention::*;
pub use matrix::*;
pub use simple::*;

use super::{Variant, params::Field};
use crate::quant::KvType;

/// A kernel of the catalogue.
pub struct Kernel {
    /// Its name; the stem of its file, or of the op whose variant it is.
    pub name: &'static str,
    /// The WGSL of its own, in order: shared parts first.
    pub parts: &'static [&'static str],
    /// Weight slots: prefixes of `*_data` and `*_dequant`.
    pub slots: &'static [&'static str],
    /// Parts that are linked once for each list of slots, whose names replace their prefixes `A_` and `B_`, and for each
    /// number of rows of x at a time up to `COLS`.
    pub products: &'static [(&'static str, &'static [&'static str])],
    /// Whether it reads or writes a KV cache.
    pub kv: bool,
    /// Whether it multiplies tiles in workgroup memory: then a [`super::Tiles`] says how.
    pub tiles: bool,
    /// Numbers that shape the code, and their defaults. With `SUBGROUPS` 1 lanes add up within subgroups first.
    pub consts: &'static [(&'static str, u32)],
    /// The fields of `p`.
    pub params: &'static [Field],
    /// Items and rows of one workgroup.
    pub tile: fn(&Variant) -> [u32; 2],
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Which reduction suits the adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Several invocations a row, partials sums meet in workgroup memory: the lanes of a GPU read a row side by side.
    Lanes,
    /// One invocation for several whole rows, no barrier: a processor that emulates a GPU pays dearly for barriers.
    Rows,
}

impl Style {
    /// A matrix kernel (one with `LANES`) for matrices of `cols` columns: for one row of x at a time, or for several that
    /// share each group of weights that is read. Formats are left to the caller.
    ///
    /// Measured for [`Style::Rows`] on lavapipe (Mesa 22.3, AVX-512 host, processor time over two cores): one row of x,
    /// 16384 x 2048: 1, 2, 4 rows an invocation 2.9, 4.0, 5.4-6 GB/s for Q8_0 and 1.5, 2.2, 2.6 for Q4_K, against
    /// 2.4 and 1.3 with lanes. 64 rows of x, 2048 x 2048, rows by columns: 1 x 8 5.7, 1 x 16 5.3, 2 x 4 9.6, 2 x 8 7.8,
    /// 4 x 4 13.9-15.8 GFLOP/s; each doubling of the tile doubles the time of the first dispatch (4 x 4: 0.4 s).
    pub fn matrix(self, kernel: &'static Kernel, cols: usize, many: bool) -> Variant {
        // Two matrices in one pass: half the rows for the same registers.
        let rows = if kernel.products.iter().any(|p| p.1.len() > 1) { 2 } else { 4 };
        let many = many && kernel.consts.iter().any(|c| c.0 == "COLS");
        let [wg, lanes, rows, columns] = match (self, many) {
            (Style::Lanes, false) if cols <= 512 => [64, 8, 1, 1],
            (Style::Lanes, false) => [64, 16, 2, 1],
            (Style::Lanes, true) => [64, 8, 1, 8],
            (Style::Rows, false) => [32, 1, rows, 1],
            (Style::Rows, true) => [32, 1, rows, 4],
        };
        let v = Variant::new(kernel).with("WG", wg).with("LANES", lanes).with("ROWS", rows);
        let v = v.with("TAIL", u32::from(!cols.is_multiple_of(32)));
        if kernel.consts.iter().any(|c| c.0 == "COLS") { v.with("COLS", columns) } else { v }
    }
}

const FRAME: &str = include_str!("../../shaders/common/frame.wgsl");
const SUM: &str = include_str!("../../shaders/common/sum.wgsl");
const ACTIVATION: &str = include_str!("../../shaders/common/activation.wgsl");
const SEQUENCE: &str = include_str!("../../shaders/common/sequence.wgsl");

/// What most kernels leave out.
const PLAIN: Kernel = Kernel {
    name: "",
    parts: &[],
    slots: &[],
    products: &[],
    kv: false,
    tiles: false,
    consts: &[],
    params: &[],
    tile: one_each,
};

fn one_each(_: &Variant) -> [u32; 2] {
    [1, 1]
}

fn wg_items(v: &Variant) -> [u32; 2] {
    [v.get("WG"), 1]
}

/// Every kernel.
pub static ALL: [&Kernel; 35] = [
    &HEAD_IDS,
    &JOIN_HEADS,
    &EMBED,
    &RMS_NORM,
    &LINEAR_KERNEL,
    &LINEAR_TWO,
    &EXPERT_LINEAR,
    &EXPERT_LINEAR_GROUPED,
    &LINEAR_TILES,
    &LINEAR_TWO_TILES,
    &EXPERT_LINEAR_TILES,
    &LINEAR_GLU_TILES,
    &EXPERT_GLU_TILES,
    &LINEAR_GLU,
    &EXPERT_GLU,
    &EXPERT_GLU_SHARED,
    &EXPERT_GLU_CHOOSE,
    &EXPERT_GLU_SHARED_CHOOSE,
    &EXPERT_GLU_GROUPED,
    &EXPERT_DOWN_ADD,
    &EXPERT_DOWN_SHARED_ADD,
    &ROPE,
    &KV_STORE,
    &ROPE_STORE,
    &ATTEND,
    &ATTEND_REDUCE,
    &SHORT_CONV,
    &DELTA_NET,
    &ROUTER,
    &EXPERT_SORT,
    &EXPERT_COMBINE,
    &ELEMENTWISE,
    &SAMPLE_KEYS,
    &SAMPLE_PICK,
    &COPY,
];

impl Variant {
    /// With this activation: its number in `ACT`, and its own numbers as bits.
    pub fn act(self, act: crate::ir::Activation) -> Variant {
        use crate::ir::Activation::{ClampedSwiglu, Gelu, GeluTanh, Identity, Relu, Sigmoid, Silu, Tanh};
        match act {
            Silu => self.with("ACT", 0),
            Gelu => self.with("ACT", 1),
            GeluTanh => self.with("ACT", 2),
            Relu => self.with("ACT", 3),
            Sigmoid => self.with("ACT", 5),
            Identity => self.with("ACT", 6),
            Tanh => self.with("ACT", 7),
            ClampedSwiglu { alpha, limit } => {
                self.with("ACT", 4).with("ALPHA", alpha.to_bits()).with("LIMIT", limit.to_bits())
            }
        }
    }
}

/// The number of a scoring function in `RouterParams::score`.
pub fn score(s: crate::ir::Score) -> u32 {
    use crate::ir::Score::{Sigmoid, Softmax, SoftmaxOfSelected, SparseMixer, SqrtSoftplus};
    match s {
        Softmax => 0,
        SoftmaxOfSelected => 1,
        Sigmoid => 2,
        SqrtSoftplus => 3,
        SparseMixer { .. } => 4,
    }
}

/// `router` for this selection.
pub fn router_variant(r: &crate::ir::Router) -> Variant {
    let v = Variant::new(&ROUTER);
    let room = (r.experts as u32).next_multiple_of(v.get("WG").max(1));
    let v = v.with("EXPERTS", room).with("BY_SCORE", u32::from(!r.chooses_by_logits()));
    let (sparse, scaled) = (matches!(r.score, crate::ir::Score::SparseMixer { .. }), r.expert_scale.is_some());
    let v = v.with("SPARSE", sparse.into()).with("SCALED", scaled.into()).with("KEEP_IDS", (sparse || scaled).into());
    let Some(g) = r.groups.filter(|g| g.used < g.count) else { return v };
    v.with("GROUPED", 1).with("GROUPS", g.count as u32)
}

/// `attend` for heads of this size, `group` query heads to a kv head. `SPLIT` is left to the caller.
pub fn attend_variant(k_dim: usize, v_dim: usize, group: usize, kv: KvType) -> Variant {
    let mut rows = if group > 4 { 8 } else { 4 };
    // Queries, scores and the meeting of the shares within 16 KiB, the least that a device offers.
    while rows > 1 && rows * (k_dim + 64 + 256) * 4 + 1024 > 16384 {
        rows /= 2;
    }
    let n = |v: usize| u32::try_from(v).unwrap_or(u32::MAX);
    Variant::new(&ATTEND).kv(kv).with("WG", 64).with("K_DIM", n(k_dim)).with("V_DIM", n(v_dim)).with("ROWS", n(rows))
}
