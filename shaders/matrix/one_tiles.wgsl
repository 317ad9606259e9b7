// Expands group j of the tile's i-th row of the matrix.
fn stage_weights(tile: Tile, x: u32, i: u32, j: u32) {
    let row = min(segment_row(tile, x * TM + i), p.rows - 1u);
    w_stage(i, row * p.groups + j, p.rows * p.groups);
}

