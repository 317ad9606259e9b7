
// join_heads: of each head, the columns of a and then those of b. One invocation an element. Grid: x = ceil(columns / WG),
// y = rows. Copies f32.

@group(0) @binding(2) var<storage, read> a: array<f32>;        // [R, heads*m]
@group(0) @binding(3) var<storage, read> b: array<f32>;        // [R, heads*n]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;  // [R, heads*(m + n)]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let row = wg.y;
    let i = wg.x * WG + lid;
    let both = p.a_cols + p.b_cols;
    if (row >= select(frame.tokens, frame.outputs, p.outputs != 0u) || i >= p.heads * both) {
        return;
    }
    let head = i / both;
    let column = i % both;
    var v = 0.0;
    if (column < p.a_cols) {
        v = a[p.a_offset + row * p.a_stride + head * p.a_cols + column];
    } else {
        v = b[p.b_offset + row * p.b_stride + head * p.b_cols + column - p.a_cols];
    }
    y[p.y_offset + row * p.y_stride + i] = v;
}
