
// A shared expert behind the routed ones: its matrix, and its gate where it has one.
@group(0) @binding(8) var<storage, read> shared_data: array<vec4<u32>>;  // [H, Is]
@group(0) @binding(9) var<storage, read> gate: array<f32>;               // [T, 1]

fn shared_factor(t: u32) -> f32 {
    if ((p.flags & GATE) == 0u) {
        return 1.0;
    }
    return 1.0 / (1.0 + exp(min(-gate[p.gate_offset + t * p.gate_stride], 80.0)));
}

// With a shared expert, the routed ones have no biases.
fn slot_bias(expert: u32, row: u32) -> f32 {
    return 0.0;
}
