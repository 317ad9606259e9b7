// Q6_K: x = (d * s) * (q - 32), q in 0..64, s in -128..128, one s for 16 weights, d for 8 groups.
//
// Layout, in vec4: [0, n) lower four bits, one vec4 a group, byte j of it holding weight j below and weight j + 16 above;
// from n: upper two bits, two words a group, weight 16h + 4a + b in word h at bit 8b + 2a; then (at n + n / 2) s, one
// signed byte for 16 weights; then (at n + n / 2 + n / 8) d, f16, one for 8 groups.
// Precision: f32, equal to ggml's dequantisation bit for bit.

// The i-th half of the plane that starts at `plane`.
fn W_half(plane: u32, i: u32) -> f32 {
    return unpack2x16float(W_data[plane + (i >> 3u)][(i >> 1u) & 3u] >> ((i & 1u) * 16u)).x;
}

// d * s of both halves of group g.
fn W_scales(g: u32, n: u32) -> vec2<f32> {
    let plane = n + (n >> 1u);
    // The two signed bytes, moved to the top of the word and shifted down with their sign.
    let s = W_data[plane + (g >> 3u)][(g >> 1u) & 3u] << ((1u - (g & 1u)) * 16u);
    let signed = vec2<i32>(bitcast<i32>(s << 8u), bitcast<i32>(s)) >> vec2<u32>(24u);
    return W_half(plane + (n >> 3u), g >> 3u) * vec2<f32>(signed);
}

fn W_quad(q: u32, h: u32, s: f32) -> vec4<f32> {
    return (vec4<f32>(unpack4xU8((q & 0x0f0f0f0fu) | ((h & 0x03030303u) << 4u))) - 32.0) * s;
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let q = W_data[g];
    let pair = W_data[n + (g >> 1u)];
    let h = select(pair.xy, pair.zw, (g & 1u) == 1u);
    let s = W_scales(g, n);
    return array<vec4<f32>, 8>(
        W_quad(q.x, h.x, s.x),
        W_quad(q.y, h.x >> 2u, s.x),
        W_quad(q.z, h.x >> 4u, s.x),
        W_quad(q.w, h.x >> 6u, s.x),
        W_quad(q.x >> 4u, h.y, s.y),
        W_quad(q.y >> 4u, h.y >> 2u, s.y),
        W_quad(q.z >> 4u, h.y >> 4u, s.y),
        W_quad(q.w >> 4u, h.y >> 6u, s.y),
    );
}
