// NVFP4: x = s * table[q], q in 0..16, one s for 16 weights; the table holds twice the E2M1 values, which are integers.
//
// Layout, in vec4: [0, n) quants, one vec4 a group, byte j of it holding weight j below and weight j + 16 above; from n: s, one byte for 16
// weights, an unsigned float with four bits of exponent and three of mantissa, of which half counts.
// Precision: f32, equal to ggml's dequantisation bit for bit.

// Four of the table's values at the places of four 4-bit indices, one in each byte of q: two constant words hold the
// magnitudes 0, 1, 2, 3 and 4, 6, 8, 12, the third bit selects among them, the fourth is the sign.
fn W_table(q: u32) -> vec4<i32> {
    let i = unpack4xU8(q & 0x0f0f0f0fu);
    let w = select(vec4<u32>(0x03020100u), vec4<u32>(0x0c080604u), (i & vec4<u32>(4u)) != vec4<u32>(0u));
    let v = vec4<i32>((w >> ((i & vec4<u32>(3u)) * 8u)) & vec4<u32>(255u));
    return select(v, -v, i > vec4<u32>(7u));
}

// The scales of both halves of group g. 0x7f is no number, and counts as 0.
fn W_scales(g: u32, n: u32) -> vec2<f32> {
    let w = W_data[n + (g >> 3u)][(g >> 1u) & 3u] >> ((g & 1u) * 16u);
    let b = (vec2<u32>(w) >> vec2<u32>(0u, 8u)) & vec2<u32>(255u);
    let e = (b >> vec2<u32>(3u)) & vec2<u32>(15u);
    let m = (b & vec2<u32>(7u)) + select(vec2<u32>(0u), vec2<u32>(8u), e > vec2<u32>(0u));
    let power = bitcast<vec2<f32>>((max(e, vec2<u32>(1u)) + 116u) << vec2<u32>(23u));
    return select(vec2<f32>(m) * power, vec2<f32>(0.0), b == vec2<u32>(127u));
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let q = W_data[g];
    let s = W_scales(g, n);
    return array<vec4<f32>, 8>(
        vec4<f32>(W_table(q.x)) * s.x,
        vec4<f32>(W_table(q.y)) * s.x,
        vec4<f32>(W_table(q.z)) * s.x,
        vec4<f32>(W_table(q.w)) * s.x,
        vec4<f32>(W_table(q.x >> 4u)) * s.y,
        vec4<f32>(W_table(q.y >> 4u)) * s.y,
        vec4<f32>(W_table(q.z >> 4u)) * s.y,
        vec4<f32>(W_table(q.w >> 4u)) * s.y,
    );
}
