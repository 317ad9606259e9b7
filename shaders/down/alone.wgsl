
// Routed experts alone, with their biases.
@group(0) @binding(8) var<storage, read> bias: array<f32>;  // [E, H]

fn slot_bias(expert: u32, row: u32) -> f32 {
    if ((p.flags & BIAS) == 0u) {
        return 0.0;
    }
    return bias[expert * p.out + min(row, p.out - 1u)];
}
