// The products of a workgroup's rows, of whichever matrix it takes them.
fn products(
    m: Matrix,
    count: u32,
    rows: array<u32, ROWS>,
    xs: array<u32, COLS>,
    cols: u32,
    lane: u32,
    n: u32,
) -> Products {
    if (m.which == 0u) {
        return w_products_to_COLS(count, rows, xs, cols, lane, n);
    }
    return second_products_to_COLS(count, rows, xs, cols, lane, n);
}

