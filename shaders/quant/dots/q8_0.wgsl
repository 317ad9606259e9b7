// The dot product of group g with 32 numbers: the quants as they are, then the scale.
fn W_raw(q: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xI8(q));
}

fn W_dot(g: u32, n: u32, v: array<vec4<f32>, 8>) -> f32 {
    let a = W_data[g * 2u];
    let b = W_data[g * 2u + 1u];
    var sum = W_raw(a.x) * v[0];
    sum = fma(W_raw(a.y), v[1], sum);
    sum = fma(W_raw(a.z), v[2], sum);
    sum = fma(W_raw(a.w), v[3], sum);
    sum = fma(W_raw(b.x), v[4], sum);
    sum = fma(W_raw(b.y), v[5], sum);
    sum = fma(W_raw(b.z), v[6], sum);
    sum = fma(W_raw(b.w), v[7], sum);
    return W_half(n * 2u, g) * sum_quad(sum);
}
