// Q8_0: the bytes themselves.
fn W_ints(g: u32, n: u32) -> Ints {
    let d = W_half(n * 2u, g);
    return Ints(W_data[g * 2u], W_data[g * 2u + 1u], vec4<f32>(d, d, 0.0, 0.0));
}
