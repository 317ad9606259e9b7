// IQ2_XXS: magnitudes with signs.
fn W_ints(g: u32, n: u32) -> Ints {
    let q = W_pair(g);
    let p0 = W_point((q.x >> 0u) & 255u);
    let p1 = W_point((q.x >> 8u) & 255u);
    let p2 = W_point((q.x >> 16u) & 255u);
    let p3 = W_point((q.x >> 24u) & 255u);
    let signs = W_signs(q.y);
    let s = W_scale(q.y, g, n);
    return Ints(
        vec4<u32>(pack4xI8(W_four(p0, signs >> 0u)), pack4xI8(W_four(p0 >> 8u, signs >> 4u)), pack4xI8(W_four(p1, signs >> 8u)), pack4xI8(W_four(p1 >> 8u, signs >> 12u))),
        vec4<u32>(pack4xI8(W_four(p2, signs >> 16u)), pack4xI8(W_four(p2 >> 8u, signs >> 20u)), pack4xI8(W_four(p3, signs >> 24u)), pack4xI8(W_four(p3 >> 8u, signs >> 28u))),
        vec4<f32>(s, s, 0.0, 0.0),
    );
}
