// The loop of the tiles that invocations multiply one by one: 8 by 8 of them, each 8 rows of weights by 4 of x, 8 apart.
struct Ids {
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
}

fn product(tile: Tile, first: i32, rows: u32, ids: Ids) {
    for (var c = ids.lid; c < COLS; c += WG) {
        x_starts[c] = x_base(tile_row(tile, c)) / 4u;
    }
    workgroupBarrier();
    prepare_x(ids.lid);
    var sums: array<f32, 32>;
    let groups = groups_of(tile, first, rows);
    for (var j = 0u; j < groups; j++) {
        for (var i = ids.lid; i < TM; i += WG) {
            stage_weights(tile, ids.wg.x, i, j);
        }
        stage_x(tile.count, j, ids.lid);
        workgroupBarrier();
        multiply(tile.count, ids.lid, &sums);
        workgroupBarrier();
    }
    let ti = ids.lid % 8u;
    let tj = ids.lid / 8u;
    for (var r = 0u; r < 8u; r++) { // unroll
        leave(tj * TM + ti + 8u * r, vec4<f32>(sums[r * 4u], sums[r * 4u + 1u], sums[r * 4u + 2u], sums[r * 4u + 3u]));
    }
    workgroupBarrier();
}

