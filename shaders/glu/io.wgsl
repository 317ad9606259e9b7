// Operands of a gated unit, and what follows each pair of sums.
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
    eps: f32,
    used: u32,
    x_slots: u32,
    ids_offset: u32,
    ids_stride: u32,
    shared_rows: u32,
    shared_parts: u32,
    experts: u32,
    score: u32,
    renormalise: u32,
    router_scale: f32,
    logits_offset: u32,
    weights_offset: u32,
    weights_stride: u32,
    flags: u32,
    bias_up: u32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;          // [R, K]
@group(0) @binding(5) var<storage, read_write> y: array<f32>;          // [R, I]

const BIAS: u32 = 1u;

fn store(tile: Tile, c: u32, i: u32, sum: vec2<f32>) {
    if (c >= tile.count || segment_row(tile, i) >= matrix_rows(tile)) {
        return;
    }
    let v = sum + biases(tile, i);
    y[y_base(tile_row(tile, c)) + output_column(i)] = gated(v.x, v.y);
}

