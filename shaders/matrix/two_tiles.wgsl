// Expands group j of the tile's i-th row of whichever matrix the workgroup takes.
fn stage_weights(tile: Tile, x: u32, i: u32, j: u32) {
    let m = matrix_at(x);
    let row = min(segment_row(tile, m.block * TM + i), m.rows - 1u);
    if (m.which == 0u) {
        w_stage(i, row * p.groups + j, m.rows * p.groups);
    } else {
        second_stage(i, row * p.groups + j, m.rows * p.groups);
    }
}

