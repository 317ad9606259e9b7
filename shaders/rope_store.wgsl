
// rope_store: optional norms of q and k (of each head, or of the whole row), rotation of both, k and v to the cache. A norm
// may come after the rotation: its factor is the same, because a rotation keeps the sum of squares.
//
// One workgroup a head: first the query heads, then those of k, then those of v. Grid: x = heads + 2 * kv_heads, y = T.
// f32; rounds to the cache's storage.

@group(0) @binding(3) var<storage, read> qkv: array<f32>;                // [T, q | k | v]
@group(0) @binding(4) var<storage, read> q_norm: array<f32>;             // [D] or [heads*D]
@group(0) @binding(5) var<storage, read> k_norm: array<f32>;             // [D] or [kv_heads*D]
@group(0) @binding(6) var<storage, read_write> y: array<vec4<f32>>;      // [T, heads*D]
@group(0) @binding(7) var<storage, read_write> k_cache: array<KvWord>;   // [sequences, kv_heads, ctx, D/4 and scales]
@group(0) @binding(8) var<storage, read_write> v_cache: array<KvWord>;   // [sequences, kv_heads, ctx, Dv/4 and scales]

// What is done to a head of q or k before its rotation.
struct Source {
    start: u32,     // its first column in qkv
    factor: f32,   // 1/rms, or 1
    kind: u32,     // of the norm
    weight: u32,   // the first column's weight in the norm
    is_q: bool,
}

fn normed(s: Source, c: u32, v: f32) -> f32 {
    if (s.kind == NORM_NONE) {
        return v;
    }
    if (s.is_q) {
        return v * s.factor * q_norm[s.weight + c];
    }
    return v * s.factor * k_norm[s.weight + c];
}

fn column(s: Source, c: u32) -> f32 {
    let v = qkv[s.start + c];
    if (p.qk_norm_after_rope != 0u) {
        return v;
    }
    return normed(s, c, v);
}

fn rotated(s: Source, c: u32, position: u32) -> f32 {
    let other = column(s, partner(c, p.dims, p.halves));
    let v = rotate(column(s, c), other, c, p.dims, p.halves, position);
    if (p.qk_norm_after_rope != 0u) {
        return normed(s, c, v);
    }
    return v;
}

// Columns c .. c + 4 of a head: of a value, which starts at `value`, as they are, else rotated.
fn four(s: Source, is_v: bool, value: u32, c: u32, position: u32) -> vec4<f32> {
    if (is_v) {
        let at = value + c;
        return vec4<f32>(qkv[at], qkv[at + 1u], qkv[at + 2u], qkv[at + 3u]);
    }
    return vec4<f32>(
        rotated(s, c, position),
        rotated(s, c + 1u, position),
        rotated(s, c + 2u, position),
        rotated(s, c + 3u, position),
    );
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.y;
    if (t >= frame.tokens) {
        return;
    }
    let position = position_of(t);
    if (position >= p.ctx) {
        return;
    }
    let row = t * p.stride;
    let is_q = wg.x < p.heads;
    let is_v = wg.x >= p.heads + p.kv_heads;
    let head = select(select(wg.x - p.heads, wg.x - p.heads - p.kv_heads, is_v), wg.x, is_q);
    // What another part of the cache holds is another dispatch's, and queries are the first one's.
    let unit = select(sequence_of(t) * p.kv_heads + head - p.first_unit, p.first_unit, is_q);
    if (unit >= select(p.units, 1u, is_q)) {
        return;
    }
    let start = row + select(p.k_offset, p.q_offset, is_q);
    let kind = select(select(p.k_norm_kind, p.q_norm_kind, is_q), 0u, is_v);

    // Sum of squares of what the norm covers: nothing, the head, or every head of the row.
    let first = select(0u, head * p.head_dim, kind == NORM_EACH_HEAD);
    let heads = select(select(p.kv_heads, p.heads, is_q), 1u, kind == NORM_EACH_HEAD);
    let count = select(heads * p.head_dim, 0u, kind == NORM_NONE);
    var squares = 0.0;
    for (var i = lid; i < count; i += WG) {
        let v = qkv[start + first + i];
        squares += v * v;
    }
    let total = workgroup_sum(lid, squares);
    let factor = inverseSqrt(total / f32(max(count, 1u)) + select(p.k_eps, p.q_eps, is_q));

    let fours = select(p.head_dim, p.v_dim, is_v) / 4u;
    let cached = (unit * p.ctx + position) * row_words(fours);
    let weight = select(0u, head * p.head_dim, kind == NORM_WHOLE_ROW);
    let source = Source(start + head * p.head_dim, factor, kind, weight, is_q);
    for (var first = 0u; first < fours; first += WG) {
        let i = first + lid;
        var v: vec4<f32>;
        if (i < fours) {
            v = four(source, is_v, row + p.v_offset + head * p.v_dim, i * 4u, position);
        }
        if (!is_q) {
            kv_write(lid, is_v, cached, i, fours, v);
        } else if (i < fours) {
            y[(p.y_offset + t * p.y_stride) / 4u + head * fours + i] = v;
        }
    }
}
