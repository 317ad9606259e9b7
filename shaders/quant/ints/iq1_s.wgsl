// IQ1_S: weights times 8.
fn W_ints(g: u32, n: u32) -> Ints {
    let q = W_data[W_PLANES + (g >> 2u)][g & 3u];
    let rest = W_data[W_PLANES + (n >> 2u) + (g >> 3u)][(g >> 1u) & 3u] >> ((g & 1u) * 16u);
    let p0 = W_point(((q >> 0u) & 255u) | (((rest >> 0u) & 7u) << 8u));
    let p1 = W_point(((q >> 8u) & 255u) | (((rest >> 3u) & 7u) << 8u));
    let p2 = W_point(((q >> 16u) & 255u) | (((rest >> 6u) & 7u) << 8u));
    let p3 = W_point(((q >> 24u) & 255u) | (((rest >> 9u) & 7u) << 8u));
    let c = select(1, -1, (rest & 0x8000u) != 0u);
    let s = W_half(W_PLANES + (n >> 2u) + (n >> 3u), g >> 3u) * 0.125 * f32(2u * ((rest >> 12u) & 7u) + 1u);
    return Ints(
        vec4<u32>(pack4xI8(W_four(p0, c)), pack4xI8(W_four(p0 >> 8u, c)), pack4xI8(W_four(p1, c)), pack4xI8(W_four(p1 >> 8u, c))),
        vec4<u32>(pack4xI8(W_four(p2, c)), pack4xI8(W_four(p2 >> 8u, c)), pack4xI8(W_four(p3, c)), pack4xI8(W_four(p3 >> 8u, c))),
        vec4<f32>(s, s, 0.0, 0.0),
    );
}
