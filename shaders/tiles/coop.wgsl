// The tiles that subgroups multiply with cooperative matrices, SIDE by SIDE: two blocks of weight rows, each with two by two of
// them, which the workgroup's subgroups take in turn, however many they are. The
// linked `tiles/coop16.wgsl` or `tiles/coop8.wgsl` says of what numbers they are; sums are in f32.
struct Ids {
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
}
var<workgroup> weight_tile: array<Number, TM * 32>;  // [row, column of the group]
var<workgroup> x_tile: array<Number, COLS * 32>;     // [row, column of the group]
var<workgroup> sum_tile: array<f32, TM * COLS>;      // [row of x, row of weights]
var<workgroup> columns: u32;                         // rows of x of the tile
var<workgroup> teams: u32;                           // subgroups of the workgroup

fn keep_weights(i: u32, v: array<vec4<f32>, 8>) {
    for (var q = 0u; q < 8u; q++) { // unroll
        weight_tile[i * 32u + q * 4u] = Number(v[q].x);
        weight_tile[i * 32u + q * 4u + 1u] = Number(v[q].y);
        weight_tile[i * 32u + q * 4u + 2u] = Number(v[q].z);
        weight_tile[i * 32u + q * 4u + 3u] = Number(v[q].w);
    }
}

fn stage_x(count: u32, j: u32, lid: u32) {
    for (var o = lid; o < 8u * count; o += WG) {
        let v = scaled(x_quad(x_starts[o / 8u], j, o % 8u), o / 8u);
        x_tile[o * 4u] = Number(v.x);
        x_tile[o * 4u + 1u] = Number(v.y);
        x_tile[o * 4u + 2u] = Number(v.z);
        x_tile[o * 4u + 3u] = Number(v.w);
    }
}

fn product(tile: Tile, first: i32, rows: u32, ids: Ids) {
    for (var c = ids.lid; c < COLS; c += WG) {
        x_starts[c] = x_base(tile_row(tile, c)) / 4u;
    }
    if (ids.lid == 0u) {
        columns = tile.count;
        teams = max(ids.subgroups, 1u);
    }
    let at_once = workgroupUniformLoad(&teams);
    prepare_x(ids.lid);
    for (var block = 0u; block < 2u; block += at_once) {
        // A subgroup beyond the last block does what another does.
        multiply(tile, first, rows, min(block + ids.subgroup, 1u), ids);
    }
}

// A block of two by two matrices: two of weight rows, each with two of rows of x; what lies beyond the tile's rows of x is not
// used.
fn multiply(tile: Tile, first: i32, rows: u32, block: u32, ids: Ids) {
    // Said so that the compiler knows that all invocations go the same way.
    let count = workgroupUniformLoad(&columns);
    let top = 2u * SIDE * block;
    var s00: Sums;
    var s01: Sums;
    var s10: Sums;
    var s11: Sums;
    let groups = groups_of(tile, first, rows);
    for (var j = 0u; j < groups; j++) {
        for (var i = ids.lid; i < TM; i += WG) {
            stage_weights(tile, ids.wg.x, i, j);
        }
        stage_x(count, j, ids.lid);
        workgroupBarrier();
        for (var k = 0u; k < 32u; k += SIDE) {
            let a0 = coopLoadT<Left>(&weight_tile[top * 32u + k], 32u);
            let a1 = coopLoadT<Left>(&weight_tile[(top + SIDE) * 32u + k], 32u);
            let b0 = coopLoad<Right>(&x_tile[k], 32u);
            s00 = coopMultiplyAdd(a0, b0, s00);
            s10 = coopMultiplyAdd(a1, b0, s10);
            if (count > SIDE) {
                let b1 = coopLoad<Right>(&x_tile[SIDE * 32u + k], 32u);
                s01 = coopMultiplyAdd(a0, b1, s01);
                s11 = coopMultiplyAdd(a1, b1, s11);
            }
        }
        workgroupBarrier();
    }
    coopStore(s00, &sum_tile[top], TM);
    coopStore(s10, &sum_tile[top + SIDE], TM);
    coopStore(s01, &sum_tile[SIDE * TM + top], TM);
    coopStore(s11, &sum_tile[SIDE * TM + top + SIDE], TM);
    workgroupBarrier();
}

// The sum of weight row i and row c of x.
fn result(i: u32, c: u32) -> f32 {
    return unscaled(sum_tile[c * TM + i], c);
}

