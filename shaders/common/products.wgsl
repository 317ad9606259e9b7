
// Dot products of ROWS rows of A with COUNT rows of x. Lane l of LANES takes groups l, l + LANES, ... of each row. A group
// of weights is expanded once for several rows of x; for one, the scales are taken out of the sum. Sums are in f32. Linked once for each weight slot, and for each COUNT that
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
                out.sums[r * COLS] += A_dot(rows[r] + j, n, v);
            }
        } else {
            for (var r = 0u; r < ROWS; r++) { // unroll
                let w = A_dequant(rows[r] + j, n);
                for (var c = 0u; c < COUNTu; c++) { // unroll
                    let v = x_group(xs[c], j, cols);
                    if (NORM == 1u) { // static
                        if (r == 0u) { // static
                            out.squares[c] += dot_group(v, v);
                        }
                        out.sums[r * COLS + c] += dot_group(w, norm_group(v, j));
                    } else {
                        out.sums[r * COLS + c] += dot_group(w, v);
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
