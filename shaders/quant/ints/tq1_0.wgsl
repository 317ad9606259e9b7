// TQ1_0: -1, 0 and 1.
fn W_ints(g: u32, n: u32) -> Ints {
    let k = g & 7u;
    let s = W_half(3u * (n >> 3u) + ((n + 31u) >> 5u), g >> 3u);
    let a = W_half_group(g >> 3u, 2u * k, n);
    let b = W_half_group(g >> 3u, 2u * k + 1u, n);
    return Ints(
        vec4<u32>(pack4xI8(W_four(a.x)), pack4xI8(W_four(a.y)), pack4xI8(W_four(a.z)), pack4xI8(W_four(a.w))),
        vec4<u32>(pack4xI8(W_four(b.x)), pack4xI8(W_four(b.y)), pack4xI8(W_four(b.z)), pack4xI8(W_four(b.w))),
        vec4<f32>(s, s, 0.0, 0.0),
    );
}
