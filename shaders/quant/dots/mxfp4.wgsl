// The dot product of group g with 32 numbers: the table's values as they are, then the scale.
fn W_dot(g: u32, n: u32, v: array<vec4<f32>, 8>) -> f32 {
    let q = W_data[g];
    var sum = vec4<f32>(W_table(q.x)) * v[0];
    sum = fma(vec4<f32>(W_table(q.y)), v[1], sum);
    sum = fma(vec4<f32>(W_table(q.z)), v[2], sum);
    sum = fma(vec4<f32>(W_table(q.w)), v[3], sum);
    sum = fma(vec4<f32>(W_table(q.x >> 4u)), v[4], sum);
    sum = fma(vec4<f32>(W_table(q.y >> 4u)), v[5], sum);
    sum = fma(vec4<f32>(W_table(q.z >> 4u)), v[6], sum);
    sum = fma(vec4<f32>(W_table(q.w >> 4u)), v[7], sum);
    return W_scale(g, n) * sum_quad(sum);
}
