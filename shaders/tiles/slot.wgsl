// Group g of a weight slot to row i of the tile in workgroup memory.
fn A_stage(i: u32, g: u32, n: u32) {
    keep_weights(i, A_UNPACK(g, n));
}

