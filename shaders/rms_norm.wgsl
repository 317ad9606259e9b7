
// rms_norm: y = x / sqrt(mean(x^2) + eps) * w, over each group of n columns (Zhang and Sennrich 2019). With LAYER = 1 the
// mean is taken off x first (Ba et al. 2016); with BIASED = 1 a bias is added.
//
// One workgroup a group. Grid: x = groups of a row, y = rows. Sums in f32.

@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;        // [R, g*n]
@group(0) @binding(3) var<storage, read> w: array<vec4<f32>>;        // [n]
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;  // [R, g*n]
@group(0) @binding(5) var<storage, read> b: array<vec4<f32>>;        // [n]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let rows = select(frame.tokens, frame.outputs, p.outputs != 0u);
    if (wg.y >= rows) {
        return;
    }
    let n4 = p.cols / 4u;
    let start = (p.x_offset + wg.y * p.x_stride) / 4u + wg.x * n4;
    let to = (p.y_offset + wg.y * p.y_stride) / 4u + wg.x * n4;
    var mean = vec4<f32>(0.0);
    if (LAYER == 1u) { // static
        var sum = vec4<f32>(0.0);
        for (var i = lid; i < n4; i += WG) {
            sum += x[start + i];
        }
        mean = vec4<f32>(workgroup_sum(lid, (sum.x + sum.y) + (sum.z + sum.w)) / f32(p.cols));
    }
    var squares = 0.0;
    for (var i = lid; i < n4; i += WG) {
        let v = x[start + i] - mean;
        squares += dot(v, v);
    }
    let factor = inverseSqrt(workgroup_sum(lid, squares) / f32(p.cols) + p.eps);
    for (var i = lid; i < n4; i += WG) {
        var v = (x[start + i] - mean) * factor * w[i];
        if (BIASED == 1u) { // static
            v += b[i];
        }
        y[to + i] = v;
    }
}
