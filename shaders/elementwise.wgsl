
// elementwise: add, scale, glu, sigmoid_gate, take_outputs, act and weigh_inputs, by OP:
//   0  y = a + b
//   1  y = factor * a
//   2  y = act(a) * b, or another gated unit of a and b
//   3  y = a * sigmoid(b[r, 0])
//   4  y[r] = a[T - O + r]
//   5  y = act(a)
//   6  y[j*inner + i] = a[i] * b[j] for each of k slots j, and then k ones
//
// One invocation an element. Grid: x = ceil(columns / WG), y = rows. f32.

struct Params {
    outputs: u32,
    cols: u32,
    a_offset: u32,
    a_stride: u32,
    b_offset: u32,
    b_stride: u32,
    y_offset: u32,
    y_stride: u32,
    inner: u32,
    factor: f32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> a: array<f32>;        // [R, n]
@group(0) @binding(3) var<storage, read> b: array<f32>;        // [R, n], [R, 1] or [R, k]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;  // [R, n]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let row = wg.y;
    let i = wg.x * WG + lid;
    if (row >= select(frame.tokens, frame.outputs, p.outputs != 0u) || i >= p.cols) {
        return;
    }
    let a_row = select(row, row + frame.first_output, OP == 4u);
    let b_at = p.b_offset + row * p.b_stride;
    if (OP == 6u) { // static
        let slots = p.cols / (p.inner + 1u);
        var weighed = 1.0;
        if (i < slots * p.inner) {
            weighed = a[p.a_offset + row * p.a_stride + i % p.inner] * b[b_at + i / p.inner];
        }
        y[p.y_offset + row * p.y_stride + i] = weighed;
        return;
    }
    let u = a[p.a_offset + a_row * p.a_stride + i];
    var v = u;
    switch OP {
        case 0u: {
            v = u + b[b_at + i];
        }
        case 1u: {
            v = p.factor * u;
        }
        case 2u: {
            v = gated(u, b[b_at + i]);
        }
        case 3u: {
            v = u * sigmoid(b[b_at]);
        }
        case 5u: {
            v = activate(u);
        }
        default: {}
    }
    y[p.y_offset + row * p.y_stride + i] = v;
}
