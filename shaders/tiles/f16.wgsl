// Tiles in f16, products and sums in f32. Weights of the formats that use it fit halves; each row of x is scaled.
var<workgroup> weight_tile: array<vec4<f16>, 8 * TM>;          // [quad of the group, row]
var<workgroup> x_tile: array<vec4<f16>, 8 * (COLS + 1)>;  // [quad of the group, row], one more a quad: other banks
var<workgroup> sum_tile: array<vec4<f32>, 8 * TM>;

fn keep_weights(i: u32, v: array<vec4<f32>, 8>) {
    for (var q = 0u; q < 8u; q++) { // unroll
        weight_tile[q * TM + i] = vec4<f16>(v[q]);
    }
}

fn stage_x(count: u32, j: u32, lid: u32) {
    for (var o = lid; o < 8u * count; o += WG) {
        let c = o / 8u;
        x_tile[o % 8u * (COLS + 1u) + c] = vec4<f16>(x_quad(x_starts[c], j, o % 8u) / scales[c]);
    }
}

fn multiply(count: u32, lid: u32, sums: ptr<function, array<f32, 32>>) {
    let ti = lid % 8u;
    let tj = lid / 8u;
    for (var q = 0u; q < 8u; q++) {
        let at = q * TM + ti;
        let a = array<vec4<f32>, 8>(
            vec4<f32>(weight_tile[at + 0u]),
            vec4<f32>(weight_tile[at + 8u]),
            vec4<f32>(weight_tile[at + 16u]),
            vec4<f32>(weight_tile[at + 24u]),
            vec4<f32>(weight_tile[at + 32u]),
            vec4<f32>(weight_tile[at + 40u]),
            vec4<f32>(weight_tile[at + 48u]),
            vec4<f32>(weight_tile[at + 56u]),
        );
        for (var c = 0u; c < 4u; c++) { // unroll
            // A tile with few rows pays for few.
            if (8u * c < count) {
                let b = vec4<f32>(x_tile[q * (COLS + 1u) + tj + 8u * c]);
                for (var r = 0u; r < 8u; r++) { // unroll
                    (*sums)[r * 4u + c] += dot(a[r], b);
                }
            }
        }
    }
}

fn leave(at: u32, v: vec4<f32>) {
    sum_tile[at] = v;
}

// The sum of weight row i and row c of x.
fn result(i: u32, c: u32) -> f32 {
    return sum_tile[c % 8u * TM + i][c / 8u] * scales[c];
}

