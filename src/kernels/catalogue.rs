//! The catalogue: every kernel, what it computes, its bindings and its grid. The long story is in each file's header.

use super::{Kv, Variant, params, params::Field};

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
const ROTATE: &str = include_str!("../../shaders/common/rotate.wgsl");
const LINEAR: &str = include_str!("../../shaders/linear.wgsl");
const GLU_LINEAR: &str = include_str!("../../shaders/linear_glu.wgsl");
const SEQUENCE: &str = include_str!("../../shaders/common/sequence.wgsl");
const SAMPLING: &str = include_str!("../../shaders/common/sampling.wgsl");
const DOT: &str = include_str!("../../shaders/common/dot.wgsl");
const ROWS_PLAIN: &str = include_str!("../../shaders/rows/plain.wgsl");
const ROWS_SLOTS: &str = include_str!("../../shaders/rows/slots.wgsl");
const ROWS_GROUPED: &str = include_str!("../../shaders/rows/grouped.wgsl");
const EXPERT_CHOOSE: &str = include_str!("../../shaders/experts/choose.wgsl");
const EXPERT_IDS: &str = include_str!("../../shaders/experts/ids.wgsl");
const ONE_MATRIX: &str = include_str!("../../shaders/matrix/one.wgsl");
const TWO_MATRICES: &str = include_str!("../../shaders/matrix/two.wgsl");
const ONE_UNIT: &str = include_str!("../../shaders/glu/one.wgsl");
const AND_SHARED_UNIT: &str = include_str!("../../shaders/glu/shared.wgsl");
const EXPERT_DOWN: &str = include_str!("../../shaders/expert_down_add.wgsl");
const DOWN_ALONE: &str = include_str!("../../shaders/down/alone.wgsl");
const AND_SHARED_DOWN: &str = include_str!("../../shaders/down/shared.wgsl");
const PRODUCTS: &str = include_str!("../../shaders/common/products.wgsl");
const PAIR_PRODUCTS: &str = include_str!("../../shaders/common/glu_products.wgsl");
const MATRIX_IO: &str = include_str!("../../shaders/matrix/io.wgsl");
const ONE_MATRIX_LANES: &str = include_str!("../../shaders/matrix/one_lanes.wgsl");
const TWO_MATRICES_LANES: &str = include_str!("../../shaders/matrix/two_lanes.wgsl");
const ONE_MATRIX_TILES: &str = include_str!("../../shaders/matrix/one_tiles.wgsl");
const TWO_MATRICES_TILES: &str = include_str!("../../shaders/matrix/two_tiles.wgsl");
const UNIT_IO: &str = include_str!("../../shaders/glu/io.wgsl");
const ONE_UNIT_LANES: &str = include_str!("../../shaders/glu/one_lanes.wgsl");
const ONE_UNIT_TILES: &str = include_str!("../../shaders/glu/one_tiles.wgsl");
const LINEAR_TILES_MAIN: &str = include_str!("../../shaders/linear_tiles.wgsl");
const GLU_TILES_MAIN: &str = include_str!("../../shaders/linear_glu_tiles.wgsl");
const SLOT: &str = include_str!("../../shaders/tiles/slot.wgsl");
const W_PRODUCTS: &[(&str, &[&str])] = &[(PRODUCTS, &["w"])];
const GLU_PRODUCTS: &[(&str, &[&str])] = &[(PAIR_PRODUCTS, &["gate", "up"])];

/// Rows of the weight and rows of x that a workgroup of a matrix kernel takes.
fn matrix_tile(v: &Variant) -> [u32; 2] {
    [v.get("WG") / v.get("LANES").max(1) * v.get("ROWS"), v.get("COLS")]
}

/// The same of a kernel that multiplies tiles.
fn tile_size(v: &Variant) -> [u32; 2] {
    [v.get("TM"), v.get("COLS")]
}

/// The same of a gated unit: half of a tile's rows are the gate's.
fn unit_tile_size(v: &Variant) -> [u32; 2] {
    [v.get("TM") / 2, v.get("COLS")]
}

fn one_each(_: &Variant) -> [u32; 2] {
    [1, 1]
}

fn wg_items(v: &Variant) -> [u32; 2] {
    [v.get("WG"), 1]
}

/// `ACT` of a product that nothing follows.
const NO_ACT: u32 = 9;

const MATRIX: &[(&str, u32)] =
    &[("WG", 64), ("LANES", 16), ("SUBGROUPS", 0), ("ROWS", 2), ("COLS", 1), ("TAIL", 0), ("ACT", NO_ACT)];
const MATRIX_NORM: &[(&str, u32)] =
    &[("WG", 64), ("LANES", 16), ("SUBGROUPS", 0), ("ROWS", 2), ("COLS", 1), ("TAIL", 0), ("ACT", NO_ACT), ("NORM", 0)];
const MATRIX_NORMED: &[(&str, u32)] = &[
    ("WG", 64),
    ("LANES", 16),
    ("SUBGROUPS", 0),
    ("ROWS", 2),
    ("COLS", 1),
    ("TAIL", 0),
    ("ACT", NO_ACT),
    ("NORM", 0),
    ("NORMED", 0),
];
const GLU_MATRIX: &[(&str, u32)] = &[
    ("WG", 64),
    ("LANES", 16),
    ("SUBGROUPS", 0),
    ("ROWS", 2),
    ("COLS", 1),
    ("TAIL", 0),
    ("ACT", 0),
    ("ALPHA", 0),
    ("LIMIT", 0),
];
const GLU_MATRIX_CHOOSE: &[(&str, u32)] = &[
    ("WG", 64),
    ("LANES", 16),
    ("SUBGROUPS", 0),
    ("ROWS", 2),
    ("COLS", 1),
    ("TAIL", 0),
    ("ACT", 0),
    ("ALPHA", 0),
    ("LIMIT", 0),
    ("CHOOSE", 1),
    ("EXPERTS", 64),
];
const GLU_MATRIX_SHARED_CHOOSE: &[(&str, u32)] = &[
    ("WG", 64),
    ("LANES", 16),
    ("SUBGROUPS", 0),
    ("ROWS", 2),
    ("COLS", 1),
    ("TAIL", 0),
    ("ACT", 0),
    ("ALPHA", 0),
    ("LIMIT", 0),
    ("SHARED", 1),
    ("CHOOSE", 1),
    ("EXPERTS", 64),
];
const GLU_MATRIX_SHARED: &[(&str, u32)] = &[
    ("WG", 64),
    ("LANES", 16),
    ("SUBGROUPS", 0),
    ("ROWS", 2),
    ("COLS", 1),
    ("TAIL", 0),
    ("ACT", 0),
    ("ALPHA", 0),
    ("LIMIT", 0),
    ("SHARED", 1),
];
const GLU_MATRIX_NORM: &[(&str, u32)] = &[
    ("WG", 64),
    ("LANES", 16),
    ("SUBGROUPS", 0),
    ("ROWS", 2),
    ("COLS", 1),
    ("TAIL", 0),
    ("ACT", 0),
    ("ALPHA", 0),
    ("LIMIT", 0),
    ("NORM", 0),
];

const TILES: &[(&str, u32)] = &[("WG", 64), ("TM", 64), ("COLS", 32), ("ACT", NO_ACT)];
const GLU_TILES: &[(&str, u32)] = &[("WG", 64), ("TM", 64), ("COLS", 32), ("ACT", 0), ("ALPHA", 0), ("LIMIT", 0)];
const W_SLOT: &[(&str, &[&str])] = &[(SLOT, &["w"])];
const GLU_SLOTS: &[(&str, &[&str])] = &[(SLOT, &["gate"]), (SLOT, &["up"])];

const DOWN_MATRIX: &[(&str, u32)] =
    &[("WG", 64), ("LANES", 16), ("SUBGROUPS", 0), ("ROWS", 2), ("COLS", 1), ("TAIL", 0), ("SHARED", 0)];
const DOWN_SHARED_MATRIX: &[(&str, u32)] =
    &[("WG", 64), ("LANES", 16), ("SUBGROUPS", 0), ("ROWS", 2), ("COLS", 1), ("TAIL", 0), ("SHARED", 1)];

/// Rows of an embedding table. Bindings: `ids` u32 `[T, 1]`, `w_data` segment of `[V, H]`, `y` `[T, H]` (read_write).
/// Items: groups of a row; rows: T. A token's row is written by the dispatch whose segment holds it.
pub static EMBED: Kernel = Kernel {
    name: "embed",
    parts: &[FRAME, include_str!("../../shaders/embed.wgsl")],
    slots: &["w"],
    products: &[],
    kv: false,
    tiles: false,
    consts: &[("WG", 32), ("TAIL", 0)],
    params: params::EmbedParams::FIELDS,
    tile: wg_items,
};

/// Root-mean-square norm of whole rows or of groups (heads), or with `LAYER` 1 a layer norm. Bindings: `x` `[R, n·g]`, `w`
/// f32 `[n]`, `b` f32 `[n]` (read where `BIASED` = 1), `y` (read_write).
/// Items: groups g of a row; rows: T or O.
pub static RMS_NORM: Kernel = Kernel {
    name: "rms_norm",
    parts: &[FRAME, SUM, include_str!("../../shaders/rms_norm.wgsl")],
    slots: &[],
    products: &[],
    kv: false,
    tiles: false,
    consts: &[("WG", 64), ("LAYER", 0), ("BIASED", 0)],
    params: params::RmsNormParams::FIELDS,
    tile: one_each,
};

/// `y = [residual +] [factor ·] [sigmoid(g) ·] [act] (W norm(x) + b)`. Bindings: `x`, `w_data`, `bias` f32 `[N]` of the whole matrix,
/// `residual` `[R, N]`, `gate` `[R, 1]`, `norm` f32 `[K]` (read where `NORM` = 1), `y` (read_write).
/// With `NORMED` = 1 (and `NORM`) the first row of norm(x) goes to column `normed_offset` of y.
/// Items: rows of the segment; rows: T or O.
pub static LINEAR_KERNEL: Kernel = Kernel {
    name: "linear",
    parts: &[FRAME, DOT, ACTIVATION, ROWS_PLAIN, MATRIX_IO, ONE_MATRIX, ONE_MATRIX_LANES, LINEAR],
    slots: &["w"],
    products: W_PRODUCTS,
    kv: false,
    tiles: false,
    consts: MATRIX_NORMED,
    params: params::LinearParams::FIELDS,
    tile: matrix_tile,
};

/// As `linear`, two matrices of any two formats on the same x. Bindings: `x`, `w_data`, `second_data`, `bias` f32 (by column
/// of the result), `residual`, `gate`, `norm`, `y` (read_write). Items: `blocks` times a workgroup's rows for the first
/// matrix, then the rows of the second; rows: T or O.
pub static LINEAR_TWO: Kernel = Kernel {
    name: "linear_two",
    parts: &[FRAME, DOT, ACTIVATION, ROWS_PLAIN, MATRIX_IO, TWO_MATRICES, TWO_MATRICES_LANES, LINEAR],
    slots: &["w", "second"],
    products: &[(PRODUCTS, &["w"]), (PRODUCTS, &["second"])],
    kv: false,
    tiles: false,
    consts: MATRIX_NORM,
    params: params::LinearParams::FIELDS,
    tile: matrix_tile,
};

/// `y[t, j] = [act] (W_e x + b_e)`, e the j-th expert of token t. Bindings: `x`, `w_data`, `bias` f32 `[E, N]`, `ids` u32 `[T, k]`, `y` (read_write).
/// Items: rows of one expert's matrix; rows: T·k. `COLS` must be 1.
pub static EXPERT_LINEAR: Kernel = Kernel {
    name: "expert_linear",
    parts: &[FRAME, DOT, ACTIVATION, ROWS_SLOTS, EXPERT_IDS, MATRIX_IO, ONE_MATRIX, ONE_MATRIX_LANES, LINEAR],
    slots: &["w"],
    products: W_PRODUCTS,
    kv: false,
    tiles: false,
    consts: MATRIX,
    params: params::LinearParams::FIELDS,
    tile: matrix_tile,
};

/// The same from the tables of `expert_sort`, dispatched indirectly. Bindings: `x`, `w_data`, `pairs`, `tiles`, `y`
/// (read_write). Items: rows of one expert's matrix; rows: tiles (their number is in `args`).
pub static EXPERT_LINEAR_GROUPED: Kernel = Kernel {
    name: "expert_linear_grouped",
    parts: &[FRAME, DOT, ACTIVATION, ROWS_GROUPED, MATRIX_IO, ONE_MATRIX, ONE_MATRIX_LANES, LINEAR],
    slots: &["w"],
    products: W_PRODUCTS,
    kv: false,
    tiles: false,
    consts: MATRIX,
    params: params::LinearParams::FIELDS,
    tile: matrix_tile,
};

/// `y = act(G norm(x)) · (U norm(x))`. Bindings: `x`, `gate_data`, `up_data`, `norm` f32 `[K]` (read where `NORM` = 1),
/// `y` (read_write). Both matrices are cut into segments at the same rows. Items: rows of the segment; rows: T or O.
pub static LINEAR_GLU: Kernel = Kernel {
    name: "linear_glu",
    parts: &[FRAME, DOT, ACTIVATION, ROWS_PLAIN, UNIT_IO, ONE_UNIT, ONE_UNIT_LANES, GLU_LINEAR],
    slots: &["gate", "up"],
    products: GLU_PRODUCTS,
    kv: false,
    tiles: false,
    consts: GLU_MATRIX_NORM,
    params: params::GluLinearParams::FIELDS,
    tile: matrix_tile,
};

/// `h[t, j] = act(G_e x + b_e) · (U_e x + c_e)`. Bindings: `x`, `gate_data`, `up_data`, `bias` (b, then c), `ids` u32 `[T, k]`, `y` (read_write).
/// Items: rows of one expert's matrix; rows: T·k. `COLS` must be 1.
pub static EXPERT_GLU: Kernel = Kernel {
    name: "expert_glu",
    parts: &[FRAME, DOT, ACTIVATION, ROWS_SLOTS, EXPERT_IDS, UNIT_IO, ONE_UNIT, ONE_UNIT_LANES, GLU_LINEAR],
    slots: &["gate", "up"],
    products: GLU_PRODUCTS,
    kv: false,
    tiles: false,
    consts: GLU_MATRIX,
    params: params::GluLinearParams::FIELDS,
    tile: matrix_tile,
};

/// As `expert_glu`, with a shared expert: its h follows those of the k slots. Bindings: `x`, `gate_data`, `up_data`,
/// `shared_gate_data`, `shared_up_data`, `ids` u32 `[T, k]`, `y` (read_write). Items: rows of one expert's matrix; rows:
/// T·(k + `shared_parts`). `COLS` must be 1.
pub static EXPERT_GLU_SHARED: Kernel = Kernel {
    name: "expert_glu_shared",
    parts: &[FRAME, DOT, ACTIVATION, ROWS_SLOTS, EXPERT_IDS, UNIT_IO, AND_SHARED_UNIT, GLU_LINEAR],
    slots: &["gate", "up", "shared_gate", "shared_up"],
    products: &[(PAIR_PRODUCTS, &["gate", "up"]), (PAIR_PRODUCTS, &["shared_gate", "shared_up"])],
    kv: false,
    tiles: false,
    consts: GLU_MATRIX_SHARED,
    params: params::GluLinearParams::FIELDS,
    tile: matrix_tile,
};

/// As `expert_glu`, the experts chosen by the kernel itself from the router's logits, which lie in the rows of `x` at
/// `logits_offset`. Bindings: `x`, `gate_data`, `up_data`, `y` (read_write), `ids` u32 `[T, k]` (read_write), `weights` `[T, k]`
/// (read_write). `EXPERTS`: at least E.
pub static EXPERT_GLU_CHOOSE: Kernel = Kernel {
    name: "expert_glu_choose",
    parts: &[FRAME, SUM, DOT, ACTIVATION, ROWS_SLOTS, EXPERT_CHOOSE, UNIT_IO, ONE_UNIT, ONE_UNIT_LANES, GLU_LINEAR],
    consts: GLU_MATRIX_CHOOSE,
    ..EXPERT_GLU
};

/// As `expert_glu_shared`, the experts chosen as in `expert_glu_choose`.
pub static EXPERT_GLU_SHARED_CHOOSE: Kernel = Kernel {
    name: "expert_glu_shared_choose",
    parts: &[FRAME, SUM, DOT, ACTIVATION, ROWS_SLOTS, EXPERT_CHOOSE, UNIT_IO, AND_SHARED_UNIT, GLU_LINEAR],
    consts: GLU_MATRIX_SHARED_CHOOSE,
    ..EXPERT_GLU_SHARED
};

/// The same from the tables of `expert_sort`, dispatched indirectly. Bindings: `x`, `gate_data`, `up_data`, `pairs`,
/// `tiles`, `y` (read_write). Items: rows of one expert's matrix; rows: tiles (their number is in `args`).
pub static EXPERT_GLU_GROUPED: Kernel = Kernel {
    name: "expert_glu_grouped",
    parts: &[FRAME, DOT, ACTIVATION, ROWS_GROUPED, UNIT_IO, ONE_UNIT, ONE_UNIT_LANES, GLU_LINEAR],
    slots: &["gate", "up"],
    products: GLU_PRODUCTS,
    kv: false,
    tiles: false,
    consts: GLU_MATRIX,
    params: params::GluLinearParams::FIELDS,
    tile: matrix_tile,
};

/// `y = residual + factor · Σ_j weights[t, j] · (W_e h[t, j] + b_e)`. Bindings: `bias` f32 `[E, H]`, `x` (h) `[T, k·I]`, `w_data`, `ids`, `weights` `[T, k]`,
/// `residual` `[T, H]`, `y` (read_write). Items: rows of one expert's matrix (H); rows: T. With several segments the
/// first dispatch starts from the residual, later ones `ACCUMULATE`.
pub static EXPERT_DOWN_ADD: Kernel = Kernel {
    name: "expert_down_add",
    parts: &[FRAME, DOT, DOWN_ALONE, EXPERT_DOWN],
    slots: &["w"],
    products: W_PRODUCTS,
    kv: false,
    tiles: false,
    consts: DOWN_MATRIX,
    params: params::ExpertDownAddParams::FIELDS,
    tile: matrix_tile,
};

/// As `expert_down_add`, with a shared expert whose h `[T, Is]` follows those of the slots in `x`. Bindings: `x`, `w_data`,
/// `shared_data` `[H, Is]`, `ids`, `weights`, `residual`, `gate` `[T, 1]` (read where `GATE` is set), `y` (read_write).
pub static EXPERT_DOWN_SHARED_ADD: Kernel = Kernel {
    name: "expert_down_shared_add",
    parts: &[FRAME, DOT, AND_SHARED_DOWN, EXPERT_DOWN],
    slots: &["w", "shared"],
    products: &[(PRODUCTS, &["w"]), (PRODUCTS, &["shared"])],
    kv: false,
    tiles: false,
    consts: DOWN_SHARED_MATRIX,
    params: params::ExpertDownAddParams::FIELDS,
    tile: matrix_tile,
};

/// As `linear`, for many rows of x, without norms. `tiles`: how. Items: rows of the segment; rows: T or O.
pub static LINEAR_TILES: Kernel = Kernel {
    name: "linear_tiles",
    parts: &[FRAME, ACTIVATION, ROWS_PLAIN, MATRIX_IO, ONE_MATRIX, ONE_MATRIX_TILES, LINEAR_TILES_MAIN],
    products: W_SLOT,
    tiles: true,
    consts: TILES,
    tile: tile_size,
    ..LINEAR_KERNEL
};

/// As `linear_two`, for many rows of x, without norms. `tiles`: how.
pub static LINEAR_TWO_TILES: Kernel = Kernel {
    name: "linear_two_tiles",
    parts: &[FRAME, ACTIVATION, ROWS_PLAIN, MATRIX_IO, TWO_MATRICES, TWO_MATRICES_TILES, LINEAR_TILES_MAIN],
    products: &[(SLOT, &["w"]), (SLOT, &["second"])],
    tiles: true,
    consts: TILES,
    tile: tile_size,
    ..LINEAR_TWO
};

/// As `expert_linear_grouped`; a tile has more rows of x. `tiles`: how.
pub static EXPERT_LINEAR_TILES: Kernel = Kernel {
    name: "expert_linear_tiles",
    parts: &[FRAME, ACTIVATION, ROWS_GROUPED, MATRIX_IO, ONE_MATRIX, ONE_MATRIX_TILES, LINEAR_TILES_MAIN],
    products: W_SLOT,
    tiles: true,
    consts: TILES,
    tile: tile_size,
    ..EXPERT_LINEAR_GROUPED
};

/// As `linear_glu`, for many rows of x, without norms. `tiles`: how.
pub static LINEAR_GLU_TILES: Kernel = Kernel {
    name: "linear_glu_tiles",
    parts: &[FRAME, ACTIVATION, ROWS_PLAIN, UNIT_IO, ONE_UNIT, ONE_UNIT_TILES, GLU_TILES_MAIN],
    products: GLU_SLOTS,
    tiles: true,
    consts: GLU_TILES,
    tile: unit_tile_size,
    ..LINEAR_GLU
};

/// As `expert_glu_grouped`; a tile has more rows of x. `tiles`: how.
pub static EXPERT_GLU_TILES: Kernel = Kernel {
    name: "expert_glu_tiles",
    parts: &[FRAME, ACTIVATION, ROWS_GROUPED, UNIT_IO, ONE_UNIT, ONE_UNIT_TILES, GLU_TILES_MAIN],
    products: GLU_SLOTS,
    tiles: true,
    consts: GLU_TILES,
    tile: unit_tile_size,
    ..EXPERT_GLU_GROUPED
};

/// Rotation by position. Bindings: `rows` (as in `common/sequence.wgsl`), `x` `[T, heads·D]`, `rope_table` `vec2<f32>`
/// `[ctx, dims / 2]` of cosines and sines by position, `y` (read_write).
/// Items: heads·D columns; rows: T.
pub static ROPE: Kernel = Kernel {
    name: "rope",
    parts: &[FRAME, SEQUENCE, ROTATE, include_str!("../../shaders/rope.wgsl")],
    slots: &[],
    products: &[],
    kv: false,
    tiles: false,
    consts: &[("WG", 64), ("BATCH", 0)],
    params: params::RopeParams::FIELDS,
    tile: wg_items,
};

/// Keys and values to the cache, layout `[sequences, kv_heads, ctx, dim]`. Bindings: `rows`, `k`, `v`, `k_cache`, `v_cache` (read_write).
/// Items: kv_heads·(Dk + Dv)/4; rows: T.
pub static KV_STORE: Kernel = Kernel {
    name: "kv_store",
    parts: &[FRAME, SEQUENCE, include_str!("../../shaders/kv_store.wgsl")],
    slots: &[],
    products: &[],
    kv: true,
    tiles: false,
    consts: &[("WG", 64), ("BATCH", 0)],
    params: params::KvStoreParams::FIELDS,
    tile: wg_items,
};

/// Norms and rotation of q and k, k and v to the cache. Bindings: `rows`, `qkv` (q, k and v side by side), `q_norm`, `k_norm`,
/// `rope_table` (as `rope`), `y` (q') (read_write), `k_cache`, `v_cache` (read_write). Items: heads + 2·kv_heads; rows: T.
pub static ROPE_STORE: Kernel = Kernel {
    name: "rope_store",
    parts: &[FRAME, SEQUENCE, SUM, ROTATE, include_str!("../../shaders/rope_store.wgsl")],
    slots: &[],
    products: &[],
    kv: true,
    tiles: false,
    consts: &[("WG", 32), ("BATCH", 0)],
    params: params::RopeStoreParams::FIELDS,
    tile: one_each,
};

/// Causal grouped-query attention with an online softmax. Bindings: `rows`, `q` `[T, heads·Dk]`, `k_cache`, `v_cache`, `sinks`
/// f32 `[heads]`, `y` (read_write; with `SPLIT` = 1 the `partials` of `attend_reduce`, f32
/// `[T, heads, splits, Dv + 4]`). Consts: `K_DIM`, `V_DIM` (both multiples of 4), `ROWS` (query rows a workgroup: the
/// heads/kv_heads query heads of one kv head, token after token), `SPLIT`. Items: kv_heads; rows: T·heads/kv_heads;
/// z with `SPLIT` = 1: ceil((P + T) / chunk), else 1.
pub static ATTEND: Kernel = Kernel {
    name: "attend",
    parts: &[FRAME, SEQUENCE, include_str!("../../shaders/attend.wgsl")],
    slots: &[],
    products: &[],
    kv: true,
    tiles: false,
    consts: &[("WG", 64), ("K_DIM", 64), ("V_DIM", 64), ("ROWS", 4), ("SPLIT", 0), ("BATCH", 0), ("V_IN_K", 0)],
    params: params::AttendParams::FIELDS,
    tile: |v| [1, v.get("ROWS")],
};

/// Causal convolution of each channel. Bindings: `x` `[T, C]`, `w` f32 `[taps, C]`, `bias` f32 `[C]` (read where
/// `p.bias_on` = 1), `state` `[taps - 1, C]` (read_write), `y` (read_write). `TAPS`: 2 to 16. Items: channels; rows: 1 (an
/// invocation goes through the tokens in order).
pub static SHORT_CONV: Kernel = Kernel {
    name: "short_conv",
    parts: &[FRAME, ACTIVATION, include_str!("../../shaders/short_conv.wgsl")],
    slots: &[],
    products: &[],
    kv: false,
    tiles: false,
    consts: &[("WG", 64), ("TAPS", 4), ("ACT", 0)],
    params: params::ShortConvParams::FIELDS,
    tile: wg_items,
};

/// The gated delta rule. Bindings: `qkv` `[T, 2·Hk·Dk + Hv·Dv]`, `a` and `b` `[T, Hv]` (which may lie in one buffer), `decay`
/// and `dt_bias` f32 `[Hv]`, `state` `[Hv, Dk, Dv]` (read_write), `y` `[T, Hv·Dv]` (read_write). Items: Hv·Dv columns of
/// states; rows: 1 (an invocation goes through the tokens in order).
pub static DELTA_NET: Kernel = Kernel {
    name: "delta_net",
    parts: &[FRAME, include_str!("../../shaders/delta_net.wgsl")],
    slots: &[],
    products: &[],
    kv: false,
    tiles: false,
    consts: &[("WG", 32)],
    params: params::DeltaNetParams::FIELDS,
    tile: wg_items,
};

/// Merges the splits of `attend`. Bindings: `partials` (the `y` of `attend` with `SPLIT` = 1), `sinks`, `y` (read_write)
/// `[T, heads·Dv]`. Items: heads; rows: T.
pub static ATTEND_REDUCE: Kernel = Kernel {
    name: "attend_reduce",
    parts: &[FRAME, include_str!("../../shaders/attend_reduce.wgsl")],
    slots: &[],
    products: &[],
    kv: false,
    tiles: false,
    consts: &[("WG", 32)],
    params: params::AttendReduceParams::FIELDS,
    tile: one_each,
};

/// Scores, top-k and weights. Bindings: `x` logits `[T, E]`, `per_expert` `[E]` selection biases (any buffer of zeros where there
/// are none), with `SCALED` 1 `[2·E]`: and a factor on the weight of each expert; `ids` u32 `[T, k]` (read_write), `weights` `[T, k]` (read_write). Items: 1; rows: T. `EXPERTS`: at least E; loops
/// run to it. `BY_SCORE` 1: the choice is made on scores, not on logits. `SPARSE` 1: sparsemixer; it and `SCALED` need `KEEP_IDS` 1. `GROUPED` 1: only
/// some of `GROUPS` groups of experts take part.
pub static ROUTER: Kernel = Kernel {
    name: "router",
    parts: &[FRAME, SUM, include_str!("../../shaders/router.wgsl")],
    slots: &[],
    products: &[],
    kv: false,
    tiles: false,
    consts: &[
        ("WG", 64),
        ("EXPERTS", 64),
        ("BY_SCORE", 0),
        ("GROUPED", 0),
        ("GROUPS", 1),
        ("KEEP_IDS", 0),
        ("SPARSE", 0),
        ("SCALED", 0),
    ],
    params: params::RouterParams::FIELDS,
    tile: one_each,
};

/// Groups the T·k (token, slot) pairs by expert. Bindings: `ids` u32 `[T, k]`, `pairs` u32 `[T·k]` (read_write: t·k + j,
/// experts ascending), `tiles` `vec4<u32>` `[T·k / tile + min(E, T·k)]` (read_write: expert, first pair, pairs, 0), `args`
/// u32 `[8]` (read_write, also INDIRECT: arguments of two dispatches, at bytes 0 and 16). Items: 1; rows: 1 (one
/// workgroup in all). `EXPERTS`: at least E.
pub static EXPERT_SORT: Kernel = Kernel {
    name: "expert_sort",
    parts: &[FRAME, include_str!("../../shaders/expert_sort.wgsl")],
    slots: &[],
    products: &[],
    kv: false,
    tiles: false,
    consts: &[("WG", 64), ("EXPERTS", 64)],
    params: params::ExpertSortParams::FIELDS,
    tile: one_each,
};

/// `y = [residual +] Σ_j weights[t, j] · x[t, j]`. Bindings: `x` `[T, k·n]`, `weights` `[T, k]`, `residual` `[T, n]`, `y`
/// (read_write). Items: n; rows: T.
pub static EXPERT_COMBINE: Kernel = Kernel {
    name: "expert_combine",
    parts: &[FRAME, include_str!("../../shaders/expert_combine.wgsl")],
    slots: &[],
    products: &[],
    kv: false,
    tiles: false,
    consts: &[("WG", 64)],
    params: params::ExpertCombineParams::FIELDS,
    tile: wg_items,
};

/// `y = OP(a, b)` element by element. `OP`: 0 `a + b`, 1 `factor · a`, 2 `act(a) · b`, 3 `a · sigmoid(b[r, 0])`, 4 row
/// `T - O + r` of a (`take_outputs`, with `p.outputs` = 1), 5 `act(a)`. Bindings: `a`, `b` (any buffer for 1, 4 and 5), `y`
/// (read_write). Items: columns; rows: T or O.
pub static ELEMENTWISE: Kernel = Kernel {
    name: "elementwise",
    parts: &[FRAME, ACTIVATION, include_str!("../../shaders/elementwise.wgsl")],
    slots: &[],
    products: &[],
    kv: false,
    tiles: false,
    consts: &[("WG", 64), ("OP", 0), ("ACT", 0), ("ALPHA", 0), ("LIMIT", 0)],
    params: params::ElementwiseParams::FIELDS,
    tile: wg_items,
};

/// Logits to keys, penalty and bans applied. Bindings: `settings` and `state` as `plan::sample` lays them out, `x` logits
/// `[1, V]`, `keys` u32 `[V]` (read_write), `maxima` u32 `[ceil(V / 64)]` (read_write). Items: V; rows: 1.
pub static SAMPLE_KEYS: Kernel = Kernel {
    name: "sample_keys",
    parts: &[FRAME, SAMPLING, include_str!("../../shaders/sample_keys.wgsl")],
    slots: &[],
    products: &[],
    kv: false,
    tiles: false,
    consts: &[("WG", 64)],
    params: params::SampleKeysParams::FIELDS,
    tile: |_| [1024, 1],
};

/// The next token from what `sample_keys` left. Bindings: `settings`, `keys`, `maxima`, `state` (read_write), `tokens`
/// (read_write: the ids of the next step). Items: 1; rows: 1 (one workgroup in all). `WG` is the most that top-k may be
/// for its short way; it must be 256, the number of bins.
pub static SAMPLE_PICK: Kernel = Kernel {
    name: "sample_pick",
    parts: &[FRAME, SAMPLING, include_str!("../../shaders/sample_pick.wgsl")],
    slots: &[],
    products: &[],
    kv: false,
    tiles: false,
    consts: &[("WG", 256)],
    params: params::SamplePickParams::FIELDS,
    tile: one_each,
};

/// 0, 1, 2… in every row. Bindings: `y` u32 `[T, heads]` (read_write). Items: heads; rows: T.
pub static HEAD_IDS: Kernel = Kernel {
    name: "head_ids",
    parts: &[FRAME, include_str!("../../shaders/head_ids.wgsl")],
    slots: &[],
    products: &[],
    kv: false,
    tiles: false,
    consts: &[("WG", 64)],
    params: params::HeadIdsParams::FIELDS,
    tile: wg_items,
};

/// Columns side by side, head by head. Bindings: `a` `[R, heads·m]`, `b` `[R, heads·n]`, `y` `[R, heads·(m + n)]` (read_write). Items:
/// columns; rows: T or O.
pub static JOIN_HEADS: Kernel = Kernel {
    name: "join_heads",
    parts: &[FRAME, include_str!("../../shaders/join_heads.wgsl")],
    slots: &[],
    products: &[],
    kv: false,
    tiles: false,
    consts: &[("WG", 64)],
    params: params::JoinHeadsParams::FIELDS,
    tile: wg_items,
};

/// `y = a`, to measure a device. Bindings: `a` u32 `[4 · groups]`, `y` (read_write). Items: groups; rows: 1.
pub static COPY: Kernel = Kernel {
    name: "copy",
    parts: &[FRAME, include_str!("../../shaders/copy.wgsl")],
    slots: &[],
    products: &[],
    kv: false,
    tiles: false,
    consts: &[("WG", 64), ("EACH", 8)],
    params: params::CopyParams::FIELDS,
    tile: |v| [v.get("WG") * v.get("EACH"), 1],
};

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
pub fn attend_variant(k_dim: usize, v_dim: usize, group: usize, kv: Kv) -> Variant {
    let mut rows = if group > 4 { 8 } else { 4 };
    // Queries, scores and the meeting of the shares within 16 KiB, the least that a device offers.
    while rows > 1 && rows * (k_dim + 64 + 256) * 4 + 1024 > 16384 {
        rows /= 2;
    }
    let n = |v: usize| u32::try_from(v).unwrap_or(u32::MAX);
    Variant::new(&ATTEND).kv(kv).with("WG", 64).with("K_DIM", n(k_dim)).with("V_DIM", n(v_dim)).with("ROWS", n(rows))
}
