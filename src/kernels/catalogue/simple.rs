//! Everything else: embedding, norms, the choice of experts, recurrent layers, element by element, the next token.

use super::{ACTIVATION, ERF, Kernel, NO_CLAMP, Number, PLAIN, SUM, consts, one_each, parts, wg_items};
use crate::kernels::{
    Fragment,
    fragment::wgsl,
    numbers::{ACT_SILU, OP_ADD},
    params::{self, Field},
};

const SAMPLING: Fragment = wgsl!("sampling/keys.wgsl");
const SPANS: Fragment = wgsl!("common/spans.wgsl");
const SPAN: &[(&str, &[Field], &str)] = &[("Span", params::Span::FIELDS, "")];
const SETTINGS: &[(&str, &[Field], &str)] = &[
    ("Settings", params::Settings::FIELDS, "forbidden_ids: array<u32, FORBIDDEN>"),
    ("Choice", params::Choice::FIELDS, ""),
];

/// Rows of an embedding table. Bindings: `ids` u32 `[T, 1]`, `w_data` segment of `[V, H]`, `y` `[T, H]` (read_write).
/// Items: groups of a row; rows: T. A token's row is written by the dispatch whose segment holds it.
pub static EMBED: Kernel = Kernel {
    name: "embed",
    parts: parts(&[wgsl!("embed.wgsl")]),
    slots: &["w"],
    consts: consts(&[("WG", 32), ("TAIL", 0)]),
    params: params::EmbedParams::FIELDS,
    tile: wg_items,
    ..PLAIN
};

/// Root-mean-square norm of whole rows or of groups (heads), or with `LAYER` 1 a layer norm. Bindings: `x` `[R, n·g]`, `w`
/// f32 `[n]`, `b` f32 `[n]` (read where `BIASED` = 1), `y` (read_write).
/// Items: groups g of a row; rows: T or O.
pub static RMS_NORM: Kernel = Kernel {
    name: "rms_norm",
    parts: parts(&[SUM, wgsl!("rms_norm.wgsl")]),
    consts: consts(&[("WG", 64), ("LAYER", 0), ("BIASED", 0)]),
    params: params::RmsNormParams::FIELDS,
    tile: one_each,
    ..PLAIN
};

/// Causal convolution of each channel. Bindings: `x` `[T, C]`, `w` f32 `[taps, C]`, `bias` f32 `[C]` (read where
/// `p.bias_on` = 1), `state` `[slots, taps - 1, C]` (read_write), `spans`, `y` (read_write). `TAPS`: 2 to 16. Items: channels;
/// rows: sequences (an invocation goes through the rows of one in order).
pub static SHORT_CONV: Kernel = Kernel {
    name: "short_conv",
    parts: parts(&[SPANS, ERF, ACTIVATION, wgsl!("short_conv.wgsl")]),
    consts: consts(&[("WG", 64), ("TAPS", 4), ("ACT", ACT_SILU), ("BATCH", 0)]),
    fixed: [NO_CLAMP, &[]],
    params: params::ShortConvParams::FIELDS,
    structs: SPAN,
    tile: wg_items,
    ..PLAIN
};

/// The gated delta rule. Bindings: `qkv` `[T, 2·Hk·Dk + Hv·Dv]`, `a` and `b` `[T, Hv]` (which may lie in one buffer), `decay`
/// and `dt_bias` f32 `[Hv]`, `state` `[slots, Hv, Dk, Dv]` (read_write), `spans`, `y` `[T, Hv·Dv]` (read_write).
/// Items: Hv·Dv columns of states; rows: sequences (an invocation goes through the rows of one in order).
pub static DELTA_NET: Kernel = Kernel {
    name: "delta_net",
    parts: parts(&[SPANS, wgsl!("delta_net.wgsl")]),
    consts: consts(&[("WG", 32), ("BATCH", 0)]),
    params: params::DeltaNetParams::FIELDS,
    structs: SPAN,
    tile: wg_items,
    ..PLAIN
};

/// The numbers of a router's kernel.
const ROUTER_NUMBERS: &[Number] = &[
    ("WG", 64),
    ("EXPERTS", 64),
    ("BY_SCORE", 0),
    ("GROUPED", 0),
    ("GROUPS", 1),
    ("OWN_GROUPS", 0),
    ("KEEP_IDS", 0),
    ("SPARSE", 0),
    ("SCALED", 0),
];

/// Scores, top-k and weights. Bindings: `x` logits `[T, E]`, `per_expert` `[E]` selection biases (any buffer of zeros where
/// there are none), with `SCALED` 1 `[2·E]`: and a factor on the weight of each expert; `ids` u32 `[T, k]` (read_write),
/// `weights` `[T, k]` (read_write). Items: 1; rows: T. `EXPERTS`: at least E; loops run to it. `BY_SCORE` 1: the choice is
/// made on scores, not on logits. `SPARSE` 1: sparsemixer; it and `SCALED` need `KEEP_IDS` 1. `GROUPED` 1: only some of
/// `GROUPS` groups of experts take part. `OWN_GROUPS` 1, which needs that and `KEEP_IDS` 1: groups have logits of their own behind the
/// experts', `x` is `[T, E + GROUPS]`.
pub static ROUTER: Kernel = Kernel {
    name: "router",
    parts: parts(&[SUM, wgsl!("router.wgsl")]),
    consts: consts(ROUTER_NUMBERS),
    fixed: [&[("CACHED", 0)], &[]],
    params: params::RouterParams::FIELDS,
    tile: one_each,
    ..PLAIN
};

/// As `router` of one token, and the slots of the chosen experts in a cache of experts. More bindings: `cache` u32 (read_write),
/// `places` u32 `[1, k]` (read_write: the slots), `args` u32 `[4]` (read_write, also INDIRECT: the grid of `expert_fill`).
/// `CHOSEN`: k; `CACHE_ROOM`: at least as many as slots, at most `EXPERTS`; loops run to both. Needs `KEEP_IDS` 1.
pub static ROUTER_CACHED: Kernel = Kernel {
    name: "router_cached",
    parts: parts(&[SUM, wgsl!("experts/place.wgsl"), wgsl!("router.wgsl")]),
    consts: [ROUTER_NUMBERS, &[("CHOSEN", 8), ("CACHE_ROOM", 64)], &[]],
    fixed: [&[("CACHED", 1), ("TOKENS", 1)], &[]],
    ..ROUTER
};

/// The slots of the experts that a router has chosen for a few tokens. Bindings: `ids` u32 `[T, k]`, and `cache`, `places` u32 `[T, k]`,
/// `args` as of `router_cached`. `CHOSEN`: choices of a step at most. Items: 1; rows: 1 (one workgroup in all).
pub static EXPERT_PLACES: Kernel = Kernel {
    name: "expert_places",
    parts: parts(&[wgsl!("experts/place.wgsl"), wgsl!("expert_places.wgsl")]),
    consts: consts(&[("WG", 64), ("CHOSEN", 64), ("CACHE_ROOM", 64)]),
    fixed: [&[("TOKENS", 8)], &[]],
    params: params::ExpertPlacesParams::FIELDS,
    tile: one_each,
    ..PLAIN
};

const FILL: Fragment = wgsl!("expert_fill.wgsl");
const FILL_PART: Fragment = wgsl!("expert_fill/part.wgsl");
const FIRST: Fragment = wgsl!("expert_fill/first.wgsl");
const SECOND: Fragment = wgsl!("expert_fill/second.wgsl");
const THIRD: Fragment = wgsl!("expert_fill/third.wgsl");

/// Missing experts of one matrix to their slots. Bindings: `cache` u32 as of `router_cached`, then room for the biases of slots
/// (read_write), `vectors` u32 (any buffer where there are no biases), `first_from` a segment of the matrix, `first_to` its slots
/// (read_write). Dispatched indirectly. Items: units of 16 bytes of an expert; rows: missing experts.
pub static EXPERT_FILL_1: Kernel = Kernel {
    name: "expert_fill_1",
    parts: parts(&[FIRST, FILL]),
    products: &[(FILL_PART, &["first"])],
    consts: consts(&[("WG", 64), ("EACH", 4)]),
    fixed: [&[("PARTS", 1), ("COLS", 1)], &[]],
    params: params::ExpertFillParams::FIELDS,
    tile: |v| Ok([v.get("WG")? * v.get("EACH")?, 1]),
    ..PLAIN
};

/// As `expert_fill_1`, of two matrices: `second_from`, `second_to`.
pub static EXPERT_FILL_2: Kernel = Kernel {
    name: "expert_fill_2",
    parts: parts(&[FIRST, SECOND, FILL]),
    products: &[(FILL_PART, &["first"]), (FILL_PART, &["second"])],
    fixed: [&[("PARTS", 2), ("COLS", 1)], &[]],
    ..EXPERT_FILL_1
};

/// As `expert_fill_1`, of three matrices: `third_from`, `third_to`.
pub static EXPERT_FILL_3: Kernel = Kernel {
    name: "expert_fill_3",
    parts: parts(&[FIRST, SECOND, THIRD, FILL]),
    products: &[(FILL_PART, &["first"]), (FILL_PART, &["second"]), (FILL_PART, &["third"])],
    fixed: [&[("PARTS", 3), ("COLS", 1)], &[]],
    ..EXPERT_FILL_1
};

/// Groups the T·k (token, slot) pairs by expert. Bindings: `ids` u32 `[T, k]`, `pairs` u32 `[T·k]` (read_write: t·k + j,
/// experts ascending), `tiles` `vec4<u32>` `[T·k / tile + min(E, T·k)]` (read_write: expert, first pair, pairs, 0), `args`
/// u32 `[8]` (read_write, also INDIRECT: arguments of two dispatches, at bytes 0 and 16). Items: 1; rows: 1 (one
/// workgroup in all). `EXPERTS`: at least E.
pub static EXPERT_SORT: Kernel = Kernel {
    name: "expert_sort",
    parts: parts(&[wgsl!("expert_sort.wgsl")]),
    consts: consts(&[("WG", 64), ("EXPERTS", 64)]),
    params: params::ExpertSortParams::FIELDS,
    tile: one_each,
    ..PLAIN
};

/// `y = [residual +] Σ_j weights[t, j] · x[t, j]`. Bindings: `x` `[T, k·n]`, `weights` `[T, k]`, `residual` `[T, n]`, `y`
/// (read_write). Items: n; rows: T.
pub static EXPERT_COMBINE: Kernel = Kernel {
    name: "expert_combine",
    parts: parts(&[wgsl!("expert_combine.wgsl")]),
    consts: consts(&[("WG", 64)]),
    params: params::ExpertCombineParams::FIELDS,
    tile: wg_items,
    ..PLAIN
};

/// `y = OP(a, b)` element by element, `OP` being one of the `OP_` numbers, which say what they compute. Bindings: `a`, `b`
/// (any buffer for those that have one operand), `y` (read_write). Items: columns; rows: T or O.
pub static ELEMENTWISE: Kernel = Kernel {
    name: "elementwise",
    parts: parts(&[ERF, ACTIVATION, wgsl!("elementwise.wgsl")]),
    consts: consts(&[("WG", 64), ("OP", OP_ADD), ("ACT", ACT_SILU), ("ALPHA", 0), ("LIMIT", 0)]),
    params: params::ElementwiseParams::FIELDS,
    tile: wg_items,
    ..PLAIN
};

/// Logits to keys, penalty, bans and masks applied. Bindings: `settings`, `choices`, `masks` and `state` as `plan::sample` lays them
/// out, `x` logits `[O, V]`, `keys` u32 `[choices, V]` (read_write), `maxima` u32 `[choices, ceil(V / 64)]` (read_write). Items: V;
/// rows: choices.
pub static SAMPLE_KEYS: Kernel = Kernel {
    name: "sample_keys",
    parts: parts(&[SAMPLING, wgsl!("sample_keys.wgsl")]),
    consts: consts(&[("WG", 64)]),
    fixed: [&[("BLOCK", 1024)], &[]],
    params: params::SampleKeysParams::FIELDS,
    structs: SETTINGS,
    tile: |v| Ok([v.get("BLOCK")?, 1]),
    ..PLAIN
};

/// The next tokens from what `sample_keys` left. Bindings: `settings`, `choices`, `keys`, `maxima`, `state` (read_write), `tokens`
/// (read_write: the ids of the next step), `chosen` (read_write). Items: 1; rows: choices, of which a sequence has one at most. `WG` is the most that top-k may be
/// for its short way; it must be 256, the number of bins.
pub static SAMPLE_PICK: Kernel = Kernel {
    name: "sample_pick",
    parts: parts(&[
        SAMPLING,
        wgsl!("sampling/u64.wgsl"),
        wgsl!("sampling/elements.wgsl"),
        wgsl!("sampling/search.wgsl"),
        wgsl!("sampling/filters.wgsl"),
        wgsl!("sample_pick.wgsl"),
    ]),
    consts: consts(&[("WG", 256)]),
    params: params::SamplePickParams::FIELDS,
    structs: SETTINGS,
    tile: one_each,
    ..PLAIN
};

/// 0, 1, 2… in every row. Bindings: `y` u32 `[T, heads]` (read_write). Items: heads; rows: T.
pub static HEAD_IDS: Kernel = Kernel {
    name: "head_ids",
    parts: parts(&[wgsl!("head_ids.wgsl")]),
    consts: consts(&[("WG", 64)]),
    params: params::HeadIdsParams::FIELDS,
    tile: wg_items,
    ..PLAIN
};

/// The numbers of the experts that are here. Bindings: `ids` u32 `[T, k]`, `y` u32 `[T, k]` (read_write). Items: k; rows: T.
pub static LOCAL_IDS: Kernel = Kernel {
    name: "local_ids",
    parts: parts(&[wgsl!("local_ids.wgsl")]),
    consts: consts(&[("WG", 64)]),
    params: params::LocalIdsParams::FIELDS,
    tile: wg_items,
    ..PLAIN
};

/// Columns side by side, head by head. Bindings: `a` `[R, heads·m]`, `b` `[R, heads·n]`, `y` `[R, heads·(m + n)]`
/// (read_write). Items: columns; rows: T or O.
pub static JOIN_HEADS: Kernel = Kernel {
    name: "join_heads",
    parts: parts(&[wgsl!("join_heads.wgsl")]),
    consts: consts(&[("WG", 64)]),
    params: params::JoinHeadsParams::FIELDS,
    tile: wg_items,
    ..PLAIN
};

/// `y = a`, to measure a device. Bindings: `a` u32 `[4 · groups]`, `y` (read_write). Items: groups; rows: 1.
pub static COPY: Kernel = Kernel {
    name: "copy",
    parts: parts(&[wgsl!("copy.wgsl")]),
    consts: consts(&[("WG", 64), ("EACH", 8)]),
    params: params::CopyParams::FIELDS,
    tile: |v| Ok([v.get("WG")? * v.get("EACH")?, 1]),
    ..PLAIN
};

/// What the device does where WGSL leaves it open. Bindings: `x` u32 (halves), `y` u32 (read_write): see the file. One workgroup.
pub static PROBE: Kernel = Kernel {
    name: "probe",
    parts: parts(&[wgsl!("probe.wgsl")]),
    consts: consts(&[("WG", 128), ("SUBGROUPS", 0)]),
    params: params::ProbeParams::FIELDS,
    tile: one_each,
    ..PLAIN
};
