
// linear: y = [residual +] [factor *] [sigmoid(g) *] [act] (W x + b), W quantised.
//
// A workgroup takes WG/LANES * ROWS rows of the segment and one tile of up to COLS rows of x (which rows: the linked
// `rows/*.wgsl`). LANES invocations share a row: lane l takes groups l, l + LANES, ... of it; an invocation works on ROWS
// rows at once, so that each group of x that it reads serves ROWS rows and each group of weights COLS rows of x. With
// LANES = 1 there is no barrier. Products and sums are in f32; weights are expanded to f32 in registers.
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
    flags: u32,
    residual_offset: u32,
    residual_stride: u32,
    gate_offset: u32,
    gate_stride: u32,
    eps: f32,
    used: u32,
    x_slots: u32,
    ids_offset: u32,
    ids_stride: u32,
    factor: f32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;       // [R, K]
@group(0) @binding(3) var<storage, read> w_data: array<vec4<u32>>;  // rows row0 .. row0 + rows of [N, K]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;       // [R, N]
@group(0) @binding(5) var<storage, read> bias: array<f32>;          // [N]; of experts [E, N]
@group(0) @binding(6) var<storage, read> residual: array<f32>;      // [R, N]
@group(0) @binding(7) var<storage, read> gate: array<f32>;          // [R, 1]

const BIAS: u32 = 1u;
const RESIDUAL: u32 = 2u;
const GATE: u32 = 4u;
const FACTOR: u32 = 16u;

const TEAMS: u32 = WG / LANES;
// Partial sums, one more a row than needed: lanes that add up neighbouring rows then read different banks.
var<workgroup> partials: array<f32, ROWS * COLS * TEAMS * (LANES + 1u)>;
var<workgroup> partial_squares: array<f32, COLS * (LANES + 1u)>;

fn store(tile: Tile, c: u32, i: u32, sum: f32) {
    if (c >= tile.count || segment_row(tile, i) >= p.rows) {
        return;
    }
    let row = tile_row(tile, c);
    let n = output_column(i);
    var v = sum;
    if ((p.flags & BIAS) != 0u) {
        v += bias[bias_index(tile, i)];
    }
    if (ACT == 9u) { // static
    } else {
        v = activate(v);
    }
    if ((p.flags & GATE) != 0u) {
        v = v / (1.0 + exp(min(-gate[p.gate_offset + row * p.gate_stride], 80.0)));
    }
    if ((p.flags & FACTOR) != 0u) {
        v *= p.factor;
    }
    if ((p.flags & RESIDUAL) != 0u) {
        v += residual[p.residual_offset + row * p.residual_stride + n];
    }
    y[y_base(row) + n] = v;
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

    var acc: array<f32, ROWS * COLS>;
    var squares: array<f32, COLS>;
    for (var j = lane; j < groups; j += LANES) {
        for (var r = 0u; r < ROWS; r++) { // unroll
            let w = w_dequant(w_base[r] + j, n);
            for (var c = 0u; c < COLS; c++) { // unroll
                if (NORM == 1u) { // static
                    let raw = x_group(x_start[c], j);
                    if (r == 0u) { // static
                        squares[c] += dot_group(raw, raw);
                    }
                    acc[r * COLS + c] += dot_group(w, norm_group(raw, j));
                } else {
                    acc[r * COLS + c] += dot_group(w, x_group(x_start[c], j));
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
            var sum = 0.0;
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
