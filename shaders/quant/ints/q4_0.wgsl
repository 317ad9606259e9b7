// Q4_0: q, and 8 d below.
fn W_ints(g: u32, n: u32) -> Ints {
    let q = W_data[g];
    let a = q & vec4<u32>(0x0f0f0f0fu);
    let b = (q >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
    let d = W_half(n, g);
    return Ints(a, b, vec4<f32>(d, d, -8.0 * d, -8.0 * d));
}
