// Q4_1: q, and m.
fn W_ints(g: u32, n: u32) -> Ints {
    let q = W_data[g];
    let a = q & vec4<u32>(0x0f0f0f0fu);
    let b = (q >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
    let s = unpack2x16float(W_data[n + (g >> 2u)][g & 3u]);
    return Ints(a, b, s.xxyy);
}
