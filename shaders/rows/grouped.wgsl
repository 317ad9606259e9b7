
// Rows of an expert product, pairs of one expert a tile: from the tables that `expert_sort` made.
@group(0) @binding(11) var<storage, read> pairs: array<u32>;        // [T*k]: t*k + j, by ascending expert
@group(0) @binding(12) var<storage, read> tiles: array<vec4<u32>>;  // expert, first pair, pairs, 0

struct Tile {
    first: u32,  // index into pairs
    count: u32,
    expert: u32,
}

fn tile_at(y: u32) -> Tile {
    let t = tiles[y];
    return Tile(t.y, t.z, t.x);
}

fn tile_row(tile: Tile, c: u32) -> u32 {
    return pairs[tile.first + min(c, max(tile.count, 1u) - 1u)];
}

// Row of the segment that item i of the grid stands for; `p.rows` or more (wrapped round) where another segment has it.
fn segment_row(tile: Tile, i: u32) -> u32 {
    return select(0xffffffffu, tile.expert * p.out + i - p.row0, i < p.out);
}

// The same before it is known whether the segment has it: from 0 on it has, up to its rows.
fn segment_start(tile: Tile, i: u32) -> i32 {
    return i32(tile.expert * p.out + i) - i32(p.row0);
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
