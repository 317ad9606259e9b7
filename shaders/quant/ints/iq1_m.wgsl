// IQ1_M: weights times 8; another scale for each half.
fn W_ints(g: u32, n: u32) -> Ints {
    let q = W_data[W_PLANES + (g >> 2u)][g & 3u];
    let rest = W_data[W_PLANES + (n >> 2u) + (g >> 3u)][(g >> 1u) & 3u] >> ((g & 1u) * 16u);
    let p0 = W_point(((q >> 0u) & 255u) | (((rest >> 0u) & 7u) << 8u));
    let p1 = W_point(((q >> 8u) & 255u) | (((rest >> 4u) & 7u) << 8u));
    let p2 = W_point(((q >> 16u) & 255u) | (((rest >> 8u) & 7u) << 8u));
    let p3 = W_point(((q >> 24u) & 255u) | (((rest >> 12u) & 7u) << 8u));
    let c = select(vec4<i32>(1), vec4<i32>(-1), (vec4<u32>(rest) & vec4<u32>(0x8u, 0x80u, 0x800u, 0x8000u)) != vec4<u32>(0u));
    let s = W_scales(g, n);
    return Ints(
        vec4<u32>(pack4xI8(W_four(p0, c.x)), pack4xI8(W_four(p0 >> 8u, c.x)), pack4xI8(W_four(p1, c.y)), pack4xI8(W_four(p1 >> 8u, c.y))),
        vec4<u32>(pack4xI8(W_four(p2, c.z)), pack4xI8(W_four(p2 >> 8u, c.z)), pack4xI8(W_four(p3, c.w)), pack4xI8(W_four(p3 >> 8u, c.w))),
        vec4<f32>(s, 0.0, 0.0),
    );
}
