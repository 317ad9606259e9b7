// Operands of a gated unit, and what follows each pair of sums.
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;          // [R, K]
@group(0) @binding(5) var<storage, read_write> y: array<f32>;          // [R, I]

fn store(tile: Tile, c: u32, i: u32, sum: vec2<f32>) {
    if (c >= tile.count || segment_row(tile, i) >= matrix_rows(tile)) {
        return;
    }
    let v = sum + biases(tile, i);
    y[y_base(tile_row(tile, c)) + output_column(i)] = gated(v.x, v.y);
}

