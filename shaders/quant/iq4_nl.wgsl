// IQ4_NL: x = d * table[q], q in 0..16.
//
// Layout, in vec4: [0, n) quants, one vec4 a group, byte j of it holding weight j below and weight j + 16 above;
// from n: d, f16, eight a vec4.
// Precision: f32, equal to ggml's dequantisation bit for bit.

// The i-th half of the plane that starts at `plane`.
fn W_half(plane: u32, i: u32) -> f32 {
    return unpack2x16float(W_data[plane + (i >> 3u)][(i >> 1u) & 3u] >> ((i & 1u) * 16u)).x;
}

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

fn W_quad(q: u32, d: f32) -> vec4<f32> {
    return vec4<f32>(W_table(q)) * d;
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let q = W_data[g];
    let d = W_half(n, g);
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
