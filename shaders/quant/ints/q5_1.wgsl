// Q5_1: q, and m.
fn W_ints(g: u32, n: u32) -> Ints {
    let q = W_data[g];
    let a = q & vec4<u32>(0x0f0f0f0fu);
    let b = (q >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
    let h = W_data[n + (g >> 2u)][g & 3u];
    let low = (vec4<u32>(h) >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(0x01010101u);
    let high = (vec4<u32>(h) >> vec4<u32>(4u, 5u, 6u, 7u)) & vec4<u32>(0x01010101u);
    let fifth = vec4<u32>(4u);
    let s = unpack2x16float(W_data[n + ((n + 3u) >> 2u) + (g >> 2u)][g & 3u]);
    return Ints(a | (low << fifth), b | (high << fifth), s.xxyy);
}
