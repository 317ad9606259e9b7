// IQ3_S: magnitudes with signs.
fn W_ints(g: u32, n: u32) -> Ints {
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
    return Ints(
        vec4<u32>(pack4xI8(W_four(p0, signs >> 0u)), pack4xI8(W_four(p1, signs >> 4u)), pack4xI8(W_four(p2, signs >> 8u)), pack4xI8(W_four(p3, signs >> 12u))),
        vec4<u32>(pack4xI8(W_four(p4, signs >> 16u)), pack4xI8(W_four(p5, signs >> 20u)), pack4xI8(W_four(p6, signs >> 24u)), pack4xI8(W_four(p7, signs >> 28u))),
        vec4<f32>(s, s, 0.0, 0.0),
    );
}
