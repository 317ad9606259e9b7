// MXFP4: x = 2^(e - 128) * table[q], q in 0..16; the table holds twice the E2M1 values, which are integers.
//
// Layout, in vec4: [0, n) quants, one vec4 a group, byte j of it holding weight j below and weight j + 16 above;
// from n: e, one byte a group.
// Precision: f32, equal to ggml's dequantisation bit for bit (devices may flush the denormal scales of e < 2 to zero).

// Four of the table's values at the places of four 4-bit indices, one in each byte of q: two constant words hold the
// magnitudes 0, 1, 2, 3 and 4, 6, 8, 12, the third bit selects among them, the fourth is the sign.
fn W_table(q: u32) -> vec4<i32> {
    let i = unpack4xU8(q & 0x0f0f0f0fu);
    let w = select(vec4<u32>(0x03020100u), vec4<u32>(0x0c080604u), (i & vec4<u32>(4u)) != vec4<u32>(0u));
    let v = vec4<i32>((w >> ((i & vec4<u32>(3u)) * 8u)) & vec4<u32>(255u));
    return select(v, -v, i > vec4<u32>(7u));
}

// The scale of group g.
fn W_scale(g: u32, n: u32) -> f32 {
    let e = (W_data[n + (g >> 4u)][(g >> 2u) & 3u] >> ((g & 3u) * 8u)) & 255u;
    // For e < 2 it is a denormal: 2^-128 or 2^-127.
    return bitcast<f32>(select((max(e, 1u) - 1u) << 23u, 0x00200000u << (e & 1u), e < 2u));
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
