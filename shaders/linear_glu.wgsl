
// linear_glu: y = act(G x + b) * (U x + c), the first half of a gated feed-forward network; G and U quantised, in one pass
// over x. Biases are of experts only.
//
// A workgroup takes WG/LANES * ROWS rows of both matrices (which: the linked `glu/*.wgsl`) and one tile of up to COLS rows of
// x (which: the linked `rows/*.wgsl`). LANES invocations share a row; an invocation works on ROWS rows at once. With
// LANES = 1 there is no barrier. Products and sums are in f32; weights are expanded to f32 in registers.
//
// Grid: x = ceil(rows of the segment (experts: of one expert's matrix) / (WG/LANES * ROWS)), y = tiles.

// Partial sums, one more a row than needed: lanes that add up neighbouring rows then read different banks.
var<workgroup> partials: array<vec2<f32>, ROWS * COLS * TEAMS * (LANES + 1u)>;
var<workgroup> partial_squares: array<f32, COLS * (LANES + 1u)>;

struct Products {
    sums: array<vec2<f32>, ROWS * COLS>,  // gate and up
    squares: array<f32, COLS>,             // of x, where NORM = 1
}

// An invocation's share of the products of its rows, TEAMS apart from `first` on, with the tile's rows of x.
fn own_products(tile: Tile, first: u32, lane: u32) -> Products {
    let all = matrix_rows(tile);
    // Where the rows start; a row that is not there reads the last one, and is not stored.
    var w_base: array<u32, ROWS>;
    var x_start: array<u32, COLS>;
    var wanted = false;
    for (var r = 0u; r < ROWS; r++) { // unroll
        let row = segment_row(tile, first + r * TEAMS);
        wanted = wanted || row < all;
        w_base[r] = min(row, all - 1u) * p.groups;
    }
    for (var c = 0u; c < COLS; c++) { // unroll
        x_start[c] = x_base(tile_row(tile, c)) / 4u;
    }
    let cols = select(0u, p.cols, wanted && tile.count > 0u);
    return glu_products(tile, w_base, x_start, cols, lane, all * p.groups);
}

// Results of an invocation that has whole rows (LANES = 1).
fn store_own(tile: Tile, first: u32, found: Products) {
    for (var c = 0u; c < COLS; c++) { // unroll
        var factor = 1.0;
        if (NORM == 1u) { // static
            factor = norm_factor(found.squares[c]);
        }
        for (var r = 0u; r < ROWS; r++) { // unroll
            store(tile, c, first + r * TEAMS, found.sums[r * COLS + c] * factor);
        }
    }
}

// Shares of sums to workgroup memory. Every invocation of the workgroup must call it.
fn leave_partials(found: Products, team: u32, lane: u32, who: Ids) {
    let by = folded_by(who);
    for (var r = 0u; r < ROWS; r++) { // unroll
        for (var c = 0u; c < COLS; c++) { // unroll
            let own = found.sums[r * COLS + c];
            let sum = vec2<f32>(fold(own.x, who), fold(own.y, who));
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
fn store_partials(tile: Tile, lid: u32, block: u32, shares: u32) {
    for (var o = lid; o < ROWS * COLS * TEAMS; o += WG) {
        let c = o / TEAMS % COLS;
        var sum = vec2<f32>(0.0);
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
        store(tile, c, block * (TEAMS * ROWS) + o % TEAMS + o / (TEAMS * COLS) * TEAMS, sum);
    }
}

// With CHOOSE = 1: the experts of the token that row y of the grid belongs to. Every invocation of the workgroup must call it.
fn choose_experts(wg: vec3<u32>, lid: u32) {
    if (CHOOSE == 1u) { // static
        let t = min(wg.y / slots(), frame.tokens - 1u);
        choose(t, lid);
        if (wg.x == 0u && wg.y % slots() == 0u) {
            write_choice(t, lid);
        }
    }
}

@compute @workgroup_size(WG)
fn main(who: Ids) {
    let lid = place_of(who);
    choose_experts(who.wg, lid);
    let tile = tile_at(who.wg.y);
    let lane = lane_of(lid);
    let team = lid / LANES;
    let first = who.wg.x * (TEAMS * ROWS) + team;
    let found = own_products(tile, first, lane);
    if (LANES == 1u) { // static
        store_own(tile, first, found);
    } else {
        leave_partials(found, team, lane, who);
        workgroupBarrier();
        store_partials(tile, lid, who.wg.x, LANES / folded_by(who));
    }
}
