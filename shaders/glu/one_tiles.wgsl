// Expands group j of the tile's i-th row: the first half of them is the gate's, the second half the same rows of up.
fn stage_weights(tile: Tile, x: u32, i: u32, j: u32) {
    let row = min(segment_row(tile, x * (TM / 2u) + i % (TM / 2u)), p.rows - 1u);
    if (i < TM / 2u) {
        gate_stage(i, row * p.groups + j, p.rows * p.groups);
    } else {
        up_stage(i, row * p.groups + j, p.rows * p.groups);
    }
}

