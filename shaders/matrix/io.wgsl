// Operands of a matrix product, and what follows each sum.
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;       // [R, K]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;       // [R, N]
@group(0) @binding(5) var<storage, read> bias: array<f32>;          // [N]; of experts [E, N]
@group(0) @binding(6) var<storage, read> residual: array<f32>;      // [R, N]
@group(0) @binding(7) var<storage, read> gate: array<f32>;          // [R, 1]

fn store(m: Matrix, tile: Tile, c: u32, i: u32, sum: f32) {
    if (c >= tile.count || segment_row(tile, i) >= m.rows) {
        return;
    }
    let row = tile_row(tile, c);
    let n = m.column + output_column(i);
    var v = sum;
    if ((p.flags & BIAS) != 0u) {
        v += bias[m.column + bias_index(tile, i)];
    }
    if (ACT == NO_ACT) { // static
    } else {
        v = activate(v);
    }
    if ((p.flags & GATE) != 0u) {
        v = v / (1.0 + exp(min(-gate[p.gate_offset + row * p.gate_stride], 80.0)));
    }
    if ((p.flags & FACTOR) != 0u) {
        v *= p.factor;
    }
    if ((p.flags & RESIDUAL) != 0u) {
        v += residual[p.residual_offset + row * p.residual_stride + n];
    }
    y[y_base(row) + n] = v;
}

