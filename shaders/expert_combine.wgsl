
// expert_combine: y[t] = [residual[t] +] factor * sum over the k slots of weights[t, j] * x[t, j], in slot order.
//
// One invocation a column. Grid: x = ceil(n / WG), y = T. f32.

@group(0) @binding(2) var<storage, read> x: array<f32>;         // [T, k*n]
@group(0) @binding(3) var<storage, read> weights: array<f32>;   // [T, k]
@group(0) @binding(4) var<storage, read> residual: array<f32>;  // [T, n]
@group(0) @binding(5) var<storage, read_write> y: array<f32>;   // [T, n]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.y;
    let i = wg.x * WG + lid;
    if (t >= frame.tokens || i >= p.cols) {
        return;
    }
    var sum = 0.0;
    for (var slot = 0u; slot < p.used; slot++) {
        let weight = weights[p.weights_offset + t * p.weights_stride + slot];
        sum += weight * x[p.x_offset + t * p.x_stride + slot * p.cols + i];
    }
    sum *= p.factor;
    if ((p.flags & RESIDUAL) != 0u) {
        sum += residual[p.residual_offset + t * p.residual_stride + i];
    }
    y[p.y_offset + t * p.y_stride + i] = sum;
}
