
// local_ids: the numbers of the experts that are here, counted from the first of them; `count` for the others, whose slots the
// products with experts' matrices leave out. See `ops/experts.rs`. One invocation a number. Grid: x = ceil(k / WG), y = T.

@group(0) @binding(2) var<storage, read> ids: array<u32>;      // [T, k]
@group(0) @binding(3) var<storage, read_write> y: array<u32>;  // [T, k]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = wg.x * WG + lid;
    if (wg.y < frame.tokens && i < p.used) {
        // Below the first the difference wraps round, and is larger than `count`, too.
        y[p.y_offset + wg.y * p.y_stride + i] = min(ids[p.ids_offset + wg.y * p.ids_stride + i] - p.first, p.count);
    }
}
