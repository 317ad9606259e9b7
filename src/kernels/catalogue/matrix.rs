//! Products of weights: plain, routed and gated, by lanes and by tiles.

use super::{ACTIVATION, Kernel, NO_CLAMP, PLAIN, SUM};
use crate::{
    error::Result,
    kernels::{
        Fragment, Variant,
        fragment::wgsl,
        numbers::{ACT_SILU, NO_ACT},
        params,
    },
};

const LINEAR: Fragment = wgsl!("linear.wgsl");
const GLU_LINEAR: Fragment = wgsl!("linear_glu.wgsl");
const DOT: Fragment = wgsl!("common/dot.wgsl");
const ROWS_PLAIN: Fragment = wgsl!("rows/plain.wgsl");
const ROWS_SLOTS: Fragment = wgsl!("rows/slots.wgsl");
const ROWS_GROUPED: Fragment = wgsl!("rows/grouped.wgsl");
const EXPERT_CHOOSE: Fragment = wgsl!("experts/choose.wgsl");
const EXPERT_IDS: Fragment = wgsl!("experts/ids.wgsl");
const ONE_MATRIX: Fragment = wgsl!("matrix/one.wgsl");
const TWO_MATRICES: Fragment = wgsl!("matrix/two.wgsl");
const ONE_UNIT: Fragment = wgsl!("glu/one.wgsl");
const AND_SHARED_UNIT: Fragment = wgsl!("glu/shared.wgsl");
const EXPERT_DOWN: Fragment = wgsl!("expert_down_add.wgsl");
const DOWN_ALONE: Fragment = wgsl!("down/alone.wgsl");
const AND_SHARED_DOWN: Fragment = wgsl!("down/shared.wgsl");
const PRODUCTS: Fragment = wgsl!("common/products.wgsl");
const PAIR_PRODUCTS: Fragment = wgsl!("common/glu_products.wgsl");
const MATRIX_IO: Fragment = wgsl!("matrix/io.wgsl");
const ONE_MATRIX_LANES: Fragment = wgsl!("matrix/one_lanes.wgsl");
const TWO_MATRICES_LANES: Fragment = wgsl!("matrix/two_lanes.wgsl");
const ONE_MATRIX_TILES: Fragment = wgsl!("matrix/one_tiles.wgsl");
const TWO_MATRICES_TILES: Fragment = wgsl!("matrix/two_tiles.wgsl");
const UNIT_IO: Fragment = wgsl!("glu/io.wgsl");
const ONE_UNIT_LANES: Fragment = wgsl!("glu/one_lanes.wgsl");
const ONE_UNIT_TILES: Fragment = wgsl!("glu/one_tiles.wgsl");
const LINEAR_TILES_MAIN: Fragment = wgsl!("linear_tiles.wgsl");
const GLU_TILES_MAIN: Fragment = wgsl!("linear_glu_tiles.wgsl");
const SLOT: Fragment = wgsl!("tiles/slot.wgsl");
const W_PRODUCTS: &[(Fragment, &[&str])] = &[(PRODUCTS, &["w"])];
const GLU_PRODUCTS: &[(Fragment, &[&str])] = &[(PAIR_PRODUCTS, &["gate", "up"])];
const W_SLOT: &[(Fragment, &[&str])] = &[(SLOT, &["w"])];
const GLU_SLOTS: &[(Fragment, &[&str])] = &[(SLOT, &["gate"]), (SLOT, &["up"])];

/// The numbers of a matrix kernel, and more.
macro_rules! matrix {
    ($($more:expr),*) => {
        &[("WG", 64), ("LANES", 16), ("SUBGROUPS", 0), ("ROWS", 2), ("COLS", 1), ("TAIL", 0), $($more),*]
    };
}

/// Those of a kernel that multiplies a gate and an up matrix, and more.
macro_rules! unit {
    ($($more:expr),*) => {
        matrix![("ACT", ACT_SILU), ("ALPHA", 0), ("LIMIT", 0) $(, $more)*]
    };
}

const TILES: &[(&str, u32)] = &[("WG", 64), ("TM", 64), ("COLS", 32), ("ACT", NO_ACT)];
const GLU_TILES: &[(&str, u32)] =
    &[("WG", 64), ("TM", 64), ("COLS", 32), ("ACT", ACT_SILU), ("ALPHA", 0), ("LIMIT", 0)];

/// Rows of the weight and rows of x that a workgroup of a matrix kernel takes.
fn matrix_tile(v: &Variant) -> Result<[u32; 2]> {
    Ok([v.get("WG")? / v.get("LANES")?.max(1) * v.get("ROWS")?, v.get("COLS")?])
}

/// The same of a kernel that multiplies tiles.
fn tile_size(v: &Variant) -> Result<[u32; 2]> {
    Ok([v.get("TM")?, v.get("COLS")?])
}

/// The same of a gated unit: half of a tile's rows are the gate's.
fn unit_tile_size(v: &Variant) -> Result<[u32; 2]> {
    Ok([v.get("TM")? / 2, v.get("COLS")?])
}

/// `y = [residual +] [factor ·] [sigmoid(g) ·] [act] (W norm(x) + b)`. Bindings: `x`, `w_data`, `bias` f32 `[N]` of the
/// whole matrix, `residual` `[R, N]`, `gate` `[R, 1]`, `norm` f32 `[K]` (read where `NORM` = 1), `y` (read_write). With
/// `NORMED` = 1 (and `NORM`) the first row of norm(x) goes to column `normed_offset` of y. Items: rows of the segment; rows:
/// T or O.
pub static LINEAR_KERNEL: Kernel = Kernel {
    name: "linear",
    parts: &[DOT, ACTIVATION, ROWS_PLAIN, MATRIX_IO, ONE_MATRIX, ONE_MATRIX_LANES, LINEAR],
    slots: &["w"],
    products: W_PRODUCTS,
    consts: matrix![("ACT", NO_ACT), ("NORM", 0), ("NORMED", 0)],
    fixed: NO_CLAMP,
    params: params::LinearParams::FIELDS,
    tile: matrix_tile,
    ..PLAIN
};

/// As `linear`, two matrices of any two formats on the same x. Bindings: `x`, `w_data`, `second_data`, `bias` f32 (by column
/// of the result), `residual`, `gate`, `norm`, `y` (read_write). Items: `blocks` times a workgroup's rows for the first
/// matrix, then the rows of the second; rows: T or O.
pub static LINEAR_TWO: Kernel = Kernel {
    name: "linear_two",
    parts: &[DOT, ACTIVATION, ROWS_PLAIN, MATRIX_IO, TWO_MATRICES, TWO_MATRICES_LANES, LINEAR],
    slots: &["w", "second"],
    products: &[(PRODUCTS, &["w"]), (PRODUCTS, &["second"])],
    consts: matrix![("ACT", NO_ACT), ("NORM", 0)],
    fixed: &[("ALPHA", 0), ("LIMIT", 0), ("NORMED", 0)],
    params: params::LinearParams::FIELDS,
    tile: matrix_tile,
    ..PLAIN
};

/// `y[t, j] = [act] (W_e x + b_e)`, e the j-th expert of token t. Bindings: `x`, `w_data`, `bias` f32 `[E, N]`, `ids` u32
/// `[T, k]`, `y` (read_write). Items: rows of one expert's matrix; rows: T·k. `COLS` must be 1.
pub static EXPERT_LINEAR: Kernel = Kernel {
    name: "expert_linear",
    parts: &[DOT, ACTIVATION, ROWS_SLOTS, EXPERT_IDS, MATRIX_IO, ONE_MATRIX, ONE_MATRIX_LANES, LINEAR],
    slots: &["w"],
    products: W_PRODUCTS,
    consts: matrix![("ACT", NO_ACT)],
    fixed: &[("ALPHA", 0), ("LIMIT", 0), ("NORM", 0), ("NORMED", 0), ("SHARED", 0)],
    params: params::LinearParams::FIELDS,
    tile: matrix_tile,
    ..PLAIN
};

/// The same from the tables of `expert_sort`, dispatched indirectly. Bindings: `x`, `w_data`, `pairs`, `tiles`, `y`
/// (read_write). Items: rows of one expert's matrix; rows: tiles (their number is in `args`).
pub static EXPERT_LINEAR_GROUPED: Kernel = Kernel {
    name: "expert_linear_grouped",
    parts: &[DOT, ACTIVATION, ROWS_GROUPED, MATRIX_IO, ONE_MATRIX, ONE_MATRIX_LANES, LINEAR],
    slots: &["w"],
    products: W_PRODUCTS,
    consts: matrix![("ACT", NO_ACT)],
    fixed: &[("ALPHA", 0), ("LIMIT", 0), ("NORM", 0), ("NORMED", 0)],
    params: params::LinearParams::FIELDS,
    tile: matrix_tile,
    ..PLAIN
};

/// `y = act(G norm(x)) · (U norm(x))`. Bindings: `x`, `gate_data`, `up_data`, `norm` f32 `[K]` (read where `NORM` = 1),
/// `y` (read_write). Both matrices are cut into segments at the same rows. Items: rows of the segment; rows: T or O.
pub static LINEAR_GLU: Kernel = Kernel {
    name: "linear_glu",
    parts: &[DOT, ACTIVATION, ROWS_PLAIN, UNIT_IO, ONE_UNIT, ONE_UNIT_LANES, GLU_LINEAR],
    slots: &["gate", "up"],
    products: GLU_PRODUCTS,
    consts: unit![("NORM", 0)],
    fixed: &[("CHOOSE", 0)],
    params: params::GluLinearParams::FIELDS,
    tile: matrix_tile,
    ..PLAIN
};

/// `h[t, j] = act(G_e x + b_e) · (U_e x + c_e)`. Bindings: `x`, `gate_data`, `up_data`, `bias` (b, then c), `ids` u32
/// `[T, k]`, `y` (read_write). Items: rows of one expert's matrix; rows: T·k. `COLS` must be 1.
pub static EXPERT_GLU: Kernel = Kernel {
    name: "expert_glu",
    parts: &[DOT, ACTIVATION, ROWS_SLOTS, EXPERT_IDS, UNIT_IO, ONE_UNIT, ONE_UNIT_LANES, GLU_LINEAR],
    slots: &["gate", "up"],
    products: GLU_PRODUCTS,
    consts: unit![],
    fixed: &[("NORM", 0), ("SHARED", 0), ("CHOOSE", 0)],
    params: params::GluLinearParams::FIELDS,
    tile: matrix_tile,
    ..PLAIN
};

/// As `expert_glu`, with a shared expert: its h follows those of the k slots. Bindings: `x`, `gate_data`, `up_data`,
/// `shared_gate_data`, `shared_up_data`, `ids` u32 `[T, k]`, `y` (read_write). Items: rows of one expert's matrix; rows:
/// T·(k + `shared_parts`). `COLS` must be 1.
pub static EXPERT_GLU_SHARED: Kernel = Kernel {
    name: "expert_glu_shared",
    parts: &[DOT, ACTIVATION, ROWS_SLOTS, EXPERT_IDS, UNIT_IO, AND_SHARED_UNIT, GLU_LINEAR],
    slots: &["gate", "up", "shared_gate", "shared_up"],
    products: &[(PAIR_PRODUCTS, &["gate", "up"]), (PAIR_PRODUCTS, &["shared_gate", "shared_up"])],
    consts: unit![],
    fixed: &[("NORM", 0), ("SHARED", 1), ("CHOOSE", 0)],
    params: params::GluLinearParams::FIELDS,
    tile: matrix_tile,
    ..PLAIN
};

/// As `expert_glu`, the experts chosen by the kernel itself from the router's logits, which lie in the rows of `x` at
/// `logits_offset`. Bindings: `x`, `gate_data`, `up_data`, `y` (read_write), `ids` u32 `[T, k]` (read_write), `weights`
/// `[T, k]` (read_write). `EXPERTS`: at least E.
pub static EXPERT_GLU_CHOOSE: Kernel = Kernel {
    name: "expert_glu_choose",
    parts: &[SUM, DOT, ACTIVATION, ROWS_SLOTS, EXPERT_CHOOSE, UNIT_IO, ONE_UNIT, ONE_UNIT_LANES, GLU_LINEAR],
    consts: unit![("EXPERTS", 64)],
    fixed: &[("NORM", 0), ("SHARED", 0), ("CHOOSE", 1)],
    ..EXPERT_GLU
};

/// As `expert_glu_shared`, the experts chosen as in `expert_glu_choose`.
pub static EXPERT_GLU_SHARED_CHOOSE: Kernel = Kernel {
    name: "expert_glu_shared_choose",
    parts: &[SUM, DOT, ACTIVATION, ROWS_SLOTS, EXPERT_CHOOSE, UNIT_IO, AND_SHARED_UNIT, GLU_LINEAR],
    consts: unit![("EXPERTS", 64)],
    fixed: &[("NORM", 0), ("SHARED", 1), ("CHOOSE", 1)],
    ..EXPERT_GLU_SHARED
};

/// The same from the tables of `expert_sort`, dispatched indirectly. Bindings: `x`, `gate_data`, `up_data`, `pairs`,
/// `tiles`, `y` (read_write). Items: rows of one expert's matrix; rows: tiles (their number is in `args`).
pub static EXPERT_GLU_GROUPED: Kernel = Kernel {
    name: "expert_glu_grouped",
    parts: &[DOT, ACTIVATION, ROWS_GROUPED, UNIT_IO, ONE_UNIT, ONE_UNIT_LANES, GLU_LINEAR],
    slots: &["gate", "up"],
    products: GLU_PRODUCTS,
    consts: unit![],
    fixed: &[("NORM", 0), ("CHOOSE", 0)],
    params: params::GluLinearParams::FIELDS,
    tile: matrix_tile,
    ..PLAIN
};

/// `y = residual + factor · Σ_j weights[t, j] · (W_e h[t, j] + b_e)`. Bindings: `bias` f32 `[E, H]`, `x` (h) `[T, k·I]`,
/// `w_data`, `ids`, `weights` `[T, k]`, `residual` `[T, H]`, `y` (read_write). Items: rows of one expert's matrix (H); rows:
/// T. With several segments the first dispatch starts from the residual, later ones `ACCUMULATE`.
pub static EXPERT_DOWN_ADD: Kernel = Kernel {
    name: "expert_down_add",
    parts: &[DOT, DOWN_ALONE, EXPERT_DOWN],
    slots: &["w"],
    products: W_PRODUCTS,
    consts: matrix![],
    fixed: &[("NORM", 0), ("SHARED", 0)],
    params: params::ExpertDownAddParams::FIELDS,
    tile: matrix_tile,
    ..PLAIN
};

/// As `expert_down_add`, with a shared expert whose h `[T, Is]` follows those of the slots in `x`. Bindings: `x`, `w_data`,
/// `shared_data` `[H, Is]`, `ids`, `weights`, `residual`, `gate` `[T, 1]` (read where `GATE` is set), `y` (read_write).
pub static EXPERT_DOWN_SHARED_ADD: Kernel = Kernel {
    name: "expert_down_shared_add",
    parts: &[DOT, AND_SHARED_DOWN, EXPERT_DOWN],
    slots: &["w", "shared"],
    products: &[(PRODUCTS, &["w"]), (PRODUCTS, &["shared"])],
    consts: matrix![],
    fixed: &[("NORM", 0), ("SHARED", 1)],
    params: params::ExpertDownAddParams::FIELDS,
    tile: matrix_tile,
    ..PLAIN
};

/// As `linear`, for many rows of x, without norms. `tiles`: how. Items: rows of the segment; rows: T or O.
pub static LINEAR_TILES: Kernel = Kernel {
    name: "linear_tiles",
    parts: &[ACTIVATION, ROWS_PLAIN, MATRIX_IO, ONE_MATRIX, ONE_MATRIX_TILES, LINEAR_TILES_MAIN],
    products: W_SLOT,
    tiles: true,
    consts: TILES,
    tile: tile_size,
    ..LINEAR_KERNEL
};

/// As `linear_two`, for many rows of x, without norms. `tiles`: how.
pub static LINEAR_TWO_TILES: Kernel = Kernel {
    name: "linear_two_tiles",
    parts: &[ACTIVATION, ROWS_PLAIN, MATRIX_IO, TWO_MATRICES, TWO_MATRICES_TILES, LINEAR_TILES_MAIN],
    products: &[(SLOT, &["w"]), (SLOT, &["second"])],
    tiles: true,
    consts: TILES,
    tile: tile_size,
    ..LINEAR_TWO
};

/// As `expert_linear_grouped`; a tile has more rows of x. `tiles`: how.
pub static EXPERT_LINEAR_TILES: Kernel = Kernel {
    name: "expert_linear_tiles",
    parts: &[ACTIVATION, ROWS_GROUPED, MATRIX_IO, ONE_MATRIX, ONE_MATRIX_TILES, LINEAR_TILES_MAIN],
    products: W_SLOT,
    tiles: true,
    consts: TILES,
    tile: tile_size,
    ..EXPERT_LINEAR_GROUPED
};

/// As `linear_glu`, for many rows of x, without norms. `tiles`: how.
pub static LINEAR_GLU_TILES: Kernel = Kernel {
    name: "linear_glu_tiles",
    parts: &[ACTIVATION, ROWS_PLAIN, UNIT_IO, ONE_UNIT, ONE_UNIT_TILES, GLU_TILES_MAIN],
    products: GLU_SLOTS,
    tiles: true,
    consts: GLU_TILES,
    tile: unit_tile_size,
    ..LINEAR_GLU
};

/// As `expert_glu_grouped`; a tile has more rows of x. `tiles`: how.
pub static EXPERT_GLU_TILES: Kernel = Kernel {
    name: "expert_glu_tiles",
    parts: &[ACTIVATION, ROWS_GROUPED, UNIT_IO, ONE_UNIT, ONE_UNIT_TILES, GLU_TILES_MAIN],
    products: GLU_SLOTS,
    tiles: true,
    consts: GLU_TILES,
    tile: unit_tile_size,
    ..EXPERT_GLU_GROUPED
};
