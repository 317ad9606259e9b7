// IQ1_S: x = (d / 8 * (2 s + 1)) * (8 v + c), s in 0..8, c 1 or -1, one s and c a group, d for 8 groups; eight weights at a time are a
// point of a grid (levels 0, 1 and 2 stand for -1, 0 and 1).
//
// Layout, in vec4: [0, 256) the grid, a half word a point, two bits a level; then (at 256) a word a group: lower eight bits of four
// numbers of points; then (at 256 + n / 4) a half word a group: upper three bits of four numbers, three of s, and whether c is -1; then
// (at 256 + n / 4 + n / 8) d, f16, one for 8 groups.
// Precision: f32, equal to ggml's dequantisation bit for bit.

const W_PLANES: u32 = 256u;

// The i-th half of the plane that starts at `plane`.
fn W_half(plane: u32, i: u32) -> f32 {
    return unpack2x16float(W_data[plane + (i >> 3u)][(i >> 1u) & 3u] >> ((i & 1u) * 16u)).x;
}

// Entry i of the grid.
fn W_point(i: u32) -> u32 {
    return (W_data[i >> 3u][(i >> 1u) & 3u] >> ((i & 1u) * 16u)) & 0xffffu;
}

// Four weights times 8: four levels of two bits, and c.
fn W_four(levels: u32, c: i32) -> vec4<i32> {
    let l = (vec4<u32>(levels) >> vec4<u32>(0u, 2u, 4u, 6u)) & vec4<u32>(3u);
    return vec4<i32>(l * 8u) - 8 + c;
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let q = W_data[W_PLANES + (g >> 2u)][g & 3u];
    let rest = W_data[W_PLANES + (n >> 2u) + (g >> 3u)][(g >> 1u) & 3u] >> ((g & 1u) * 16u);
    let p0 = W_point(((q >> 0u) & 255u) | (((rest >> 0u) & 7u) << 8u));
    let p1 = W_point(((q >> 8u) & 255u) | (((rest >> 3u) & 7u) << 8u));
    let p2 = W_point(((q >> 16u) & 255u) | (((rest >> 6u) & 7u) << 8u));
    let p3 = W_point(((q >> 24u) & 255u) | (((rest >> 9u) & 7u) << 8u));
    let c = select(1, -1, (rest & 0x8000u) != 0u);
    let s = W_half(W_PLANES + (n >> 2u) + (n >> 3u), g >> 3u) * 0.125 * f32(2u * ((rest >> 12u) & 7u) + 1u);
    return array<vec4<f32>, 8>(
        vec4<f32>(W_four(p0, c)) * s,
        vec4<f32>(W_four(p0 >> 8u, c)) * s,
        vec4<f32>(W_four(p1, c)) * s,
        vec4<f32>(W_four(p1 >> 8u, c)) * s,
        vec4<f32>(W_four(p2, c)) * s,
        vec4<f32>(W_four(p2 >> 8u, c)) * s,
        vec4<f32>(W_four(p3, c)) * s,
        vec4<f32>(W_four(p3 >> 8u, c)) * s,
    );
}
