// The dot product of group g with 32 numbers: the quants as they are, then the scale, and the minimum with the numbers' sum.
fn W_raw(q: u32, h: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xU8((q & 0x0f0f0f0fu) | ((h & 0x01010101u) << 4u)));
}

fn W_dot(g: u32, n: u32, v: array<vec4<f32>, 8>) -> f32 {
    let q = W_data[g];
    let h = W_data[n + (g >> 2u)][g & 3u];
    let s = W_scales(W_data[n + (n >> 2u) + (g >> 3u)], g);
    var sum = W_raw(q.x, h) * v[0];
    sum = fma(W_raw(q.y, h >> 1u), v[1], sum);
    sum = fma(W_raw(q.z, h >> 2u), v[2], sum);
    sum = fma(W_raw(q.w, h >> 3u), v[3], sum);
    sum = fma(W_raw(q.x >> 4u, h >> 4u), v[4], sum);
    sum = fma(W_raw(q.y >> 4u, h >> 5u), v[5], sum);
    sum = fma(W_raw(q.z >> 4u, h >> 6u), v[6], sum);
    sum = fma(W_raw(q.w >> 4u, h >> 7u), v[7], sum);
    return fma(s.x, sum_quad(sum), -s.y * sum_group(v));
}
