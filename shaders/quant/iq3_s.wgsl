// IQ3_S: x = (d * (2 s + 1)) * v, s in 0..16, one s a group, d for 8 groups; four weights at a time are a point of a grid (levels stand
// for 1, 3 .. 15) with signs.
//
// Layout, in vec4: [0, 64) the grid, a half word a point, three bits a level; then (at 64) two words a group: lower eight bits of eight
// numbers of points; then (at 64 + n / 2) a word a group: 32 signs; then (at 64 + n / 2 + n / 4) a half word a group: ninth bits of eight
// numbers, s; then (at 64 + n / 2 + n / 4 + n / 8) d, f16, one for 8 groups.
// Precision: f32, equal to ggml's dequantisation bit for bit.

const W_PLANES: u32 = 64u;

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

// Four weights: four levels of three bits stand for 1, 3 .. 15, and four sign bits.
fn W_four(levels: u32, signs: u32) -> vec4<i32> {
    let l = (vec4<u32>(levels) >> vec4<u32>(0u, 3u, 6u, 9u)) & vec4<u32>(7u);
    let v = vec4<i32>(l * 2u + 1u);
    return select(v, -v, ((vec4<u32>(signs) >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(1u)) != vec4<u32>(0u));
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let q = W_pair(g);
    let more = W_data[W_PLANES + (n >> 1u) + (n >> 2u) + (g >> 3u)][(g >> 1u) & 3u] >> ((g & 1u) * 16u);
    let p0 = W_point(((q.x >> 0u) & 255u) | (((more >> 0u) & 1u) << 8u));
    let p1 = W_point(((q.x >> 8u) & 255u) | (((more >> 1u) & 1u) << 8u));
    let p2 = W_point(((q.x >> 16u) & 255u) | (((more >> 2u) & 1u) << 8u));
    let p3 = W_point(((q.x >> 24u) & 255u) | (((more >> 3u) & 1u) << 8u));
    let p4 = W_point(((q.y >> 0u) & 255u) | (((more >> 4u) & 1u) << 8u));
    let p5 = W_point(((q.y >> 8u) & 255u) | (((more >> 5u) & 1u) << 8u));
    let p6 = W_point(((q.y >> 16u) & 255u) | (((more >> 6u) & 1u) << 8u));
    let p7 = W_point(((q.y >> 24u) & 255u) | (((more >> 7u) & 1u) << 8u));
    let signs = W_data[W_PLANES + (n >> 1u) + (g >> 2u)][g & 3u];
    let s = W_half(W_PLANES + (n >> 1u) + (n >> 2u) + (n >> 3u), g >> 3u) * f32(2u * ((more >> 8u) & 15u) + 1u);
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
