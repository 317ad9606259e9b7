
// Dot products of ROWS rows of A and of the same rows of B with COUNT rows of x, in one pass over x. Lane l of LANES takes
// groups l, l + LANES, ... of each row. Sums are in f32. Linked once for each pair of weight slots, and for each COUNT that
// is a power of two up to COLS: a tile with few rows pays for few.
fn A_products_COUNT(rows: array<u32, ROWS>, xs: array<u32, COLS>, cols: u32, lane: u32, n: u32) -> Products {
    let groups = (cols + 31u) / 32u;
    var out: Products;
    for (var j = lane; j < groups; j += LANES) {
        for (var r = 0u; r < ROWS; r++) { // unroll
            let a = A_dequant(rows[r] + j, n);
            let b = B_dequant(rows[r] + j, n);
            for (var c = 0u; c < COUNTu; c++) { // unroll
                if (NORM == 1u) { // static
                    let raw = x_group(xs[c], j, cols);
                    if (r == 0u) { // static
                        out.squares[c] += dot_group(raw, raw);
                    }
                    let normed = norm_group(raw, j);
                    out.sums[r * COLS + c] += vec2<f32>(dot_group(a, normed), dot_group(b, normed));
                } else {
                    let xs_c = x_group(xs[c], j, cols);
                    out.sums[r * COLS + c] += vec2<f32>(dot_group(a, xs_c), dot_group(b, xs_c));
                }
            }
        }
    }
    return out;
}

// The same for the first `count` rows of x, at most COUNT; what lies beyond is not to be used.
fn A_products_to_COUNT(
    count: u32,
    rows: array<u32, ROWS>,
    xs: array<u32, COLS>,
    cols: u32,
    lane: u32,
    n: u32,
) -> Products {
    if (COUNTu == 1u) { // static
        return A_products_COUNT(rows, xs, cols, lane, n);
    } else {
        if (count > HALFu) {
            return A_products_COUNT(rows, xs, cols, lane, n);
        }
        return A_products_to_HALF(count, rows, xs, cols, lane, n);
    }
}
