// Q4_K: q, and m below.
fn W_ints(g: u32, n: u32) -> Ints {
    let q = W_data[g];
    let a = q & vec4<u32>(0x0f0f0f0fu);
    let b = (q >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
    let s = W_scales(W_data[n + (g >> 3u)], g);
    return Ints(a, b, vec4<f32>(s.xx, -s.yy));
}
