
// kv_store: writes the keys and values of this step to positions P .. P + T of the cache.
//
// One workgroup a head: first those of k, then those of v. Grid: x = 2 * kv_heads, y = T. Rounds to the cache's storage.

@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;            // [T, kv_heads*Dk]
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;            // [T, kv_heads*Dv]
@group(0) @binding(4) var<storage, read_write> k_cache: array<KvWord>;   // [sequences, kv_heads, ctx, Dk/4 and scales]
@group(0) @binding(5) var<storage, read_write> v_cache: array<KvWord>;   // [sequences, kv_heads, ctx, Dv/4 and scales]

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
    let is_v = wg.x >= p.kv_heads;
    let head = wg.x % p.kv_heads;
    // What another part of the cache holds is another dispatch's.
    let unit = sequence_of(t) * p.kv_heads + head - p.first_unit;
    if (unit >= p.units) {
        return;
    }
    let fours = select(p.k_dim, p.v_dim, is_v) / 4u;
    let source = select(p.k_offset + t * p.k_stride, p.v_offset + t * p.v_stride, is_v) / 4u + head * fours;
    let row = (unit * p.ctx + position) * row_words(fours);
    for (var first = 0u; first < fours; first += WG) {
        let i = first + lid;
        var x: vec4<f32>;
        if (i < fours) {
            if (is_v) {
                x = v[source + i];
            } else {
                x = k[source + i];
            }
        }
        kv_write(lid, is_v, row, i, fours, x);
    }
}
