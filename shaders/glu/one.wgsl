
// One gated unit a dispatch (experts: one stack of them).
@group(0) @binding(3) var<storage, read> gate_data: array<vec4<u32>>;  // rows row0 .. row0 + rows of [I, K]
@group(0) @binding(4) var<storage, read> up_data: array<vec4<u32>>;    // the same rows of [I, K]

// Rows of the segments.
fn matrix_rows(tile: Tile) -> u32 {
    return p.rows;
}

fn glu_products(tile: Tile, rows: array<u32, ROWS>, xs: array<u32, COLS>, cols: u32, lane: u32, n: u32) -> Products {
    return gate_products_to_COLS(tile.count, rows, xs, cols, lane, n);
}
