// What the kernels share that multiply tiles in workgroup memory: TM rows of weights by COLS rows of x, a group of 32 columns
// at a time. The kernel gives `stage_weights`; the linked `tiles/*.wgsl` says how a tile is stored and multiplied and gives
// `product`, which leaves the sums where `result` finds them.

// Where the tile's rows of x start, in vec4.
var<workgroup> x_starts: array<u32, COLS>;

// Quad q of group j of the row of x that starts at `base`; zero beyond its columns.
fn x_quad(base: u32, j: u32, q: u32) -> vec4<f32> {
    let at = j * 8u + q;
    let quads = p.cols / 4u;
    return select(vec4<f32>(0.0), x[base + min(at, quads - 1u)], at < quads);
}

// Groups to go through; none where the tile has no row of x, or its rows of weights are all in other segments.
fn groups_of(tile: Tile, first: i32, rows: u32) -> u32 {
    let wanted = tile.count > 0u && first < i32(rows) && first + i32(TM) > 0;
    return select(0u, (p.cols + 31u) / 32u, wanted);
}

