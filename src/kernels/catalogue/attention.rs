//! Rotation, the cache, attention.

use super::{Kernel, PLAIN, SEQUENCE, SUM, consts, one_each, parts, wg_items};
use crate::kernels::{Fragment, fragment::wgsl, params};

const KV_WRITE: Fragment = wgsl!("kv/write.wgsl");
const ROTATE: Fragment = wgsl!("common/rotate.wgsl");

/// Rotation by position. Bindings: `rows` (as in `common/sequence.wgsl`), `x` `[T, heads·D]`, `rope_table` `vec2<f32>`
/// `[ctx, dims / 2]` of cosines and sines by position, `y` (read_write).
/// Items: heads·D columns; rows: T.
pub static ROPE: Kernel = Kernel {
    name: "rope",
    parts: parts(&[SEQUENCE, ROTATE, wgsl!("rope.wgsl")]),
    consts: consts(&[("WG", 64), ("BATCH", 0)]),
    params: params::RopeParams::FIELDS,
    tile: wg_items,
    ..PLAIN
};

/// Keys and values to the cache, layout `[sequences, kv_heads, ctx, dim]`. Bindings: `rows`, `k`, `v`, `k_cache`, `v_cache`
/// (read_write). Items: 2·kv_heads; rows: T.
pub static KV_STORE: Kernel = Kernel {
    name: "kv_store",
    parts: parts(&[SEQUENCE, KV_WRITE, wgsl!("kv_store.wgsl")]),
    kv: true,
    consts: consts(&[("WG", 32), ("BATCH", 0)]),
    params: params::KvStoreParams::FIELDS,
    tile: one_each,
    ..PLAIN
};

/// Norms and rotation of q and k, k and v to the cache. Bindings: `rows`, `qkv` (q, k and v side by side), `q_norm`, `k_norm`,
/// `rope_table` (as `rope`), `y` (q') (read_write), `k_cache`, `v_cache` (read_write). Items: heads + 2·kv_heads; rows: T.
pub static ROPE_STORE: Kernel = Kernel {
    name: "rope_store",
    parts: parts(&[SEQUENCE, SUM, KV_WRITE, ROTATE, wgsl!("rope_store.wgsl")]),
    kv: true,
    consts: consts(&[("WG", 32), ("BATCH", 0)]),
    params: params::RopeStoreParams::FIELDS,
    tile: one_each,
    ..PLAIN
};

/// Causal grouped-query attention with an online softmax. Bindings: `rows`, `q` `[T, heads·Dk]`, `k_cache`, `v_cache`, `sinks`
/// f32 `[heads]`, `y` (read_write; with `SPLIT` = 1 the `partials` of `attend_reduce`, f32
/// `[T, heads, splits, Dv + 4]`). Consts: `K_DIM`, `V_DIM` (both multiples of 4), `ROWS` (query rows a workgroup: the
/// heads/kv_heads query heads of one kv head, token after token), `SPLIT`. Items: kv_heads; rows: T·heads/kv_heads;
/// z with `SPLIT` = 1: ceil((P + T) / chunk), else 1.
pub static ATTEND: Kernel = Kernel {
    name: "attend",
    parts: parts(&[SEQUENCE, wgsl!("attend.wgsl")]),
    kv: true,
    consts: consts(&[("WG", 64), ("K_DIM", 64), ("V_DIM", 64), ("ROWS", 4), ("SPLIT", 0), ("BATCH", 0), ("V_IN_K", 0)]),
    params: params::AttendParams::FIELDS,
    tile: |v| Ok([1, v.get("ROWS")?]),
    ..PLAIN
};

/// Merges the splits of `attend`. Bindings: `partials` (the `y` of `attend` with `SPLIT` = 1), `sinks`, `y` (read_write)
/// `[T, heads·Dv]`. Items: heads; rows: T.
pub static ATTEND_REDUCE: Kernel = Kernel {
    name: "attend_reduce",
    parts: parts(&[wgsl!("attend_reduce.wgsl")]),
    consts: consts(&[("WG", 32)]),
    params: params::AttendReduceParams::FIELDS,
    tile: one_each,
    ..PLAIN
};
