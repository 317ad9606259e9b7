// TQ2_0: x = d * (q - 1), q in 0..4, d for 8 groups.
//
// Layout, in vec4: [0, n / 2) quants, two words a group, weight 16h + 4a + b in word h at bit 8b + 2a; then (at n / 2) d, f16, one for 8
// groups.
// Precision: f32, equal to ggml's dequantisation bit for bit.

// The i-th half of the plane that starts at `plane`.
fn W_half(plane: u32, i: u32) -> f32 {
    return unpack2x16float(W_data[plane + (i >> 3u)][(i >> 1u) & 3u] >> ((i & 1u) * 16u)).x;
}

fn W_four(q: u32) -> vec4<i32> {
    return vec4<i32>(unpack4xU8(q & 0x03030303u)) - 1;
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let v = W_data[g >> 1u];
    let q = select(v.xy, v.zw, (g & 1u) == 1u);
    let s = W_half(n >> 1u, g >> 3u);
    return array<vec4<f32>, 8>(
        vec4<f32>(W_four(q.x >> 0u)) * s,
        vec4<f32>(W_four(q.x >> 2u)) * s,
        vec4<f32>(W_four(q.x >> 4u)) * s,
        vec4<f32>(W_four(q.x >> 6u)) * s,
        vec4<f32>(W_four(q.y >> 0u)) * s,
        vec4<f32>(W_four(q.y >> 2u)) * s,
        vec4<f32>(W_four(q.y >> 4u)) * s,
        vec4<f32>(W_four(q.y >> 6u)) * s,
    );
}
