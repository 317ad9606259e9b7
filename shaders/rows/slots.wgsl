
// Rows of an expert product, one slot a tile: tile y is slot j of token t. The first k slots are the experts ids[t, j]; with
// SHARED = 1 the shared expert follows, `p.out` of its rows a slot.
struct Tile {
    first: u32,  // t * slots + j
    count: u32,  // 1, or 0 beyond the end
    slot: u32,   // j
    expert: u32,
}

fn slots() -> u32 {
    if (SHARED == 1u) { // static
        return p.used + p.shared_parts;
    } else {
        return p.used;
    }
}

fn is_shared(tile: Tile) -> bool {
    return tile.slot >= p.used;
}

fn tile_at(y: u32) -> Tile {
    let t = y / slots();
    let slot = y % slots();
    if (t >= frame.tokens) {
        return Tile(0u, 0u, 0u, 0u);
    }
    return Tile(y, 1u, slot, expert_at(t, min(slot, p.used - 1u)));
}

fn tile_row(tile: Tile, c: u32) -> u32 {
    return tile.first;
}

// Row of the segment that item i of the grid stands for; beyond its rows (wrapped round) where another segment has it.
fn segment_row(tile: Tile, i: u32) -> u32 {
    if (SHARED == 1u) { // static
        if (is_shared(tile)) {
            return select(0xffffffffu, (tile.slot - p.used) * p.out + i, i < p.out);
        }
    }
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
    return p.x_offset + row / slots() * p.x_stride + select(0u, row % slots() * p.cols, p.x_slots != 0u);
}

fn y_base(row: u32) -> u32 {
    return p.y_offset + row / slots() * p.y_stride + row % slots() * p.out;
}

// Expert products fold no norm in.
fn norm_group(x: array<vec4<f32>, 8>, j: u32) -> array<vec4<f32>, 8> {
    return x;
}

fn norm_factor(squares: f32) -> f32 {
    return 1.0;
}
