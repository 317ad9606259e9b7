// Q2_K: x = (d * s) * q - dmin * m, q in 0..4, s and m in 0..16, one s and m for 16 weights, d and dmin for 8 groups.
//
// Layout, in vec4: [0, n / 2) quants, two words a group, weight 16h + 4a + b in word h at bit 8b + 2a; then (at n / 2)
// s (low nibble) and m (high nibble), one byte for 16 weights; then (at n / 2 + n / 8) d (low) and dmin (high), f16, one
// word for 8 groups.
// Precision: f32; equal to ggml's dequantisation but for the contraction of product and difference.

// d * s of both halves of group g, then dmin * m of both.
fn W_scales(g: u32, n: u32) -> vec4<f32> {
    let plane = n >> 1u;
    let sm = W_data[plane + (g >> 3u)][(g >> 1u) & 3u] >> ((g & 1u) * 16u);
    let b = g >> 3u;
    let d = unpack2x16float(W_data[plane + (n >> 3u) + (b >> 2u)][b & 3u]);
    return d.xxyy * vec4<f32>((vec4<u32>(sm) >> vec4<u32>(0u, 8u, 4u, 12u)) & vec4<u32>(15u));
}

fn W_quad(q: u32, s: f32, m: f32) -> vec4<f32> {
    return vec4<f32>(unpack4xU8(q & 0x03030303u)) * s - m;
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let pair = W_data[g >> 1u];
    let q = select(pair.xy, pair.zw, (g & 1u) == 1u);
    let s = W_scales(g, n);
    return array<vec4<f32>, 8>(
        W_quad(q.x, s.x, s.z),
        W_quad(q.x >> 2u, s.x, s.z),
        W_quad(q.x >> 4u, s.x, s.z),
        W_quad(q.x >> 6u, s.x, s.z),
        W_quad(q.y, s.y, s.w),
        W_quad(q.y >> 2u, s.y, s.w),
        W_quad(q.y >> 4u, s.y, s.w),
        W_quad(q.y >> 6u, s.y, s.w),
    );
}
