//! Products of weights. Fourteen kernels are combinations of what is multiplied ([`Operand`]), which rows of x meet which
//! rows of weights ([`Pairing`]) and how ([`Method`]); the two last products of experts stand beside them.

use super::{ACTIVATION, ERF, Kernel, NO_CLAMP, Number, PLAIN, SUM, TileOf, parts};
use crate::{
    error::Result,
    kernels::{
        Fragment, Variant,
        fragment::wgsl,
        numbers::{ACT_SILU, NO_ACT},
        params::{self, Field},
    },
};

/// What a product multiplies x with.
#[derive(Clone, Copy)]
enum Operand {
    /// One matrix: bindings `w_data` and `bias` f32 `[N]`, of experts `[E, N]`.
    Matrix,
    /// Two matrices of any two formats on the same x: bindings `w_data`, `second_data` and `bias` f32 (by column of the
    /// result).
    TwoMatrices,
    /// The gate and up matrices of a gated unit, whose results are joined: bindings `gate_data`, `up_data` and, for experts,
    /// `bias` (those of gate, then those of up).
    Unit,
    /// The same and those of a shared expert: bindings `gate_data`, `up_data`, `shared_gate_data` and `shared_up_data`.
    UnitAndShared,
}

/// Which rows of x meet which rows of weights.
#[derive(Clone, Copy)]
enum Pairing {
    /// Every row of x meets every row of the matrix. Items: rows of the segment; rows: T or O.
    All,
    /// A row of x meets the experts of its token: binding `ids` u32 `[T, k]`. Items: rows of one expert's matrix; rows: T·k
    /// (with a shared expert T·(k + `shared_parts`)). `COLS` must be 1.
    Slots,
    /// The same, the experts chosen by the kernel itself from the router's logits, which lie in the rows of `x` at
    /// `logits_offset`: bindings `ids` u32 `[T, k]` and `weights` `[T, k]` (both read_write). `EXPERTS`: at least E.
    Chosen,
    /// The tables of `expert_sort`, dispatched indirectly: bindings `pairs` and `tiles`. Items: rows of one expert's matrix;
    /// rows: tiles (their number is in `args`).
    Grouped,
}

/// How products are computed.
#[derive(Clone, Copy)]
enum Method {
    /// Dot products, by one invocation or by several that add up.
    Dots,
    /// Tiles in workgroup memory, for many rows of x; [`Kernel::tiles`] says how. No norm is folded in.
    Tiles,
}

const DOT: Fragment = wgsl!("common/dot.wgsl");
const TEAMS: Fragment = wgsl!("common/teams.wgsl");
const PRODUCTS: Fragment = wgsl!("common/products.wgsl");
const PAIR_PRODUCTS: Fragment = wgsl!("common/glu_products.wgsl");
const SLOT: Fragment = wgsl!("tiles/slot.wgsl");

impl Operand {
    const fn slots(self) -> &'static [&'static str] {
        match self {
            Operand::Matrix => &["w"],
            Operand::TwoMatrices => &["w", "second"],
            Operand::Unit => &["gate", "up"],
            Operand::UnitAndShared => &["gate", "up", "shared_gate", "shared_up"],
        }
    }

    const fn products(self, method: Method) -> &'static [(Fragment, &'static [&'static str])] {
        match (self, method) {
            (Operand::Matrix, Method::Dots) => &[(PRODUCTS, &["w"])],
            (Operand::TwoMatrices, Method::Dots) => &[(PRODUCTS, &["w"]), (PRODUCTS, &["second"])],
            (Operand::Unit, Method::Dots) => &[(PAIR_PRODUCTS, &["gate", "up"])],
            (Operand::UnitAndShared, Method::Dots) => {
                &[(PAIR_PRODUCTS, &["gate", "up"]), (PAIR_PRODUCTS, &["shared_gate", "shared_up"])]
            }
            (Operand::Matrix, Method::Tiles) => &[(SLOT, &["w"])],
            (Operand::TwoMatrices, Method::Tiles) => &[(SLOT, &["w"]), (SLOT, &["second"])],
            (Operand::Unit, Method::Tiles) => &[(SLOT, &["gate"]), (SLOT, &["up"])],
            (Operand::UnitAndShared, Method::Tiles) => {
                &[(SLOT, &["gate"]), (SLOT, &["up"]), (SLOT, &["shared_gate"]), (SLOT, &["shared_up"])]
            }
        }
    }

    /// Its bindings, and the entry point.
    const fn parts(self, method: Method) -> &'static [Fragment] {
        const MATRIX: Fragment = wgsl!("matrix/io.wgsl");
        const UNIT: Fragment = wgsl!("glu/io.wgsl");
        const LINEAR: Fragment = wgsl!("linear.wgsl");
        const GLU: Fragment = wgsl!("linear_glu.wgsl");
        const LINEAR_TILES: Fragment = wgsl!("linear_tiles.wgsl");
        const GLU_TILES: Fragment = wgsl!("linear_glu_tiles.wgsl");
        match (self, method) {
            (Operand::Matrix, Method::Dots) => {
                &[MATRIX, wgsl!("matrix/one.wgsl"), wgsl!("matrix/one_dots.wgsl"), LINEAR]
            }
            (Operand::TwoMatrices, Method::Dots) => {
                &[MATRIX, wgsl!("matrix/two.wgsl"), wgsl!("matrix/two_dots.wgsl"), LINEAR]
            }
            (Operand::Unit, Method::Dots) => &[UNIT, wgsl!("glu/one.wgsl"), wgsl!("glu/one_dots.wgsl"), GLU],
            (Operand::UnitAndShared, Method::Dots) => &[UNIT, wgsl!("glu/shared.wgsl"), GLU],
            (Operand::Matrix, Method::Tiles) => {
                &[MATRIX, wgsl!("matrix/one.wgsl"), wgsl!("matrix/one_tiles.wgsl"), LINEAR_TILES]
            }
            (Operand::TwoMatrices, Method::Tiles) => {
                &[MATRIX, wgsl!("matrix/two.wgsl"), wgsl!("matrix/two_tiles.wgsl"), LINEAR_TILES]
            }
            (Operand::Unit | Operand::UnitAndShared, Method::Tiles) => {
                &[UNIT, wgsl!("glu/one.wgsl"), wgsl!("glu/one_tiles.wgsl"), GLU_TILES]
            }
        }
    }

    const fn is_unit(self) -> bool {
        matches!(self, Operand::Unit | Operand::UnitAndShared)
    }

    const fn params(self) -> &'static [Field] {
        if self.is_unit() { params::GluLinearParams::FIELDS } else { params::LinearParams::FIELDS }
    }

    /// The numbers of what follows a sum.
    const fn consts(self) -> &'static [Number] {
        if self.is_unit() { &[("ACT", ACT_SILU), ("ALPHA", 0), ("LIMIT", 0)] } else { &[("ACT", NO_ACT)] }
    }

    const fn fixed(self) -> &'static [Number] {
        match self {
            Operand::Matrix | Operand::TwoMatrices => NO_CLAMP,
            Operand::Unit => &[("SHARED", 0)],
            Operand::UnitAndShared => &[("SHARED", 1)],
        }
    }
}

impl Pairing {
    const fn parts(self) -> &'static [Fragment] {
        match self {
            Pairing::All => &[wgsl!("rows/plain.wgsl")],
            Pairing::Slots => &[wgsl!("rows/slots.wgsl"), wgsl!("experts/ids.wgsl")],
            Pairing::Chosen => &[SUM, wgsl!("rows/slots.wgsl"), wgsl!("experts/choose.wgsl")],
            Pairing::Grouped => &[wgsl!("rows/grouped.wgsl")],
        }
    }

    /// The numbers that vary: a norm may be folded in where every row of x meets the whole matrix.
    const fn consts(self, operand: Operand) -> &'static [Number] {
        match (self, operand) {
            (Pairing::All, Operand::Matrix) => &[("NORM", 0), ("NORMED", 0)],
            (Pairing::All, Operand::TwoMatrices | Operand::Unit | Operand::UnitAndShared) => &[("NORM", 0)],
            (Pairing::Chosen, _) => &[("EXPERTS", 64)],
            (Pairing::Slots | Pairing::Grouped, _) => &[],
        }
    }

    const fn fixed(self, operand: Operand) -> &'static [Number] {
        match (self, operand) {
            (Pairing::All, Operand::Matrix) => &[],
            (Pairing::All, Operand::TwoMatrices) => &[("NORMED", 0)],
            (Pairing::All, Operand::Unit | Operand::UnitAndShared) => &[("CHOOSE", 0)],
            (Pairing::Chosen, _) => &[("NORM", 0), ("CHOOSE", 1)],
            (Pairing::Slots, Operand::Matrix | Operand::TwoMatrices) => &[("NORM", 0), ("NORMED", 0), ("SHARED", 0)],
            (Pairing::Grouped, Operand::Matrix | Operand::TwoMatrices) => &[("NORM", 0), ("NORMED", 0)],
            (Pairing::Slots | Pairing::Grouped, Operand::Unit | Operand::UnitAndShared) => {
                &[("NORM", 0), ("CHOOSE", 0)]
            }
        }
    }
}

/// The numbers of every kernel of dot products, see [`super::Reduction::matrix`].
const DOTS: &[Number] = &[("WG", 64), ("LANES", 16), ("SUBGROUPS", 0), ("ROWS", 2), ("COLS", 1), ("TAIL", 0)];

/// Those of tiles, see [`crate::kernels::tiles`].
const TILES: &[Number] = &[("WG", 64), ("TM", 64), ("COLS", 32)];

/// Rows of the weight and rows of x that a workgroup of dot products takes.
fn dots_tile(v: &Variant) -> Result<[u32; 2]> {
    Ok([v.get("WG")? / v.get("LANES")?.max(1) * v.get("ROWS")?, v.get("COLS")?])
}

/// The same where teams share a row: each takes other experts.
fn down_tile(v: &Variant) -> Result<[u32; 2]> {
    let [rows, columns] = dots_tile(v)?;
    Ok([(rows / v.get("SLOTS")?.max(1)).max(1), columns])
}

/// The same of a kernel that multiplies tiles.
fn tile_size(v: &Variant) -> Result<[u32; 2]> {
    Ok([v.get("TM")?, v.get("COLS")?])
}

/// The same of a gated unit: half of a tile's rows are the gate's.
fn unit_tile_size(v: &Variant) -> Result<[u32; 2]> {
    Ok([v.get("TM")? / 2, v.get("COLS")?])
}

/// The kernel of a combination. Bindings: `x`, those of operand and pairing, where every row meets every row also `norm` f32
/// `[K]` (read where `NORM` = 1), for matrices `residual` `[R, N]` and `gate` `[R, 1]`, and `y` (read_write).
const fn product(name: &'static str, operand: Operand, pairing: Pairing, method: Method) -> Kernel {
    let (start, consts, tile): (&[Fragment], _, TileOf) = match method {
        Method::Dots => (&[DOT, TEAMS, ERF, ACTIVATION], [DOTS, operand.consts(), pairing.consts(operand)], dots_tile),
        Method::Tiles if operand.is_unit() => (&[ERF, ACTIVATION], [TILES, operand.consts(), &[]], unit_tile_size),
        Method::Tiles => (&[ERF, ACTIVATION], [TILES, operand.consts(), &[]], tile_size),
    };
    Kernel {
        name,
        parts: [start, pairing.parts(), operand.parts(method)],
        slots: operand.slots(),
        products: operand.products(method),
        tiles: matches!(method, Method::Tiles),
        consts,
        fixed: [operand.fixed(), pairing.fixed(operand)],
        params: operand.params(),
        tile,
        ..PLAIN
    }
}

/// `y = [residual +] [factor ·] [sigmoid(g) ·] [act] (W norm(x) + b)`. With `NORMED` = 1 (and `NORM`) the first row of
/// norm(x) goes to column `normed_offset` of y.
pub static LINEAR_KERNEL: Kernel = product("linear", Operand::Matrix, Pairing::All, Method::Dots);

/// As `linear`, two matrices. Items: `blocks` times a workgroup's rows for the first matrix, then the rows of the second.
pub static LINEAR_TWO: Kernel = product("linear_two", Operand::TwoMatrices, Pairing::All, Method::Dots);

/// `y[t, j] = [act] (W_e x + b_e)`, e the j-th expert of token t.
pub static EXPERT_LINEAR: Kernel = product("expert_linear", Operand::Matrix, Pairing::Slots, Method::Dots);

/// As `expert_linear`, for many tokens.
pub static EXPERT_LINEAR_GROUPED: Kernel =
    product("expert_linear_grouped", Operand::Matrix, Pairing::Grouped, Method::Dots);

/// `y = act(G norm(x)) · (U norm(x))`. Both matrices are cut into segments at the same rows.
pub static LINEAR_GLU: Kernel = product("linear_glu", Operand::Unit, Pairing::All, Method::Dots);

/// `h[t, j] = act(G_e x + b_e) · (U_e x + c_e)`.
pub static EXPERT_GLU: Kernel = product("expert_glu", Operand::Unit, Pairing::Slots, Method::Dots);

/// As `expert_glu`, with a shared expert: its h follows those of the k slots.
pub static EXPERT_GLU_SHARED: Kernel =
    product("expert_glu_shared", Operand::UnitAndShared, Pairing::Slots, Method::Dots);

/// As `expert_glu`, the experts chosen by the kernel itself.
pub static EXPERT_GLU_CHOOSE: Kernel = product("expert_glu_choose", Operand::Unit, Pairing::Chosen, Method::Dots);

/// As `expert_glu_shared`, the experts chosen by the kernel itself.
pub static EXPERT_GLU_SHARED_CHOOSE: Kernel =
    product("expert_glu_shared_choose", Operand::UnitAndShared, Pairing::Chosen, Method::Dots);

/// As `expert_glu`, for many tokens.
pub static EXPERT_GLU_GROUPED: Kernel = product("expert_glu_grouped", Operand::Unit, Pairing::Grouped, Method::Dots);

/// As `linear`, for many rows of x.
pub static LINEAR_TILES: Kernel = product("linear_tiles", Operand::Matrix, Pairing::All, Method::Tiles);

/// As `linear_two`, for many rows of x.
pub static LINEAR_TWO_TILES: Kernel = product("linear_two_tiles", Operand::TwoMatrices, Pairing::All, Method::Tiles);

/// As `expert_linear_grouped`; a tile has more rows of x.
pub static EXPERT_LINEAR_TILES: Kernel =
    product("expert_linear_tiles", Operand::Matrix, Pairing::Grouped, Method::Tiles);

/// As `linear_glu`, for many rows of x.
pub static LINEAR_GLU_TILES: Kernel = product("linear_glu_tiles", Operand::Unit, Pairing::All, Method::Tiles);

/// As `expert_glu_grouped`; a tile has more rows of x.
pub static EXPERT_GLU_TILES: Kernel = product("expert_glu_tiles", Operand::Unit, Pairing::Grouped, Method::Tiles);

const DOWN: Fragment = wgsl!("expert_down_add.wgsl");

/// `y = residual + factor · Σ_j weights[t, j] · (W_e h[t, j] + b_e)`. Bindings: `bias` f32 `[E, H]`, `x` (h) `[T, k·I]`,
/// `w_data`, `ids`, `weights` `[T, k]`, `residual` `[T, H]`, `y` (read_write). Items: rows of one expert's matrix (H); rows:
/// T. `SLOTS`: experts that are taken side by side. With several segments the first dispatch starts from the residual, later ones `ACCUMULATE`.
pub static EXPERT_DOWN_ADD: Kernel = Kernel {
    name: "expert_down_add",
    parts: parts(&[DOT, TEAMS, wgsl!("down/alone.wgsl"), DOWN]),
    slots: &["w"],
    products: &[(PRODUCTS, &["w"])],
    consts: [DOTS, &[("SLOTS", 1)], &[]],
    fixed: [&[("NORM", 0), ("SHARED", 0)], &[]],
    params: params::ExpertDownAddParams::FIELDS,
    tile: down_tile,
    ..PLAIN
};

/// As `expert_down_add`, with a shared expert whose h `[T, Is]` follows those of the slots in `x`. Bindings: `x`, `w_data`,
/// `shared_data` `[H, Is]`, `ids`, `weights`, `residual`, `gate` `[T, 1]` (read where `GATE` is set), `y` (read_write).
pub static EXPERT_DOWN_SHARED_ADD: Kernel = Kernel {
    name: "expert_down_shared_add",
    parts: parts(&[DOT, TEAMS, wgsl!("down/shared.wgsl"), DOWN]),
    slots: &["w", "shared"],
    products: &[(PRODUCTS, &["w"]), (PRODUCTS, &["shared"])],
    fixed: [&[("NORM", 0), ("SHARED", 1)], &[]],
    ..EXPERT_DOWN_ADD
};
