// Q5_0: q, and 16 d below.
fn W_ints(g: u32, n: u32) -> Ints {
    let q = W_data[g];
    let a = q & vec4<u32>(0x0f0f0f0fu);
    let b = (q >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
    let h = W_data[n + (g >> 2u)][g & 3u];
    let low = (vec4<u32>(h) >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(0x01010101u);
    let high = (vec4<u32>(h) >> vec4<u32>(4u, 5u, 6u, 7u)) & vec4<u32>(0x01010101u);
    let fifth = vec4<u32>(4u);
    let d = W_half(n + ((n + 3u) >> 2u), g);
    return Ints(a | (low << fifth), b | (high << fifth), vec4<f32>(d, d, -16.0 * d, -16.0 * d));
}
