// The dot product of group g with 32 numbers: the quants as they are, then 8 times the numbers' sum and the scale.
fn W_dot(g: u32, n: u32, v: array<vec4<f32>, 8>) -> f32 {
    return W_half(n, g) * fma(-8.0, sum_group(v), dot_nibbles(W_data[g], v));
}
