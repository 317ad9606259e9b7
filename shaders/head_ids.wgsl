
// head_ids: 0, 1, 2... in every row; see `ops/heads.rs`. One invocation a number. Grid: x = ceil(heads / WG), y = T.

@group(0) @binding(2) var<storage, read_write> y: array<u32>;  // [T, heads]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = wg.x * WG + lid;
    if (wg.y < frame.tokens && i < p.heads) {
        y[p.y_offset + wg.y * p.y_stride + i] = i;
    }
}
