// IQ1_M: x = (d / 8 * (2 s + 1)) * (8 v + c), s in 0..8, c 1 or -1, one c for 8 weights, s for 16, d for 8 groups; eight weights at a
// time are a point of IQ1_S's grid (levels 0, 1 and 2 stand for -1, 0 and 1).
//
// Layout, in vec4: [0, 256) the grid, a half word a point, two bits a level; then (at 256) a word a group: lower eight bits of four
// numbers of points; then (at 256 + n / 4) a half word a group, four bits a number: its upper three, and whether c is -1; then (at 256 +
// n / 4 + n / 8) four half words for 8 groups: four times three bits of s, and above them four of d's 16, the lowest first.
// Precision: f32, equal to ggml's dequantisation bit for bit.

const W_PLANES: u32 = 256u;

// Entry i of the grid.
fn W_point(i: u32) -> u32 {
    return (W_data[i >> 3u][(i >> 1u) & 3u] >> ((i & 1u) * 16u)) & 0xffffu;
}

// Four weights times 8: four levels of two bits, and c.
fn W_four(levels: u32, c: i32) -> vec4<i32> {
    let l = (vec4<u32>(levels) >> vec4<u32>(0u, 2u, 4u, 6u)) & vec4<u32>(3u);
    return vec4<i32>(l * 8u) - 8 + c;
}

// d / 8 * (2 s + 1) of both halves of group g.
fn W_scales(g: u32, n: u32) -> vec2<f32> {
    let four = W_data[W_PLANES + (n >> 2u) + (n >> 3u) + (g >> 4u)];
    let w = select(four.xy, four.zw, (g & 8u) != 0u);
    let bits = ((w.x >> 12u) & 0xfu) | ((w.x >> 24u) & 0xf0u) | ((w.y >> 4u) & 0xf00u) | ((w.y >> 16u) & 0xf000u);
    let s = w[(g >> 2u) & 1u] >> (((g >> 1u) & 1u) * 16u + (g & 1u) * 6u);
    return unpack2x16float(bits).x * 0.125 * vec2<f32>(2u * ((vec2<u32>(s) >> vec2<u32>(0u, 3u)) & vec2<u32>(7u)) + 1u);
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let q = W_data[W_PLANES + (g >> 2u)][g & 3u];
    let rest = W_data[W_PLANES + (n >> 2u) + (g >> 3u)][(g >> 1u) & 3u] >> ((g & 1u) * 16u);
    let p0 = W_point(((q >> 0u) & 255u) | (((rest >> 0u) & 7u) << 8u));
    let p1 = W_point(((q >> 8u) & 255u) | (((rest >> 4u) & 7u) << 8u));
    let p2 = W_point(((q >> 16u) & 255u) | (((rest >> 8u) & 7u) << 8u));
    let p3 = W_point(((q >> 24u) & 255u) | (((rest >> 12u) & 7u) << 8u));
    let c = select(vec4<i32>(1), vec4<i32>(-1), (vec4<u32>(rest) & vec4<u32>(0x8u, 0x80u, 0x800u, 0x8000u)) != vec4<u32>(0u));
    let s = W_scales(g, n);
    return array<vec4<f32>, 8>(
        vec4<f32>(W_four(p0, c.x)) * s.x,
        vec4<f32>(W_four(p0 >> 8u, c.x)) * s.x,
        vec4<f32>(W_four(p1, c.y)) * s.x,
        vec4<f32>(W_four(p1 >> 8u, c.y)) * s.x,
        vec4<f32>(W_four(p2, c.z)) * s.y,
        vec4<f32>(W_four(p2 >> 8u, c.z)) * s.y,
        vec4<f32>(W_four(p3, c.w)) * s.y,
        vec4<f32>(W_four(p3 >> 8u, c.w)) * s.y,
    );
}
