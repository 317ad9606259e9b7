// linear: y = [residual +] [factor *] [sigmoid(g) *] [act] (W x + b), W quantised.
//
// A workgroup takes WG/LANES * ROWS rows of a matrix (which: the linked `matrix/*.wgsl`) and one tile of up to COLS rows of x
// (which: the linked `rows/*.wgsl`). LANES invocations share a row; an invocation works on ROWS rows at once, so that each
// group of x that it reads serves ROWS rows and each group of weights COLS rows of x. With LANES = 1 there is no barrier.
// Products and sums are in f32; weights are expanded to f32 in registers.
//
// With NORMED = 1 the dispatch also writes the normalised x itself, each workgroup a share of it.
//
// Grid: x = ceil(rows of the segment (experts: of one expert's matrix) / (WG/LANES * ROWS)), y = tiles.

// Partial sums, one more a row than needed: lanes that add up neighbouring rows then read different banks.
var<workgroup> partials: array<f32, ROWS * COLS * TEAMS * (LANES + 1u)>;
var<workgroup> partial_squares: array<f32, COLS * (LANES + 1u)>;

struct Products {
    sums: array<f32, ROWS * COLS>,
    squares: array<f32, COLS>,  // of x, where NORM = 1
}

// An invocation's share of the products of its rows, TEAMS apart from `first` on, with the tile's rows of x.
fn own_products(m: Matrix, tile: Tile, first: u32, lane: u32) -> Products {
    // Where the rows start; a row that is not there reads the last one, and is not stored.
    var w_base: array<u32, ROWS>;
    var x_start: array<u32, COLS>;
    var wanted = false;
    for (var r = 0u; r < ROWS; r++) { // unroll
        let row = segment_row(tile, first + r * TEAMS);
        wanted = wanted || row < m.rows;
        w_base[r] = min(row, m.rows - 1u) * p.groups;
    }
    for (var c = 0u; c < COLS; c++) { // unroll
        x_start[c] = x_base(tile_row(tile, c)) / 4u;
    }
    let cols = select(0u, p.cols, wanted && tile.count > 0u);
    return products(m, tile.count, w_base, x_start, cols, lane, m.rows * p.groups);
}

// Results of an invocation that has whole rows (LANES = 1).
fn store_own(m: Matrix, tile: Tile, first: u32, found: Products) {
    for (var c = 0u; c < COLS; c++) { // unroll
        var factor = 1.0;
        if (NORM == 1u) { // static
            factor = norm_factor(found.squares[c]);
        }
        for (var r = 0u; r < ROWS; r++) { // unroll
            store(m, tile, c, first + r * TEAMS, found.sums[r * COLS + c] * factor);
        }
    }
}

// Shares of sums to workgroup memory. Every invocation of the workgroup must call it.
fn leave_partials(found: Products, team: u32, lane: u32, who: Ids) {
    let by = folded_by(who);
    for (var r = 0u; r < ROWS; r++) { // unroll
        for (var c = 0u; c < COLS; c++) { // unroll
            let sum = fold(found.sums[r * COLS + c], who);
            if (lane % by == 0u) {
                partials[((r * COLS + c) * TEAMS + team) * (LANES + 1u) + lane / by] = sum;
            }
        }
    }
    if (NORM == 1u) { // static
        // Teams without a row have not seen x: the first has one wherever the workgroup has.
        for (var c = 0u; c < COLS; c++) { // unroll
            let sum = fold(found.squares[c], who);
            if (team == 0u && lane % by == 0u) {
                partial_squares[c * (LANES + 1u) + lane / by] = sum;
            }
        }
    }
}

// Results from the `shares` of each sum in workgroup memory.
fn store_partials(m: Matrix, tile: Tile, lid: u32, shares: u32) {
    for (var o = lid; o < ROWS * COLS * TEAMS; o += WG) {
        let c = o / TEAMS % COLS;
        var sum = 0.0;
        var squares = 0.0;
        for (var l = 0u; l < shares; l++) {
            sum += partials[o * (LANES + 1u) + l];
            if (NORM == 1u) { // static
                squares += partial_squares[c * (LANES + 1u) + l];
            }
        }
        if (NORM == 1u) { // static
            sum *= norm_factor(squares);
        }
        store(m, tile, c, m.block * (TEAMS * ROWS) + o % TEAMS + o / (TEAMS * COLS) * TEAMS, sum);
    }
}

// With NORMED = 1: the normalised x itself, one row a tile (COLS = 1), of which each of `workgroups` writes its share.
fn store_normed(tile: Tile, lid: u32, shares: u32, workgroup: u32, workgroups: u32) {
    if (NORMED == 1u) { // static
        var squares = 0.0;
        for (var l = 0u; l < shares; l++) {
            squares += partial_squares[l];
        }
        let factor = norm_factor(squares);
        let begin = x_base(tile.first);
        let to = y_base(tile.first) + p.normed_offset;
        let end = select(0u, p.cols, tile.count > 0u);
        for (var i = workgroup * WG + lid; i < end; i += workgroups * WG) {
            y[to + i] = x[(begin + i) / 4u][i % 4u] * norm[i / 4u][i % 4u] * factor;
        }
    }
}

@compute @workgroup_size(WG)
fn main(who: Ids, @builtin(num_workgroups) wgs: vec3<u32>) {
    let lid = place_of(who);
    let tile = tile_at(who.wg.y);
    let m = matrix_at(who.wg.x);
    let lane = lane_of(lid);
    let team = lid / LANES;
    let first = m.block * (TEAMS * ROWS) + team;
    let found = own_products(m, tile, first, lane);
    if (LANES == 1u) { // static
        store_own(m, tile, first, found);
    } else {
        let shares = LANES / folded_by(who);
        leave_partials(found, team, lane, who);
        workgroupBarrier();
        store_partials(m, tile, lid, shares);
        store_normed(tile, lid, shares, who.wg.x, wgs.x);
    }
}
