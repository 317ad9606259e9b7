
// copy: moves numbers, 16 bytes at a time: how fast this device can be. Nothing of a model runs it.
//
// An invocation takes EACH groups of 4 numbers, WG apart, so that neighbours move neighbouring 16 bytes.
// Grid: x = ceil(groups / (WG * EACH)), in two dimensions where that is too many: workgroup y * MOST_WORKGROUPS + x.

@group(0) @binding(2) var<storage, read> a: array<vec4<u32>>;        // [groups]
@group(0) @binding(3) var<storage, read_write> y: array<vec4<u32>>;  // [groups]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    // All kernels have the frame; this one has no use for its numbers.
    let first = (wg.y * MOST_WORKGROUPS + wg.x) * (WG * EACH) + lid + min(frame.tokens, 0u);
    for (var i = 0u; i < EACH; i++) { // unroll
        if (first + i * WG < p.groups) {
            y[first + i * WG] = a[first + i * WG];
        }
    }
}
