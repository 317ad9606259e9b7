// Q2_K: q, and m below; another scale for each half.
fn W_ints(g: u32, n: u32) -> Ints {
    let pair = W_data[g >> 1u];
    let q = select(pair.xy, pair.zw, (g & 1u) == 1u);
    let shifts = vec4<u32>(0u, 2u, 4u, 6u);
    let a = (q.xxxx >> shifts) & vec4<u32>(0x03030303u);
    let b = (q.yyyy >> shifts) & vec4<u32>(0x03030303u);
    return Ints(a, b, W_scales(g, n) * vec4<f32>(1.0, 1.0, -1.0, -1.0));
}
