// The dot product of group g with 32 numbers, by the weights themselves.
fn W_dot(g: u32, n: u32, v: array<vec4<f32>, 8>) -> f32 {
    return dot_group(W_dequant(g, n), v);
}
