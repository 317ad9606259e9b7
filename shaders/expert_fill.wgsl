
// expert_fill: copies experts that are in no slot to the slots that `experts/place.wgsl` has given them: their shares of up to three
// matrices, which lie in memory of the host that kernels read or in another part of the device's, and of up to three vectors of biases.
// Moves bits.
//
// An invocation copies EACH pieces of 16 bytes of each matrix, WG apart, so that neighbours copy neighbouring bytes.
//
// Grid, which the device reads from a buffer: x = ceil(pieces of the largest share / (WG * EACH)), y = experts that are missing.

@group(0) @binding(2) var<storage, read_write> cache: array<u32>;  // experts and slots, from `fills_at` on; biases of slots
@group(0) @binding(3) var<storage, read> vectors: array<u32>;      // biases of all experts

fn copy_bias(i: u32, expert: u32, slot: u32, size: u32, source: u32, target_at: u32) {
    if (i < size) {
        cache[target_at + slot * size + i] = vectors[source + expert * size + i];
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    // All kernels have the frame; this one has no use for its numbers.
    let nth = wg.y + min(frame.tokens, 0u);
    let expert = cache[p.fills_at + 2u * nth];
    let slot = cache[p.fills_at + 2u * nth + 1u];
    for (var j = 0u; j < EACH; j++) { // unroll
        let i = (wg.x * EACH + j) * WG + lid;
        first_copy(expert, slot, i);
        if (PARTS == 1u) { // static
        } else {
            second_copy(expert, slot, i);
            if (PARTS == 2u) { // static
            } else {
                third_copy(expert, slot, i);
            }
        }
        copy_bias(i, expert, slot, p.bias_size_0, p.bias_from_0, p.bias_to_0);
        copy_bias(i, expert, slot, p.bias_size_1, p.bias_from_1, p.bias_to_1);
        copy_bias(i, expert, slot, p.bias_size_2, p.bias_from_2, p.bias_to_2);
    }
}
