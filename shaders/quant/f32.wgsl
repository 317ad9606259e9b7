// F32: the 32 weights of a group.
//
// Layout: one plane, 8 vec4 a group; rows are padded with zeros to whole groups.
// Precision: exact.

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let a = g * 8u;
    return array<vec4<f32>, 8>(
        bitcast<vec4<f32>>(W_data[a]),
        bitcast<vec4<f32>>(W_data[a + 1u]),
        bitcast<vec4<f32>>(W_data[a + 2u]),
        bitcast<vec4<f32>>(W_data[a + 3u]),
        bitcast<vec4<f32>>(W_data[a + 4u]),
        bitcast<vec4<f32>>(W_data[a + 5u]),
        bitcast<vec4<f32>>(W_data[a + 6u]),
        bitcast<vec4<f32>>(W_data[a + 7u]),
    );
}
