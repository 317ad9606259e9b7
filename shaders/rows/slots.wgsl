
// Rows of an expert product, one slot a tile: tile y is slot j = y % k of token t = y / k, whose expert is ids[t, j].
@group(0) @binding(11) var<storage, read> ids: array<u32>;  // [T, k]

struct Tile {
    first: u32,  // t*k + j
    count: u32,  // 1, or 0 beyond the end
    expert: u32,
}

fn tile_at(y: u32) -> Tile {
    if (y >= frame.tokens * p.used) {
        return Tile(0u, 0u, 0u);
    }
    return Tile(y, 1u, ids[p.ids_offset + y / p.used * p.ids_stride + y % p.used]);
}

fn tile_row(tile: Tile, c: u32) -> u32 {
    return tile.first;
}

// Row of the segment that item i of the grid stands for; `p.rows` or more (wrapped round) where another segment has it.
fn segment_row(tile: Tile, i: u32) -> u32 {
    return select(0xffffffffu, tile.expert * p.out + i - p.row0, i < p.out);
}

fn output_column(i: u32) -> u32 {
    return i;
}

// Place of item i's bias: all experts' lie in one vector.
fn bias_index(tile: Tile, i: u32) -> u32 {
    return tile.expert * p.out + i;
}

fn x_base(row: u32) -> u32 {
    return p.x_offset + row / p.used * p.x_stride + select(0u, row % p.used * p.cols, p.x_slots != 0u);
}

fn y_base(row: u32) -> u32 {
    return p.y_offset + row / p.used * p.y_stride + row % p.used * p.out;
}

// Expert products fold no norm in.
fn norm_group(x: array<vec4<f32>, 8>, j: u32) -> array<vec4<f32>, 8> {
    return x;
}

fn norm_factor(squares: f32) -> f32 {
    return 1.0;
}
