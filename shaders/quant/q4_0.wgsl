// Q4_0: x = d * (q - 8), q in 0..16.
//
// Layout, in vec4: [0, n) quants, one vec4 a group, byte j of it holding weight j below and weight j + 16 above;
// from n: d, f16, eight a vec4.
// Precision: f32, equal to ggml's dequantisation bit for bit.

// The i-th half of the plane that starts at `plane`.
fn W_half(plane: u32, i: u32) -> f32 {
    return unpack2x16float(W_data[plane + (i >> 3u)][(i >> 1u) & 3u] >> ((i & 1u) * 16u)).x;
}

fn W_quad(q: u32, d: f32) -> vec4<f32> {
    return (vec4<f32>(unpack4xU8(q & 0x0f0f0f0fu)) - 8.0) * d;
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let q = W_data[g];
    let d = W_half(n, g);
    return array<vec4<f32>, 8>(
        W_quad(q.x, d),
        W_quad(q.y, d),
        W_quad(q.z, d),
        W_quad(q.w, d),
        W_quad(q.x >> 4u, d),
        W_quad(q.y >> 4u, d),
        W_quad(q.z >> 4u, d),
        W_quad(q.w >> 4u, d),
    );
}
