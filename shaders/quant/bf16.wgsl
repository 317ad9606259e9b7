// BF16: the 32 weights of a group.
//
// Layout: one plane, 4 vec4 a group, two bfloat16 a word; rows are padded with zeros to whole groups.
// Precision: exact.

fn W_quad(a: u32, b: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(a << 16u, a & 0xffff0000u, b << 16u, b & 0xffff0000u));
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
