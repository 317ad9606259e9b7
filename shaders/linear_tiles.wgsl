// linear_tiles: y = [residual +] [factor *] [sigmoid(g) *] [act] (W x + b) for many rows of x, W quantised.
//
// A workgroup takes TM rows of a matrix (which: the linked `matrix/*.wgsl`) and a tile of up to COLS rows of x (which: the
// linked `rows/*.wgsl`); both go through workgroup memory a group of 32 columns at a time, so that each weight is expanded
// once for COLS rows of x. How they are stored and multiplied there: the linked `tiles/*.wgsl`. Sums are in f32.
//
// Grid: x = ceil(rows of the segment (experts: of one expert's matrix) / TM), y = tiles.

@compute @workgroup_size(WG)
fn main(ids: Ids) {
    let tile = tile_at(ids.wg.y);
    let m = matrix_at(ids.wg.x);
    let first = m.block * TM;
    product(tile, segment_start(tile, first), m.rows, ids);
    for (var o = ids.lid; o < TM * tile.count; o += WG) {
        store(m, tile, o / TM, first + o % TM, result(o % TM, o / TM));
    }
}
