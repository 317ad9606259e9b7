// IQ3_XXS: x = (d / 4 * (2 s + 1)) * v, s in 0..16, one s a group, d for 8 groups; four weights at a time are a point of a grid (levels
// stand for 4, 12, 20, 28, 36, 44, 52 and 62) with signs.
//
// Layout, in vec4: [0, 32) the grid, a half word a point, three bits a level; then (at 32) two words a group: eight numbers of points;
// then (at 32 + n / 2) a word a group: four times seven signs, and above them s; then (at 32 + n / 2 + n / 4) d, f16, one for 8 groups.
// Precision: f32, equal to ggml's dequantisation bit for bit.

const W_PLANES: u32 = 32u;

// The i-th half of the plane that starts at `plane`.
fn W_half(plane: u32, i: u32) -> f32 {
    return unpack2x16float(W_data[plane + (i >> 3u)][(i >> 1u) & 3u] >> ((i & 1u) * 16u)).x;
}

// Entry i of the grid.
fn W_point(i: u32) -> u32 {
    return (W_data[i >> 3u][(i >> 1u) & 3u] >> ((i & 1u) * 16u)) & 0xffffu;
}

// The two words of group g in the first plane.
fn W_pair(g: u32) -> vec2<u32> {
    let v = W_data[W_PLANES + (g >> 1u)];
    return select(v.xy, v.zw, (g & 1u) == 1u);
}

// The signs of 32 weights from four times seven; each eighth makes the number of signs even.
fn W_signs(w: u32) -> u32 {
    let s = (w & 0x7fu) | ((w << 1u) & 0x7f00u) | ((w << 2u) & 0x7f0000u) | ((w << 3u) & 0x7f000000u);
    var p = s ^ (s >> 4u);
    p ^= p >> 2u;
    p ^= p >> 1u;
    return s | ((p & 0x01010101u) << 7u);
}

// Four weights: four levels of three bits stand for 4, 12 .. 52 and 62, and four sign bits.
fn W_four(levels: u32, signs: u32) -> vec4<i32> {
    let l = (vec4<u32>(levels) >> vec4<u32>(0u, 3u, 6u, 9u)) & vec4<u32>(7u);
    let v = vec4<i32>(l * 8u + 4u + select(vec4<u32>(0u), vec4<u32>(2u), l == vec4<u32>(7u)));
    return select(v, -v, ((vec4<u32>(signs) >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(1u)) != vec4<u32>(0u));
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let q = W_pair(g);
    let p0 = W_point((q.x >> 0u) & 255u);
    let p1 = W_point((q.x >> 8u) & 255u);
    let p2 = W_point((q.x >> 16u) & 255u);
    let p3 = W_point((q.x >> 24u) & 255u);
    let p4 = W_point((q.y >> 0u) & 255u);
    let p5 = W_point((q.y >> 8u) & 255u);
    let p6 = W_point((q.y >> 16u) & 255u);
    let p7 = W_point((q.y >> 24u) & 255u);
    let w = W_data[W_PLANES + (n >> 1u) + (g >> 2u)][g & 3u];
    let signs = W_signs(w);
    let s = W_half(W_PLANES + (n >> 1u) + (n >> 2u), g >> 3u) * 0.25 * f32(2u * (w >> 28u) + 1u);
    return array<vec4<f32>, 8>(
        vec4<f32>(W_four(p0, signs >> 0u)) * s,
        vec4<f32>(W_four(p1, signs >> 4u)) * s,
        vec4<f32>(W_four(p2, signs >> 8u)) * s,
        vec4<f32>(W_four(p3, signs >> 12u)) * s,
        vec4<f32>(W_four(p4, signs >> 16u)) * s,
        vec4<f32>(W_four(p5, signs >> 20u)) * s,
        vec4<f32>(W_four(p6, signs >> 24u)) * s,
        vec4<f32>(W_four(p7, signs >> 28u)) * s,
    );
}
