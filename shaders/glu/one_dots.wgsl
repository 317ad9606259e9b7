// The products of a workgroup's rows of gate and up.
fn glu_products(tile: Tile, rows: array<u32, ROWS>, xs: array<u32, COLS>, cols: u32, lane: u32, n: u32) -> Products {
    return gate_products_to_COLS(tile.count, rows, xs, cols, lane, n);
}

