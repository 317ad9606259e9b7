// IQ4_NL: the table's bytes.
fn W_bytes(q: u32) -> u32 {
    return pack4xI8(W_table(q));
}

fn W_ints(g: u32, n: u32) -> Ints {
    let q = W_data[g];
    let h = q >> vec4<u32>(4u);
    let a = vec4<u32>(W_bytes(q.x), W_bytes(q.y), W_bytes(q.z), W_bytes(q.w));
    let b = vec4<u32>(W_bytes(h.x), W_bytes(h.y), W_bytes(h.z), W_bytes(h.w));
    let d = W_half(n, g);
    return Ints(a, b, vec4<f32>(d, d, 0.0, 0.0));
}
