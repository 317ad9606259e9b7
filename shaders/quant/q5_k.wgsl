// Q5_K: x = (d * s) * q - dmin * m, q in 0..32, s and m in 0..64, one s and m a group, d and dmin for 8 groups.
//
// Layout, in vec4: [0, n) lower four bits, one vec4 a group, byte j of it holding weight j below and weight j + 16 above;
// from n: fifth bits, one word a group, weight 4a + b at bit 8b + a; then (at n + n / 4) one vec4 for 8 groups: d (low)
// and dmin (high), f16; then three words with four bits a group: the lower bits of s, the lower bits of m, and the upper
// two bits of s (low) and m (high).
// Precision: f32; equal to ggml's dequantisation but for the contraction of product and difference.

// (d * s, dmin * m) of group g, from the 8 groups' vec4.
fn W_scales(w: vec4<u32>, g: u32) -> vec2<f32> {
    let k = (g & 7u) * 4u;
    let high = w.w >> k;
    let s = ((w.y >> k) & 15u) | ((high & 3u) << 4u);
    let m = ((w.z >> k) & 15u) | ((high & 12u) << 2u);
    return unpack2x16float(w.x) * vec2<f32>(vec2<u32>(s, m));
}

fn W_quad(q: u32, h: u32, s: vec2<f32>) -> vec4<f32> {
    return vec4<f32>(unpack4xU8((q & 0x0f0f0f0fu) | ((h & 0x01010101u) << 4u))) * s.x - s.y;
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let q = W_data[g];
    let h = W_data[n + (g >> 2u)][g & 3u];
    let s = W_scales(W_data[n + (n >> 2u) + (g >> 3u)], g);
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
