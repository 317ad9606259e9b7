
// linear_glu: y = act(G x + b) * (U x + c), the first half of a gated feed-forward network; G and U quantised, in one pass
// over x. Biases are of experts only.
//
// A workgroup takes WG/LANES * ROWS rows of both segments and one tile of up to COLS rows of x (which rows: the linked
// `rows/*.wgsl`). LANES invocations share a row: lane l takes groups l, l + LANES, ... of it; an invocation works on ROWS
// rows at once. With LANES = 1 there is no barrier. Products and sums are in f32; weights are expanded to f32 in registers.
//
// Grid: x = ceil(rows of the segment (experts: of one expert's matrix) / (WG/LANES * ROWS)), y = tiles.

struct Params {
    outputs: u32,
    row0: u32,
    rows: u32,
    groups: u32,
    cols: u32,
    out: u32,
    x_offset: u32,
    x_stride: u32,
    y_offset: u32,
    y_stride: u32,
    eps: f32,
    used: u32,
    x_slots: u32,
    ids_offset: u32,
    ids_stride: u32,
    flags: u32,
    bias_up: u32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;          // [R, K]
@group(0) @binding(3) var<storage, read> gate_data: array<vec4<u32>>;  // rows row0 .. row0 + rows of [I, K]
@group(0) @binding(4) var<storage, read> up_data: array<vec4<u32>>;    // the same rows of [I, K]
@group(0) @binding(5) var<storage, read_write> y: array<f32>;          // [R, I]
@group(0) @binding(6) var<storage, read> bias: array<f32>;             // [E, I] of the gate, from bias_up on [E, I] of up

const BIAS: u32 = 1u;

const TEAMS: u32 = WG / LANES;
// Partial sums, one more a row than needed: lanes that add up neighbouring rows then read different banks.
var<workgroup> partials: array<vec2<f32>, ROWS * COLS * TEAMS * (LANES + 1u)>;
var<workgroup> partial_squares: array<f32, COLS * (LANES + 1u)>;

fn store(tile: Tile, c: u32, i: u32, sum: vec2<f32>) {
    if (c >= tile.count || segment_row(tile, i) >= p.rows) {
        return;
    }
    var v = sum;
    if ((p.flags & BIAS) != 0u) {
        let at = bias_index(tile, i);
        v += vec2<f32>(bias[at], bias[p.bias_up + at]);
    }
    y[y_base(tile_row(tile, c)) + output_column(i)] = gated(v.x, v.y);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let tile = tile_at(wg.y);
    var lane = lid % LANES;
    if (LANES == 1u) { // static
        // Said outright, so that every compiler sees that all invocations read the same x at the same time.
        lane = 0u;
    }
    let team = lid / LANES;
    let first = wg.x * (TEAMS * ROWS) + team;
    let n = p.rows * p.groups;

    // Where the rows start; a row that is not there reads the last one, and is not stored.
    var w_base: array<u32, ROWS>;
    var x_start: array<u32, COLS>;
    var wanted = false;
    for (var r = 0u; r < ROWS; r++) { // unroll
        let row = segment_row(tile, first + r * TEAMS);
        wanted = wanted || row < p.rows;
        w_base[r] = min(row, p.rows - 1u) * p.groups;
    }
    for (var c = 0u; c < COLS; c++) { // unroll
        x_start[c] = x_base(tile_row(tile, c)) / 4u;
    }
    let groups = select(0u, p.groups, wanted && tile.count > 0u);

    var acc: array<vec2<f32>, ROWS * COLS>;  // gate and up
    var squares: array<f32, COLS>;
    for (var j = lane; j < groups; j += LANES) {
        for (var r = 0u; r < ROWS; r++) { // unroll
            let a_gate = gate_dequant(w_base[r] + j, n);
            let a_up = up_dequant(w_base[r] + j, n);
            for (var c = 0u; c < COLS; c++) { // unroll
                if (NORM == 1u) { // static
                    let raw = x_group(x_start[c], j);
                    if (r == 0u) { // static
                        squares[c] += dot_group(raw, raw);
                    }
                    let normed = norm_group(raw, j);
                    acc[r * COLS + c] += vec2<f32>(dot_group(a_gate, normed), dot_group(a_up, normed));
                } else {
                    let xs = x_group(x_start[c], j);
                    acc[r * COLS + c] += vec2<f32>(dot_group(a_gate, xs), dot_group(a_up, xs));
                }
            }
        }
    }

    if (LANES == 1u) { // static
        for (var c = 0u; c < COLS; c++) { // unroll
            var factor = 1.0;
            if (NORM == 1u) { // static
                factor = norm_factor(squares[c]);
            }
            for (var r = 0u; r < ROWS; r++) { // unroll
                store(tile, c, first + r * TEAMS, acc[r * COLS + c] * factor);
            }
        }
    } else {
        for (var r = 0u; r < ROWS; r++) { // unroll
            for (var c = 0u; c < COLS; c++) { // unroll
                partials[((r * COLS + c) * TEAMS + team) * (LANES + 1u) + lane] = acc[r * COLS + c];
            }
        }
        if (NORM == 1u) { // static
            if (team == 0u) {
                for (var c = 0u; c < COLS; c++) { // unroll
                    partial_squares[c * (LANES + 1u) + lane] = squares[c];
                }
            }
        }
        workgroupBarrier();
        for (var o = lid; o < ROWS * COLS * TEAMS; o += WG) {
            let c = o / TEAMS % COLS;
            var sum = vec2<f32>(0.0);
            var sum_squares = 0.0;
            for (var l = 0u; l < LANES; l++) {
                sum += partials[o * (LANES + 1u) + l];
                if (NORM == 1u) { // static
                    sum_squares += partial_squares[c * (LANES + 1u) + l];
                }
            }
            if (NORM == 1u) { // static
                sum *= norm_factor(sum_squares);
            }
            store(tile, c, wg.x * (TEAMS * ROWS) + o % TEAMS + o / (TEAMS * COLS) * TEAMS, sum);
        }
    }
}
