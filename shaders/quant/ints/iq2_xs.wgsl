// IQ2_XS: magnitudes with signs; another scale for each half.
fn W_ints(g: u32, n: u32) -> Ints {
    let q = W_pair(g);
    let p0 = W_point((q.x >> 0u) & 511u);
    let p1 = W_point((q.x >> 16u) & 511u);
    let p2 = W_point((q.y >> 0u) & 511u);
    let p3 = W_point((q.y >> 16u) & 511u);
    let sevens = ((q.x >> 9u) & 0x7fu) | ((q.x >> 18u) & 0x3f80u) | ((q.y << 5u) & 0x1fc000u) | ((q.y >> 4u) & 0xfe00000u);
    let signs = W_signs(sevens);
    let s = W_scales(g, n);
    return Ints(
        vec4<u32>(pack4xI8(W_four(p0, signs >> 0u)), pack4xI8(W_four(p0 >> 8u, signs >> 4u)), pack4xI8(W_four(p1, signs >> 8u)), pack4xI8(W_four(p1 >> 8u, signs >> 12u))),
        vec4<u32>(pack4xI8(W_four(p2, signs >> 16u)), pack4xI8(W_four(p2 >> 8u, signs >> 20u)), pack4xI8(W_four(p3, signs >> 24u)), pack4xI8(W_four(p3 >> 8u, signs >> 28u))),
        vec4<f32>(s, 0.0, 0.0),
    );
}
