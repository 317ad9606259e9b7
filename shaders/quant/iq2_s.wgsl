// IQ2_S: x = (d / 8 * (2 s + 1)) * v, s in 0..16, one s for 16 weights, d for 8 groups; eight weights at a time are a point of a grid
// (levels 0, 1 and 2 stand for 8, 25 and 43) with signs.
//
// Layout, in vec4: [0, 128) the grid, a half word a point, two bits a level; then (at 128) two words a group: lower eight bits of four
// numbers of points; 32 signs; then (at 128 + n / 2) a half word a group: upper two bits of four numbers, four bits of s twice; then (at
// 128 + n / 2 + n / 8) d, f16, one for 8 groups.
// Precision: f32, equal to ggml's dequantisation bit for bit.

const W_PLANES: u32 = 128u;

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

// Four weights: four levels of two bits stand for 8, 25 and 43, and four sign bits.
fn W_four(levels: u32, signs: u32) -> vec4<i32> {
    let l = (vec4<u32>(levels) >> vec4<u32>(0u, 2u, 4u, 6u)) & vec4<u32>(3u);
    let v = vec4<i32>(l * 17u + 8u + (l >> vec4<u32>(1u)));
    return select(v, -v, ((vec4<u32>(signs) >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(1u)) != vec4<u32>(0u));
}

// The half word of group g in the second plane.
fn W_more(g: u32, n: u32) -> u32 {
    return W_data[W_PLANES + (n >> 1u) + (g >> 3u)][(g >> 1u) & 3u] >> ((g & 1u) * 16u);
}

// d / 8 * (2 s + 1) of both halves of group g.
fn W_scales(s: u32, g: u32, n: u32) -> vec2<f32> {
    let d = W_half(W_PLANES + (n >> 1u) + (n >> 3u), g >> 3u) * 0.125;
    return d * vec2<f32>(2u * ((vec2<u32>(s) >> vec2<u32>(0u, 4u)) & vec2<u32>(15u)) + 1u);
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let q = W_pair(g);
    let more = W_more(g, n);
    let p0 = W_point(((q.x >> 0u) & 255u) | (((more >> 0u) & 3u) << 8u));
    let p1 = W_point(((q.x >> 8u) & 255u) | (((more >> 2u) & 3u) << 8u));
    let p2 = W_point(((q.x >> 16u) & 255u) | (((more >> 4u) & 3u) << 8u));
    let p3 = W_point(((q.x >> 24u) & 255u) | (((more >> 6u) & 3u) << 8u));
    let signs = q.y;
    let s = W_scales(more >> 8u, g, n);
    return array<vec4<f32>, 8>(
        vec4<f32>(W_four(p0, signs >> 0u)) * s.x,
        vec4<f32>(W_four(p0 >> 8u, signs >> 4u)) * s.x,
        vec4<f32>(W_four(p1, signs >> 8u)) * s.x,
        vec4<f32>(W_four(p1 >> 8u, signs >> 12u)) * s.x,
        vec4<f32>(W_four(p2, signs >> 16u)) * s.y,
        vec4<f32>(W_four(p2 >> 8u, signs >> 20u)) * s.y,
        vec4<f32>(W_four(p3, signs >> 24u)) * s.y,
        vec4<f32>(W_four(p3 >> 8u, signs >> 28u)) * s.y,
    );
}
