//! Rotation, the cache, attention.

use super::{Kernel, PLAIN, SEQUENCE, SUM, consts, one_each, parts, wg_items};
use crate::kernels::{Fragment, fragment::wgsl, params};

const KV_WRITE: Fragment = wgsl!("kv/write.wgsl");
const PIECES: Fragment = wgsl!("common/pieces.wgsl");
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
/// f32 `[heads]`, `y` `[T, heads·Dv]` and `partials` f32 `[T, heads, pieces, Dv + 4]` (both read_write: the result where there is
/// one piece, else what `attend_reduce` merges). Consts: `K_DIM`, `V_DIM` (both multiples of 4), `ROWS` (query rows a workgroup: the
/// heads/kv_heads query heads of one kv head, token after token), `TEAM` (invocations that share a key, a power of two and at most
/// `ROWS`), `LOADS` (words of the cache that an invocation asks for at a time). Items: kv_heads; rows: T·heads/kv_heads; z: pieces.
pub static ATTEND: Kernel = Kernel {
    name: "attend",
    parts: parts(&[SEQUENCE, PIECES, wgsl!("attend.wgsl")]),
    kv: true,
    consts: consts(&[
        ("WG", 128),
        ("K_DIM", 64),
        ("V_DIM", 64),
        ("ROWS", 4),
        ("TEAM", 4),
        ("LOADS", 4),
        ("BATCH", 0),
        ("V_IN_K", 0),
    ]),
    params: params::AttendParams::FIELDS,
    tile: |v| Ok([1, v.get("ROWS")?]),
    ..PLAIN
};

/// Merges the pieces of `attend`. Bindings: `rows`, `partials`, `sinks`, `y` (read_write) `[T, heads·Dv]`. Items: heads; rows: T;
/// nothing where there is one piece.
pub static ATTEND_REDUCE: Kernel = Kernel {
    name: "attend_reduce",
    parts: parts(&[SEQUENCE, SUM, PIECES, wgsl!("attend_reduce.wgsl")]),
    consts: consts(&[("WG", 128), ("BATCH", 0)]),
    params: params::AttendReduceParams::FIELDS,
    tile: one_each,
    ..PLAIN
};
