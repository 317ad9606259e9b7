// NVFP4: the table's values; another scale for each half.
fn W_ints(g: u32, n: u32) -> Ints {
    let q = W_data[g];
    let s = W_scales(g, n);
    return Ints(
        vec4<u32>(pack4xI8(W_table(q.x)), pack4xI8(W_table(q.y)), pack4xI8(W_table(q.z)), pack4xI8(W_table(q.w))),
        vec4<u32>(pack4xI8(W_table(q.x >> 4u)), pack4xI8(W_table(q.y >> 4u)), pack4xI8(W_table(q.z >> 4u)), pack4xI8(W_table(q.w >> 4u))),
        vec4<f32>(s, 0.0, 0.0),
    );
}
