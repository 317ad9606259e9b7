
// embed: y[t] = scale * table[ids[t]], the table quantised. A token whose row another segment holds is left alone.
//
// One invocation a group of 32 columns. Grid: x = ceil(groups / WG), y = T. Exact but for the product with the scale.

@group(0) @binding(2) var<storage, read> ids: array<u32>;              // [T, 1]
@group(0) @binding(3) var<storage, read> w_data: array<vec4<u32>>;     // rows row0 .. row0 + rows of [V, H]
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;    // [T, H]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.y;
    let j = wg.x * WG + lid;
    if (t >= frame.tokens || j >= p.groups) {
        return;
    }
    let row = ids[p.ids_offset + t * p.ids_stride] - p.row0;
    if (row >= p.rows) {
        return;
    }
    let w = w_dequant(row * p.groups + j, p.rows * p.groups);
    let at = (p.y_offset + t * p.y_stride) / 4u + j * 8u;
    for (var i = 0u; i < 8u; i++) { // unroll
        if (TAIL == 0u || j * 8u + i < p.cols / 4u) {
            y[at + i] = w[i] * p.scale;
        }
    }
}
