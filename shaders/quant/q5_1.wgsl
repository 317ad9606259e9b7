// Q5_1: x = d * q + m, q in 0..32.
//
// Layout, in vec4: [0, n) lower four bits, one vec4 a group, byte j of it holding weight j below and weight j + 16 above;
// from n: fifth bits, one word a group, weight 4a + b at bit 8b + a; then (at n + ceil(n / 4)) d (low) and m (high), f16,
// one word a group.
// Precision: f32; equal to ggml's dequantisation but for the contraction of product and sum.

fn W_quad(q: u32, h: u32, s: vec2<f32>) -> vec4<f32> {
    return vec4<f32>(unpack4xU8((q & 0x0f0f0f0fu) | ((h & 0x01010101u) << 4u))) * s.x + s.y;
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let q = W_data[g];
    let h = W_data[n + (g >> 2u)][g & 3u];
    let s = unpack2x16float(W_data[n + ((n + 3u) >> 2u) + (g >> 2u)][g & 3u]);
    return array<vec4<f32>, 8>(
        W_quad(q.x, h, s),
        W_quad(q.y, h >> 1u, s),
        W_quad(q.z, h >> 2u, s),
        W_quad(q.w, h >> 3u, s),
        W_quad(q.x >> 4u, h >> 4u, s),
        W_quad(q.y >> 4u, h >> 5u, s),
        W_quad(q.z >> 4u, h >> 6u, s),
        W_quad(q.w >> 4u, h >> 7u, s),
    );
}
