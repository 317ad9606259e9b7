
// kv_store: writes the keys and values of this step to positions P .. P + T of the cache.
//
// One invocation four columns. Grid: x = ceil(kv_heads * (Dk + Dv)/4 / WG), y = T. Rounds to the cache's storage.

struct Params {
    kv_heads: u32,
    k_dim: u32,
    v_dim: u32,
    ctx: u32,
    k_offset: u32,
    k_stride: u32,
    v_offset: u32,
    v_stride: u32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;            // [T, kv_heads*Dk]
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;            // [T, kv_heads*Dv]
@group(0) @binding(4) var<storage, read_write> k_cache: array<KvWord>;   // [sequences, kv_heads, ctx, Dk/4]
@group(0) @binding(5) var<storage, read_write> v_cache: array<KvWord>;   // [sequences, kv_heads, ctx, Dv/4]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.y;
    let k4 = p.k_dim / 4u;
    let v4 = p.v_dim / 4u;
    let i = wg.x * WG + lid;
    if (t >= frame.tokens) {
        return;
    }
    let position = position_of(t);
    if (position >= p.ctx) {
        return;
    }
    let first = sequence_of(t) * p.kv_heads;
    if (i < p.kv_heads * k4) {
        let word = kv_pack(k[(p.k_offset + t * p.k_stride) / 4u + i]);
        k_cache[((first + i / k4) * p.ctx + position) * k4 + i % k4] = word;
    } else if (i < p.kv_heads * (k4 + v4)) {
        let j = i - p.kv_heads * k4;
        let word = kv_pack(v[(p.v_offset + t * p.v_stride) / 4u + j]);
        v_cache[((first + j / v4) * p.ctx + position) * v4 + j % v4] = word;
    }
}
