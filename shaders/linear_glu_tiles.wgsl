// linear_glu_tiles: y = act(G x + b) * (U x + c) for many rows of x, the first half of a gated feed-forward network; G and U
// quantised. Biases are of experts only.
//
// As `linear_tiles`; a tile of weights has TM / 2 rows of G and the same rows of U.
//
// Grid: x = ceil(rows of the segment (experts: of one expert's matrix) / (TM / 2)), y = tiles.

@compute @workgroup_size(WG)
fn main(ids: Ids) {
    let tile = tile_at(ids.wg.y);
    let first = ids.wg.x * (TM / 2u);
    product(tile, segment_start(tile, first), matrix_rows(tile), ids);
    for (var o = ids.lid; o < TM / 2u * tile.count; o += WG) {
        let i = o % (TM / 2u);
        let c = o / (TM / 2u);
        store(tile, c, first + i, vec2<f32>(result(i, c), result(i + TM / 2u, c)));
    }
}
