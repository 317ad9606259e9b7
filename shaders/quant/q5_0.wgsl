// Q5_0: x = d * (q - 16), q in 0..32.
//
// Layout, in vec4: [0, n) lower four bits, one vec4 a group, byte j of it holding weight j below and weight j + 16 above;
// from n: fifth bits, one word a group, weight 4a + b at bit 8b + a; then (at n + ceil(n / 4)) d, f16, eight a vec4.
// Precision: f32, equal to ggml's dequantisation bit for bit.

// The i-th half of the plane that starts at `plane`.
fn W_half(plane: u32, i: u32) -> f32 {
    return unpack2x16float(W_data[plane + (i >> 3u)][(i >> 1u) & 3u] >> ((i & 1u) * 16u)).x;
}

fn W_quad(q: u32, h: u32, d: f32) -> vec4<f32> {
    return (vec4<f32>(unpack4xU8((q & 0x0f0f0f0fu) | ((h & 0x01010101u) << 4u))) - 16.0) * d;
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let q = W_data[g];
    let h = W_data[n + (g >> 2u)][g & 3u];
    let d = W_half(n + ((n + 3u) >> 2u), g);
    return array<vec4<f32>, 8>(
        W_quad(q.x, h, d),
        W_quad(q.y, h >> 1u, d),
        W_quad(q.z, h >> 2u, d),
        W_quad(q.w, h >> 3u, d),
        W_quad(q.x >> 4u, h >> 4u, d),
        W_quad(q.y >> 4u, h >> 5u, d),
        W_quad(q.z >> 4u, h >> 6u, d),
        W_quad(q.w >> 4u, h >> 7u, d),
    );
}
