
// Dot products of ROWS rows of A and of the same rows of B with COUNT rows of x, in one pass over x. Lane l of LANES takes
// groups l, l + LANES, ... of each row. Of one row of x, the scales
// are taken out of the sum. Sums are in f32. Linked once for each pair of weight slots, and for each COUNT that
// is a power of two up to COLS: a tile with few rows pays for few.
fn A_products_COUNT(rows: array<u32, ROWS>, xs: array<u32, COLS>, cols: u32, lane: u32, n: u32) -> Products {
    let groups = (cols + 31u) / 32u;
    var out: Products;
    for (var j = lane; j < groups; j += LANES) {
        if (COUNTu == 1u) { // static
            var v = x_group(xs[0], j, cols);
            if (NORM == 1u) { // static
                out.squares[0] += dot_group(v, v);
                v = norm_group(v, j);
            }
            for (var r = 0u; r < ROWS; r++) { // unroll
                out.sums[r * COLS] += vec2<f32>(A_dot(rows[r] + j, n, v), B_dot(rows[r] + j, n, v));
            }
        } else {
            for (var r = 0u; r < ROWS; r++) { // unroll
                let a = A_dequant(rows[r] + j, n);
                let b = B_dequant(rows[r] + j, n);
                for (var c = 0u; c < COUNTu; c++) { // unroll
                    let v = x_group(xs[c], j, cols);
                    if (NORM == 1u) { // static
                        if (r == 0u) { // static
                            out.squares[c] += dot_group(v, v);
                        }
                        let normed = norm_group(v, j);
                        out.sums[r * COLS + c] += vec2<f32>(dot_group(a, normed), dot_group(b, normed));
                    } else {
                        out.sums[r * COLS + c] += vec2<f32>(dot_group(a, v), dot_group(b, v));
                    }
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
