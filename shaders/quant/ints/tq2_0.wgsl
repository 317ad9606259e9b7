// TQ2_0: -1 to 2.
fn W_ints(g: u32, n: u32) -> Ints {
    let v = W_data[g >> 1u];
    let q = select(v.xy, v.zw, (g & 1u) == 1u);
    let s = W_half(n >> 1u, g >> 3u);
    return Ints(
        vec4<u32>(pack4xI8(W_four(q.x >> 0u)), pack4xI8(W_four(q.x >> 2u)), pack4xI8(W_four(q.x >> 4u)), pack4xI8(W_four(q.x >> 6u))),
        vec4<u32>(pack4xI8(W_four(q.y >> 0u)), pack4xI8(W_four(q.y >> 2u)), pack4xI8(W_four(q.y >> 4u)), pack4xI8(W_four(q.y >> 6u))),
        vec4<f32>(s, s, 0.0, 0.0),
    );
}
