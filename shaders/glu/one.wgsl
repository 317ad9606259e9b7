
// One gated unit a dispatch (experts: one stack of them).
@group(0) @binding(3) var<storage, read> gate_data: array<vec4<u32>>;  // rows row0 .. row0 + rows of [I, K]
@group(0) @binding(4) var<storage, read> up_data: array<vec4<u32>>;    // the same rows of [I, K]
@group(0) @binding(6) var<storage, read> bias: array<f32>;             // [E, I] of the gate, from bias_up on [E, I] of up

// Rows of the segments.
fn matrix_rows(tile: Tile) -> u32 {
    return p.rows;
}

// Biases of item i, gate and up.
fn biases(tile: Tile, i: u32) -> vec2<f32> {
    if ((p.flags & BIAS) == 0u) {
        return vec2<f32>(0.0);
    }
    let at = bias_index(tile, i);
    return vec2<f32>(bias[at], bias[p.bias_up + at]);
}

