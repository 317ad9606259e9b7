// The dot product of group g with 32 numbers: the quants as they are, then the scale, and the minimum with the numbers' sum.
fn W_dot(g: u32, n: u32, v: array<vec4<f32>, 8>) -> f32 {
    let q = W_data[g];
    let s = W_scales(W_data[n + (g >> 3u)], g);
    return fma(s.x, dot_nibbles(q, v), -s.y * sum_group(v));
}
