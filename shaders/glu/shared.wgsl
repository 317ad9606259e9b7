
// A stack of experts and a shared expert in one dispatch. The shared expert is as many more slots as its rows fill.
@group(0) @binding(3) var<storage, read> gate_data: array<vec4<u32>>;         // rows row0 .. row0 + rows of [E*I, K]
@group(0) @binding(4) var<storage, read> up_data: array<vec4<u32>>;           // the same rows of [E*I, K]
@group(0) @binding(6) var<storage, read> shared_gate_data: array<vec4<u32>>;  // [Is, K]
@group(0) @binding(7) var<storage, read> shared_up_data: array<vec4<u32>>;    // [Is, K]

// Rows of the segments, or of the shared expert.
fn matrix_rows(tile: Tile) -> u32 {
    return select(p.rows, p.shared_rows, is_shared(tile));
}

fn glu_products(tile: Tile, rows: array<u32, ROWS>, xs: array<u32, COLS>, cols: u32, lane: u32, n: u32) -> Products {
    if (is_shared(tile)) {
        return shared_gate_products_to_COLS(tile.count, rows, xs, cols, lane, n);
    }
    return gate_products_to_COLS(tile.count, rows, xs, cols, lane, n);
}

// With a shared expert, the routed ones have no biases.
fn biases(tile: Tile, i: u32) -> vec2<f32> {
    return vec2<f32>(0.0);
}
