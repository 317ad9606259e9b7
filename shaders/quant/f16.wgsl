// F16: the 32 weights of a group.
//
// Layout: one plane, 4 vec4 a group, two halves a word; rows are padded with zeros to whole groups.
// Precision: exact (devices may flush denormal halves to zero).

fn W_quad(a: u32, b: u32) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(a), unpack2x16float(b));
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let a = W_data[g * 4u];
    let b = W_data[g * 4u + 1u];
    let c = W_data[g * 4u + 2u];
    let d = W_data[g * 4u + 3u];
    return array<vec4<f32>, 8>(
        W_quad(a.x, a.y),
        W_quad(a.z, a.w),
        W_quad(b.x, b.y),
        W_quad(b.z, b.w),
        W_quad(c.x, c.y),
        W_quad(c.z, c.w),
        W_quad(d.x, d.y),
        W_quad(d.z, d.w),
    );
}
