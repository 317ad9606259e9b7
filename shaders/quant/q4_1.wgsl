// Q4_1: x = d * q + m, q in 0..16.
//
// Layout, in vec4: [0, n) quants, one vec4 a group, byte j of it holding weight j below and weight j + 16 above;
// from n: d (low) and m (high), f16, one word a group.
// Precision: f32; equal to ggml's dequantisation but for the contraction of product and sum.

fn W_quad(q: u32, s: vec2<f32>) -> vec4<f32> {
    return vec4<f32>(unpack4xU8(q & 0x0f0f0f0fu)) * s.x + s.y;
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let q = W_data[g];
    let s = unpack2x16float(W_data[n + (g >> 2u)][g & 3u]);
    return array<vec4<f32>, 8>(
        W_quad(q.x, s),
        W_quad(q.y, s),
        W_quad(q.z, s),
        W_quad(q.w, s),
        W_quad(q.x >> 4u, s),
        W_quad(q.y >> 4u, s),
        W_quad(q.z >> 4u, s),
        W_quad(q.w >> 4u, s),
    );
}
