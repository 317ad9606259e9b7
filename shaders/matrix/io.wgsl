// Operands of a matrix product, and what follows each sum.
struct Params {
    outputs: u32,
    row0: u32,
    rows: u32,
    groups: u32,
    cols: u32,
    out: u32,
    x_offset: u32,
    x_stride: u32,
    y_offset: u32,
    y_stride: u32,
    flags: u32,
    residual_offset: u32,
    residual_stride: u32,
    gate_offset: u32,
    gate_stride: u32,
    eps: f32,
    used: u32,
    x_slots: u32,
    ids_offset: u32,
    ids_stride: u32,
    blocks: u32,
    rows_1: u32,
    column_1: u32,
    normed_offset: u32,
    factor: f32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;       // [R, K]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;       // [R, N]
@group(0) @binding(5) var<storage, read> bias: array<f32>;          // [N]; of experts [E, N]
@group(0) @binding(6) var<storage, read> residual: array<f32>;      // [R, N]
@group(0) @binding(7) var<storage, read> gate: array<f32>;          // [R, 1]

const BIAS: u32 = 1u;
const RESIDUAL: u32 = 2u;
const GATE: u32 = 4u;
const FACTOR: u32 = 16u;

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
    if (ACT == 9u) { // static
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

