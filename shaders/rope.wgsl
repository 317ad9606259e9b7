
// rope: rotates the pairs of columns of each head by the angles of row t's position, P + t.
//
// One invocation a column. Grid: x = ceil(heads * D / WG), y = T. f32.

@group(0) @binding(3) var<storage, read> x: array<f32>;        // [T, heads*D]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;  // [T, heads*D]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.y;
    let i = wg.x * WG + lid;
    if (t >= frame.tokens || i >= p.heads * p.head_dim) {
        return;
    }
    let c = i % p.head_dim;
    let start = p.x_offset + t * p.x_stride + i - c;
    let other = x[start + partner(c, p.dims, p.halves)];
    y[p.y_offset + t * p.y_stride + i] = rotate(x[start + c], other, c, p.dims, p.halves, position_of(t));
}
