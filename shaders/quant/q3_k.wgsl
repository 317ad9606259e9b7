// Q3_K: x = (d * s) * (q - 4), q in 0..8, s in -32..32, one s for 16 weights, d for 8 groups.
//
// Layout, in vec4: [0, n / 2) lower two bits, two words a group, weight 16h + 4a + b in word h at bit 8b + 2a; then (at
// n / 2) third bits, one word a group, weight 4a + b at bit 8b + a; then (at n / 2 + n / 4) s, one signed byte for 16
// weights; then (at n / 2 + n / 4 + n / 8) d, f16, one for 8 groups.
// Precision: f32, equal to ggml's dequantisation bit for bit.

// The i-th half of the plane that starts at `plane`.
fn W_half(plane: u32, i: u32) -> f32 {
    return unpack2x16float(W_data[plane + (i >> 3u)][(i >> 1u) & 3u] >> ((i & 1u) * 16u)).x;
}

// d * s of both halves of group g.
fn W_scales(g: u32, n: u32) -> vec2<f32> {
    let plane = (n >> 1u) + (n >> 2u);
    // The two signed bytes, moved to the top of the word and shifted down with their sign.
    let s = W_data[plane + (g >> 3u)][(g >> 1u) & 3u] << ((1u - (g & 1u)) * 16u);
    let signed = vec2<i32>(bitcast<i32>(s << 8u), bitcast<i32>(s)) >> vec2<u32>(24u);
    return W_half(plane + (n >> 3u), g >> 3u) * vec2<f32>(signed);
}

fn W_quad(q: u32, h: u32, s: f32) -> vec4<f32> {
    return (vec4<f32>(unpack4xU8((q & 0x03030303u) | ((h & 0x01010101u) << 2u))) - 4.0) * s;
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let pair = W_data[g >> 1u];
    let q = select(pair.xy, pair.zw, (g & 1u) == 1u);
    let p1 = n >> 1u;
    let h = W_data[p1 + (g >> 2u)][g & 3u];
    let s = W_scales(g, n);
    return array<vec4<f32>, 8>(
        W_quad(q.x, h, s.x),
        W_quad(q.x >> 2u, h >> 1u, s.x),
        W_quad(q.x >> 4u, h >> 2u, s.x),
        W_quad(q.x >> 6u, h >> 3u, s.x),
        W_quad(q.y, h >> 4u, s.y),
        W_quad(q.y >> 2u, h >> 5u, s.y),
        W_quad(q.y >> 4u, h >> 6u, s.y),
        W_quad(q.y >> 6u, h >> 7u, s.y),
    );
}
