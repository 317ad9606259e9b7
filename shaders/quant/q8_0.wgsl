// Q8_0: x = d * q, q in -128..128.
//
// Layout, in vec4: [0, 2n) quants, two vec4 a group, signed bytes in order; from 2n: d, f16, eight a vec4.
// Precision: f32, equal to ggml's dequantisation bit for bit.

// The i-th half of the plane that starts at `plane`.
fn W_half(plane: u32, i: u32) -> f32 {
    return unpack2x16float(W_data[plane + (i >> 3u)][(i >> 1u) & 3u] >> ((i & 1u) * 16u)).x;
}

fn W_quad(q: u32, d: f32) -> vec4<f32> {
    return vec4<f32>(unpack4xI8(q)) * d;
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let a = W_data[g * 2u];
    let b = W_data[g * 2u + 1u];
    let d = W_half(n * 2u, g);
    return array<vec4<f32>, 8>(
        W_quad(a.x, d),
        W_quad(a.y, d),
        W_quad(a.z, d),
        W_quad(a.w, d),
        W_quad(b.x, d),
        W_quad(b.y, d),
        W_quad(b.z, d),
        W_quad(b.w, d),
    );
}
