// Q3_K: q, and 4 scales below; another scale for each half.
fn W_ints(g: u32, n: u32) -> Ints {
    let pair = W_data[g >> 1u];
    let q = select(pair.xy, pair.zw, (g & 1u) == 1u);
    let h = vec4<u32>(W_data[(n >> 1u) + (g >> 2u)][g & 3u]);
    let shifts = vec4<u32>(0u, 2u, 4u, 6u);
    let low = (h >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(0x01010101u);
    let high = (h >> vec4<u32>(4u, 5u, 6u, 7u)) & vec4<u32>(0x01010101u);
    let a = ((q.xxxx >> shifts) & vec4<u32>(0x03030303u)) | (low << vec4<u32>(2u));
    let b = ((q.yyyy >> shifts) & vec4<u32>(0x03030303u)) | (high << vec4<u32>(2u));
    let s = W_scales(g, n);
    return Ints(a, b, vec4<f32>(s, -4.0 * s));
}
