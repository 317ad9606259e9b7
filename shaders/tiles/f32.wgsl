// Tiles in f32, products and sums in f32: the base that every device runs.
var<workgroup> weight_tile: array<vec4<f32>, 8 * TM>;           // [quad of the group, row]; at last the sums
var<workgroup> x_tile: array<vec4<f32>, 8 * (COLS + 1)>;   // [quad of the group, row], one more a quad: other banks

fn keep_weights(i: u32, v: array<vec4<f32>, 8>) {
    for (var q = 0u; q < 8u; q++) { // unroll
        weight_tile[q * TM + i] = v[q];
    }
}

fn prepare_x(lid: u32) {}

fn stage_x(count: u32, j: u32, lid: u32) {
    for (var o = lid; o < 8u * count; o += WG) {
        x_tile[o % 8u * (COLS + 1u) + o / 8u] = x_quad(x_starts[o / 8u], j, o % 8u);
    }
}

fn multiply(count: u32, lid: u32, sums: ptr<function, array<f32, 32>>) {
    let ti = lid % 8u;
    let tj = lid / 8u;
    for (var q = 0u; q < 8u; q++) {
        let at = q * TM + ti;
        let a = array<vec4<f32>, 8>(
            weight_tile[at + 0u],
            weight_tile[at + 8u],
            weight_tile[at + 16u],
            weight_tile[at + 24u],
            weight_tile[at + 32u],
            weight_tile[at + 40u],
            weight_tile[at + 48u],
            weight_tile[at + 56u],
        );
        for (var c = 0u; c < 4u; c++) { // unroll
            // A tile with few rows pays for few.
            if (8u * c < count) {
                let b = x_tile[q * (COLS + 1u) + tj + 8u * c];
                for (var r = 0u; r < 8u; r++) { // unroll
                    (*sums)[r * 4u + c] += dot(a[r], b);
                }
            }
        }
    }
}

fn leave(at: u32, v: vec4<f32>) {
    weight_tile[at] = v;
}

// The sum of weight row i and row c of x.
fn result(i: u32, c: u32) -> f32 {
    return weight_tile[c % 8u * TM + i][c / 8u];
}

