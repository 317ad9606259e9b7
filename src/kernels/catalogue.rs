//! The catalogue: every kernel, what it computes, its bindings and its grid. The long story is in each file's header.

mod attention;
mod matrix;
mod simple;

pub use attention::*;
pub use matrix::*;
pub use simple::*;

use super::{Fragment, Variant, fragment::wgsl, numbers as n, params::Field};
use crate::{error::Result, quant::KvType};

/// A number that shapes the code: its name in WGSL and a value.
pub type Number = (&'static str, u32);

/// Gives items and rows of one workgroup of a variant.
pub type TileOf = fn(&Variant) -> Result<[u32; 2]>;

/// A kernel of the catalogue.
pub struct Kernel {
    /// Its name; the stem of its file, or of the op whose variant it is.
    pub name: &'static str,
    /// The WGSL of its own, in order: shared parts first.
    pub parts: [&'static [Fragment]; 3],
    /// Weight slots: prefixes of `*_data` and `*_dequant`.
    pub slots: &'static [&'static str],
    /// Parts that are linked once for each list of slots, whose names replace their prefixes `A_` and `B_`, and for each
    /// number of rows of x at a time up to `COLS`.
    pub products: &'static [(Fragment, &'static [&'static str])],
    /// Whether it reads or writes a KV cache.
    pub kv: bool,
    /// Whether it multiplies tiles in workgroup memory: then a [`super::Tiles`] says how.
    pub tiles: bool,
    /// Numbers that shape the code, and their defaults. With `SUBGROUPS` 1 lanes add up within subgroups first.
    pub consts: [&'static [Number]; 3],
    /// Numbers that its fragments ask for and that it has only one answer to.
    pub fixed: [&'static [Number]; 2],
    /// The fields of `p`.
    pub params: &'static [Field],
    /// Other structs of [`super::params`] that its fragments use: name, fields, and WGSL of an array at the end.
    pub structs: &'static [(&'static str, &'static [Field], &'static str)],
    /// Items and rows of one workgroup.
    pub tile: TileOf,
}

impl Kernel {
    /// Its varying numbers with their defaults, in the order of labels.
    pub fn consts(&self) -> impl Iterator<Item = Number> {
        self.consts.into_iter().flatten().copied()
    }

    /// Its fixed numbers.
    pub fn fixed(&self) -> impl Iterator<Item = Number> {
        self.fixed.into_iter().flatten().copied()
    }

    /// Whether a number of this name may vary.
    pub fn varies(&self, name: &str) -> bool {
        self.consts().any(|c| c.0 == name)
    }
}

/// The parts of a kernel that is no combination.
const fn parts(list: &'static [Fragment]) -> [&'static [Fragment]; 3] {
    [list, &[], &[]]
}

/// Its varying numbers.
const fn consts(list: &'static [Number]) -> [&'static [Number]; 3] {
    [list, &[], &[]]
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Who adds up the products of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Several invocations a row, partial sums meet in workgroup memory: the lanes of a GPU read a row side by side.
    Workgroup,
    /// One invocation for several whole rows, no barrier: a processor that emulates a GPU pays dearly for barriers.
    Invocation,
}

impl Reduction {
    /// `expert_down_add` for experts of `cols` columns, `used` of them a token.
    ///
    /// On a GPU a workgroup takes up to eight experts side by side: one after the other, each costs a round trip to memory for its
    /// number and another for its weights. Eight lanes a row, which divide the groups of all usual widths (512, 768, 1024, 1536), so
    /// that none is idle; four rows of teams of two rows each.
    pub fn down(self, cols: usize, used: usize) -> Variant {
        let v = self.matrix(&EXPERT_DOWN_ADD, cols, false);
        let slots = 1u32 << used.clamp(1, 8).ilog2();
        match self {
            Reduction::Invocation => v,
            Reduction::Workgroup if slots == 1 => v.with("LANES", 8),
            Reduction::Workgroup => v.with("WG", slots * 32).with("LANES", 8).with("SLOTS", slots),
        }
    }

    /// A matrix kernel (one with `LANES`) for matrices of `cols` columns: for one row of x at a time, or for several that
    /// share each group of weights that is read. Formats are left to the caller.
    ///
    /// Measured for [`Reduction::Invocation`] on lavapipe (Mesa 22.3, AVX-512 host, processor time over two cores): one row of x,
    /// 16384 x 2048: 1, 2, 4 rows an invocation 2.9, 4.0, 5.4-6 GB/s for Q8_0 and 1.5, 2.2, 2.6 for Q4_K, against
    /// 2.4 and 1.3 with lanes. 64 rows of x, 2048 x 2048, rows by columns: 1 x 8 5.7, 1 x 16 5.3, 2 x 4 9.6, 2 x 8 7.8,
    /// 4 x 4 13.9-15.8 GFLOP/s; each doubling of the tile doubles the time of the first dispatch (4 x 4: 0.4 s).
    pub fn matrix(self, kernel: &'static Kernel, cols: usize, many: bool) -> Variant {
        // Two matrices in one pass: half the rows for the same registers.
        let rows = if kernel.products.iter().any(|p| p.1.len() > 1) { 2 } else { 4 };
        let many = many && kernel.varies("COLS");
        let [wg, lanes, rows, columns] = match (self, many) {
            (Reduction::Workgroup, false) if cols <= 512 => [64, 8, 1, 1],
            (Reduction::Workgroup, false) => [64, 16, 2, 1],
            (Reduction::Workgroup, true) => [64, 8, 1, 8],
            (Reduction::Invocation, false) => [32, 1, rows, 1],
            (Reduction::Invocation, true) => [32, 1, rows, 4],
        };
        let v = Variant::new(kernel).with("WG", wg).with("LANES", lanes).with("ROWS", rows);
        let v = v.with("TAIL", u32::from(!cols.is_multiple_of(32)));
        if kernel.varies("COLS") { v.with("COLS", columns) } else { v }
    }
}

const SUM: Fragment = wgsl!("common/sum.wgsl");
const ERF: Fragment = wgsl!("common/erf.wgsl");
const ACTIVATION: Fragment = wgsl!("common/activation.wgsl");

/// Functions of training kernels, whose own texts are made node by node.
pub const TRAINING: [Fragment; 2] = [ERF, wgsl!("train/functions.wgsl")];
const SEQUENCE: Fragment = wgsl!("common/sequence.wgsl");

/// The numbers of the clamped SwiGLU, for kernels that do not offer it.
const NO_CLAMP: &[Number] = &[("ALPHA", 0), ("LIMIT", 0)];

/// What most kernels leave out.
const PLAIN: Kernel = Kernel {
    name: "",
    parts: parts(&[]),
    slots: &[],
    products: &[],
    kv: false,
    tiles: false,
    consts: consts(&[]),
    fixed: [&[], &[]],
    params: &[],
    structs: &[],
    tile: one_each,
};

fn one_each(_: &Variant) -> Result<[u32; 2]> {
    Ok([1, 1])
}

fn wg_items(v: &Variant) -> Result<[u32; 2]> {
    Ok([v.get("WG")?, 1])
}

/// Every kernel.
pub static ALL: [&Kernel; 42] = [
    &HEAD_IDS,
    &LOCAL_IDS,
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
    &ROUTER_CACHED,
    &EXPERT_PLACES,
    &EXPERT_FILL_1,
    &EXPERT_FILL_2,
    &EXPERT_FILL_3,
    &EXPERT_SORT,
    &EXPERT_COMBINE,
    &ELEMENTWISE,
    &SAMPLE_KEYS,
    &SAMPLE_PICK,
    &COPY,
    &PROBE,
];

impl Variant {
    /// With this activation: its number in `ACT`, and its own numbers as bits.
    pub fn act(self, act: crate::ir::Activation) -> Variant {
        use crate::ir::Activation::{ClampedSwiglu, Gelu, GeluTanh, Identity, Relu, Sigmoid, Silu, Tanh};
        match act {
            Silu => self.with("ACT", n::ACT_SILU),
            Gelu => self.with("ACT", n::ACT_GELU),
            GeluTanh => self.with("ACT", n::ACT_GELU_TANH),
            Relu => self.with("ACT", n::ACT_RELU),
            Sigmoid => self.with("ACT", n::ACT_SIGMOID),
            Identity => self.with("ACT", n::ACT_IDENTITY),
            Tanh => self.with("ACT", n::ACT_TANH),
            ClampedSwiglu { alpha, limit } => {
                self.with("ACT", n::ACT_CLAMPED_SWIGLU).with("ALPHA", alpha.to_bits()).with("LIMIT", limit.to_bits())
            }
        }
    }
}

/// What the scores are divided by in the numbers of `RouterParams`: `renormalise`, and `epsilon`, which is a sparsemixer's
/// threshold too.
pub fn renormalise(r: &crate::ir::Router) -> (u32, f32) {
    use crate::ir::{Renormalise, Score};
    let (number, epsilon) = match r.renormalise {
        Renormalise::No => (n::RENORMALISE_NO, 0.0),
        Renormalise::Sum => (n::RENORMALISE_SUM, 0.0),
        Renormalise::SumPlus(e) => (n::RENORMALISE_SUM_PLUS, e),
        Renormalise::SumAtLeast(e) => (n::RENORMALISE_SUM_AT_LEAST, e),
        Renormalise::Softmax => (n::RENORMALISE_SOFTMAX, 0.0),
    };
    match r.score {
        Score::SparseMixer { threshold } => (number, threshold),
        Score::Softmax | Score::SoftmaxOfSelected | Score::Sigmoid | Score::SqrtSoftplus => (number, epsilon),
    }
}

/// The number of a scoring function in `RouterParams::score`.
pub fn score(s: crate::ir::Score) -> u32 {
    use crate::ir::Score::{Sigmoid, Softmax, SoftmaxOfSelected, SparseMixer, SqrtSoftplus};
    match s {
        Softmax => n::SCORE_SOFTMAX,
        SoftmaxOfSelected => n::SCORE_SOFTMAX_OF_SELECTED,
        Sigmoid => n::SCORE_SIGMOID,
        SqrtSoftplus => n::SCORE_SQRT_SOFTPLUS,
        SparseMixer { .. } => n::SCORE_SPARSE_MIXER,
    }
}

/// `router` for this selection.
///
/// # Errors
/// None today: the kernel has the numbers that are asked for.
pub fn router_variant(r: &crate::ir::Router) -> Result<Variant> {
    let v = Variant::new(&ROUTER);
    let room = (r.experts as u32).next_multiple_of(v.get("WG")?.max(1));
    let v = v.with("EXPERTS", room).with("BY_SCORE", u32::from(!r.chooses_by_logits()));
    let (sparse, scaled) = (matches!(r.score, crate::ir::Score::SparseMixer { .. }), r.expert_scale.is_some());
    let own = r.over_groups().is_some();
    let v = v.with("SPARSE", sparse.into()).with("SCALED", scaled.into()).with("OWN_GROUPS", own.into());
    let v = v.with("KEEP_IDS", (sparse || scaled || own).into());
    let Some(g) = r.groups.filter(|g| own || g.used < g.count) else { return Ok(v) };
    Ok(v.with("GROUPED", 1).with("GROUPS", g.count as u32))
}

/// `router_cached` for this selection and so many slots, by workgroups of this size where that matters: sums of scores follow it.
///
/// # Errors
/// As [`router_variant`].
pub fn cached_router_variant(r: &crate::ir::Router, slots: usize, workgroup: Option<u32>) -> Result<Variant> {
    let v = Variant { kernel: &ROUTER_CACHED, ..router_variant(r)? };
    let room = (slots as u32).next_multiple_of(64);
    let v = v.with("KEEP_IDS", 1).with("CHOSEN", r.used as u32).with("CACHE_ROOM", room);
    Ok(match workgroup {
        Some(wg) => v.with("WG", wg),
        None => v,
    })
}

/// `attend` for heads of this size, `group` query heads to a kv head.
///
/// On a GPU four lanes share a key, which they read side by side; that takes a quarter of the registers for scores, and a round of
/// 32 positions needs no more than eight words of each lane. A processor that emulates a GPU reads a key from end to end.
pub fn attend_variant(k_dim: usize, v_dim: usize, group: usize, kv: KvType, reduction: Reduction) -> Variant {
    let [wg, team, loads] = match reduction {
        Reduction::Workgroup if v_dim <= 128 => [128, 4, 8],
        Reduction::Workgroup => [128, 4, 4],
        Reduction::Invocation => [64, 1, 4],
    };
    let mut rows = if group > 4 { 8 } else { 4 };
    // All that meets in workgroup memory is within 16 KiB, the least that a device offers.
    while rows > 1 && attend_bytes(wg, team, rows, [k_dim, v_dim]) > 16384 {
        rows /= 2;
    }
    let n = |v: usize| u32::try_from(v).unwrap_or(u32::MAX);
    let v = Variant::new(&ATTEND).kv(kv).with("WG", n(wg)).with("K_DIM", n(k_dim)).with("V_DIM", n(v_dim));
    v.with("ROWS", n(rows)).with("TEAM", n(team.min(rows))).with("LOADS", n(loads))
}

/// Bytes of workgroup memory of `attend`: queries or the shares that are added up, parts of scores, maxima, weights.
fn attend_bytes(wg: usize, team: usize, rows: usize, [k_dim, v_dim]: [usize; 2]) -> usize {
    let parts = (wg / (v_dim / 4).max(1)).max(1);
    let weights = (wg / team.min(rows) + 1) * rows;
    4 * ((rows * k_dim).max(parts / 2 * v_dim * rows) + rows * wg + wg + weights + 2 * rows)
}
