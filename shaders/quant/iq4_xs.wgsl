// IQ4_XS: x = (d * s) * table[q], q in 0..16, s in -32..32, one s a group, d for 8 groups; the table is IQ4_NL's.
//
// Layout, in vec4: [0, n) quants, one vec4 a group, byte j of it holding weight j below and weight j + 16 above; from n:
// two words for 8 groups: d (low half, f16) and the upper two bits of s + 32 (high half, two bits a group); then its
// lower four bits, four a group.
// Precision: f32, equal to ggml's dequantisation bit for bit.

// Four of the table's signed bytes at the places of four 4-bit indices, one in each byte of q. The table is four
// constant words, and the index's upper two bits select among them: no indexed array, which GPUs keep in slow memory.
fn W_table(q: u32) -> vec4<i32> {
    let i = unpack4xU8(q & 0x0f0f0f0fu);
    let low = select(vec4<u32>(0xbfad9881u), vec4<u32>(0xf6eaddcfu), (i & vec4<u32>(4u)) != vec4<u32>(0u));
    let high = select(vec4<u32>(0x26190d01u), vec4<u32>(0x71594535u), (i & vec4<u32>(4u)) != vec4<u32>(0u));
    let w = select(low, high, i > vec4<u32>(7u));
    // The byte moves to the top of its word and comes down with its sign.
    return bitcast<vec4<i32>>(w << ((vec4<u32>(3u) - (i & vec4<u32>(3u))) * 8u)) >> vec4<u32>(24u);
}

// d * s of group g.
fn W_scale(g: u32, n: u32) -> f32 {
    let pair = W_data[n + (g >> 4u)];
    let w = select(pair.xy, pair.zw, (g & 8u) != 0u);
    let k = g & 7u;
    let s = ((w.y >> (k * 4u)) & 15u) | (((w.x >> (16u + k * 2u)) & 3u) << 4u);
    return unpack2x16float(w.x).x * (f32(s) - 32.0);
}

fn W_quad(q: u32, d: f32) -> vec4<f32> {
    return vec4<f32>(W_table(q)) * d;
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let q = W_data[g];
    let d = W_scale(g, n);
    return array<vec4<f32>, 8>(
        W_quad(q.x, d),
        W_quad(q.y, d),
        W_quad(q.z, d),
        W_quad(q.w, d),
        W_quad(q.x >> 4u, d),
        W_quad(q.y >> 4u, d),
        W_quad(q.z >> 4u, d),
        W_quad(q.w >> 4u, d),
    );
}
