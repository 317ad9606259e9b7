
// Rows of a plain matrix product: tile y holds rows y*COLS .. of x, every row of the segment applies to all of them.
struct Tile {
    first: u32,  // first row
    count: u32,  // rows, at most COLS; 0 beyond the end
}

fn tile_at(y: u32) -> Tile {
    let all = select(frame.tokens, frame.outputs, p.outputs != 0u);
    let first = y * COLS;
    return Tile(first, min(max(all, first) - first, COLS));
}

// Row `c` of the tile; beyond its end the last one, so that loads stay inside.
fn tile_row(tile: Tile, c: u32) -> u32 {
    return tile.first + min(c, max(tile.count, 1u) - 1u);
}

// Row of the segment that item i of the grid stands for; `p.rows` or more where it has none.
fn segment_row(tile: Tile, i: u32) -> u32 {
    return i;
}

// The same before it is known whether the segment has it: from 0 on it has, up to its rows.
fn segment_start(tile: Tile, i: u32) -> i32 {
    return i32(i);
}

// Output column of item i.
fn output_column(i: u32) -> u32 {
    return p.row0 + i;
}

fn bias_index(tile: Tile, i: u32) -> u32 {
    return p.row0 + i;
}

fn x_base(row: u32) -> u32 {
    return p.x_offset + row * p.x_stride;
}

fn y_base(row: u32) -> u32 {
    return p.y_offset + row * p.y_stride;
}

// A norm folded into the product (NORM = 1): x is multiplied by its weight here, and the sum by 1/rms at the end.
@group(0) @binding(10) var<storage, read> norm: array<vec4<f32>>;  // [K]

// Group j of x times the norm's weight; like `x_group` zero beyond K, because x is.
fn norm_group(x: array<vec4<f32>, 8>, j: u32) -> array<vec4<f32>, 8> {
    let at = j * 8u;
    let end = p.cols / 4u - 1u;
    return array<vec4<f32>, 8>(
        x[0] * norm[at],
        x[1] * norm[min(at + 1u, end)],
        x[2] * norm[min(at + 2u, end)],
        x[3] * norm[min(at + 3u, end)],
        x[4] * norm[min(at + 4u, end)],
        x[5] * norm[min(at + 5u, end)],
        x[6] * norm[min(at + 6u, end)],
        x[7] * norm[min(at + 7u, end)],
    );
}

// 1/rms from the sum of squares of a row of x.
fn norm_factor(squares: f32) -> f32 {
    return inverseSqrt(squares / f32(p.cols) + p.eps);
}
