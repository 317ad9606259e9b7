
// elementwise: add, scale, glu, sigmoid_gate, take_outputs, act and scale_expert_inputs, by OP:
//   OP_ADD            y = a + b
//   OP_SCALE          y = factor * a
//   OP_GLU            y = act(a) * b, or another gated unit of a and b
//   OP_SIGMOID_GATE   y = a * sigmoid(b[r, 0])
//   OP_TAKE_OUTPUTS   y[r] = a[T - O + r]
//   OP_ACT            y = act(a)
//   OP_SCALE_EXPERT_INPUTS   y[j*inner + i] = a[i] * b[j] for each of k slots j, and then k ones
//
// One invocation an element. Grid: x = ceil(columns / WG), y = rows. f32.

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
    let a_row = select(row, row + frame.first_output, OP == OP_TAKE_OUTPUTS);
    let b_at = p.b_offset + row * p.b_stride;
    if (OP == OP_SCALE_EXPERT_INPUTS) { // static
        let slots = p.cols / (p.inner + 1u);
        var scaled_inputs = 1.0;
        if (i < slots * p.inner) {
            scaled_inputs = a[p.a_offset + row * p.a_stride + i % p.inner] * b[b_at + i / p.inner];
        }
        y[p.y_offset + row * p.y_stride + i] = scaled_inputs;
        return;
    }
    let u = a[p.a_offset + a_row * p.a_stride + i];
    var v = u;
    switch OP {
        case OP_ADD: {
            v = u + b[b_at + i];
        }
        case OP_SCALE: {
            v = p.factor * u;
        }
        case OP_GLU: {
            v = gated(u, b[b_at + i]);
        }
        case OP_SIGMOID_GATE: {
            v = u * sigmoid(b[b_at]);
        }
        case OP_ACT: {
            v = activate(u);
        }
        default: {}
    }
    y[p.y_offset + row * p.y_stride + i] = v;
}
