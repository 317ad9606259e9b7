// The dot product of group g with 32 numbers: the quants as they are, then for each half d * s and 32 times the numbers' sum.
fn W_raw(q: u32, h: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xU8((q & 0x0f0f0f0fu) | ((h & 0x03030303u) << 4u)));
}

fn W_dot(g: u32, n: u32, v: array<vec4<f32>, 8>) -> f32 {
    let q = W_data[g];
    let pair = W_data[n + (g >> 1u)];
    let h = select(pair.xy, pair.zw, (g & 1u) == 1u);
    let s = W_scales(g, n);
    var low = W_raw(q.x, h.x) * v[0];
    low = fma(W_raw(q.y, h.x >> 2u), v[1], low);
    low = fma(W_raw(q.z, h.x >> 4u), v[2], low);
    low = fma(W_raw(q.w, h.x >> 6u), v[3], low);
    var high = W_raw(q.x >> 4u, h.y) * v[4];
    high = fma(W_raw(q.y >> 4u, h.y >> 2u), v[5], high);
    high = fma(W_raw(q.z >> 4u, h.y >> 4u), v[6], high);
    high = fma(W_raw(q.w >> 4u, h.y >> 6u), v[7], high);
    let offset = vec2<f32>(sum_quad(v[0] + v[1] + v[2] + v[3]), sum_quad(v[4] + v[5] + v[6] + v[7]));
    return dot(s, fma(offset, vec2<f32>(-32.0), vec2<f32>(sum_quad(low), sum_quad(high))));
}
