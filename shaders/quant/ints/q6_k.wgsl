// Q6_K: q, and 32 scales below; another scale for each half.
fn W_ints(g: u32, n: u32) -> Ints {
    let pair = W_data[n + (g >> 1u)];
    let h = select(pair.xy, pair.zw, (g & 1u) == 1u);
    let q = W_data[g];
    let a = q & vec4<u32>(0x0f0f0f0fu);
    let b = (q >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
    let shifts = vec4<u32>(0u, 2u, 4u, 6u);
    let low = ((h.xxxx >> shifts) & vec4<u32>(0x03030303u)) << vec4<u32>(4u);
    let high = ((h.yyyy >> shifts) & vec4<u32>(0x03030303u)) << vec4<u32>(4u);
    let s = W_scales(g, n);
    return Ints(a | low, b | high, vec4<f32>(s, -32.0 * s));
}
