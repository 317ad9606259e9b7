
// expert_down_add: y[t] = start + factor * sum over the k slots of weights[t, j] * (W_e h[t, j] + b_e), e = ids[t, j];
// W quantised, b may be missing.
// The start is the residual, what y holds (second and later segments of W), or zero.
//
// With a shared expert (the linked `down/*.wgsl`), its product with the end of the row of h comes last, times sigmoid(g).
//
// A workgroup takes WG/LANES/SLOTS * ROWS rows of the matrix and one token. Its teams of LANES invocations take SLOTS experts side by
// side, each one and the SLOTS-th after it and so on, into the same registers, so that h never goes through memory a second
// time. LANES invocations share a row (lane l takes groups l, l + LANES, ...); with LANES = 1 there is no barrier. Products and
// sums are in f32.
//
// Grid: x = ceil(H / (WG/LANES/SLOTS * ROWS)), y = T.

@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;       // h: [T, k*I]
@group(0) @binding(3) var<storage, read> w_data: array<vec4<u32>>;  // rows row0 .. row0 + rows of [E*H, I]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;       // [T, H]
@group(0) @binding(5) var<storage, read> ids: array<u32>;           // [T, k]
@group(0) @binding(6) var<storage, read> weights: array<f32>;       // [T, k]
@group(0) @binding(7) var<storage, read> residual: array<f32>;      // [T, H]

// Partial sums, one more a row than needed: lanes that add up neighbouring rows then read different banks.
var<workgroup> partials: array<f32, ROWS * TEAMS * (LANES + 1u)>;

// Teams of a slot: a row of the matrix is that of SLOTS teams.
const ROW_TEAMS: u32 = TEAMS / SLOTS;

struct Products {
    sums: array<f32, ROWS * COLS>,
    squares: array<f32, COLS>,
}

fn store(t: u32, n: u32, sum: f32) {
    if (n >= p.out || t >= frame.tokens) {
        return;
    }
    let at = p.y_offset + t * p.y_stride + n;
    var v = sum * p.factor;
    if ((p.flags & RESIDUAL) != 0u) {
        v += residual[p.residual_offset + t * p.residual_stride + n];
    }
    if ((p.flags & ACCUMULATE) != 0u) {
        v += y[at];
    }
    y[at] = v;
}

// An invocation's share of the weighted products of its rows, ROW_TEAMS apart from `first` on, with token t's h: of the slots
// from `own` on, SLOTS apart.
fn own_sums(t: u32, first: u32, own: u32, lane: u32) -> array<f32, ROWS> {
    let n = p.rows * p.groups;
    let slots = select(0u, p.used, t < frame.tokens);
    var acc: array<f32, ROWS>;
    var x_start: array<u32, COLS>;
    var w_base: array<u32, ROWS>;
    for (var slot = own; slot < slots; slot += SLOTS) {
        let expert = ids[p.ids_offset + t * p.ids_stride + slot];
        let weight = weights[p.weights_offset + t * p.weights_stride + slot];
        x_start[0] = (p.x_offset + t * p.x_stride + slot * p.cols) / 4u;
        // Where the rows start; a row of another segment reads the last one, with weight 0.
        var wanted = false;
        var factor: array<f32, ROWS>;
        for (var r = 0u; r < ROWS; r++) { // unroll
            let i = first + r * ROW_TEAMS;
            let row = expert * p.out + i - p.row0;
            let here = i < p.out && row < p.rows;
            wanted = wanted || here;
            factor[r] = select(0.0, weight, here);
            w_base[r] = min(row, p.rows - 1u) * p.groups;
        }
        let found = w_products_to_COLS(1u, w_base, x_start, select(0u, p.cols, wanted), lane, n);
        if (lane == 0u) {
            for (var r = 0u; r < ROWS; r++) { // unroll
                acc[r] += factor[r] * slot_bias(expert, first + r * ROW_TEAMS);
            }
        }
        for (var r = 0u; r < ROWS; r++) { // unroll
            acc[r] += factor[r] * found.sums[r];
        }
    }
    if (SHARED == 1u) { // static
        x_start[0] = (p.x_offset + t * p.x_stride + p.used * p.cols) / 4u;
        for (var r = 0u; r < ROWS; r++) { // unroll
            w_base[r] = min(first + r * ROW_TEAMS, p.out - 1u) * p.shared_groups;
        }
        // The last team of each row, which has fewest experts of a token.
        let cols = select(0u, p.shared_cols, first < p.out && slots > 0u && own == SLOTS - 1u);
        let found = shared_products_to_COLS(1u, w_base, x_start, cols, lane, p.out * p.shared_groups);
        let factor = shared_factor(t);
        for (var r = 0u; r < ROWS; r++) { // unroll
            acc[r] += factor * found.sums[r];
        }
    }
    return acc;
}

// Shares of sums to workgroup memory. Every invocation of the workgroup must call it.
fn leave_partials(sums: array<f32, ROWS>, team: u32, lane: u32, who: Ids) {
    let by = folded_by(who);
    for (var r = 0u; r < ROWS; r++) { // unroll
        let sum = fold(sums[r], who);
        if (lane % by == 0u) {
            partials[(r * TEAMS + team) * (LANES + 1u) + lane / by] = sum;
        }
    }
}

@compute @workgroup_size(WG)
fn main(who: Ids) {
    let lid = place_of(who);
    let t = who.wg.y;
    let lane = lane_of(lid);
    let team = lid / LANES;
    let first = who.wg.x * (ROW_TEAMS * ROWS) + team % ROW_TEAMS;
    let sums = own_sums(t, first, team / ROW_TEAMS, lane);
    if (LANES == 1u) { // static
        for (var r = 0u; r < ROWS; r++) { // unroll
            store(t, first + r * ROW_TEAMS, sums[r]);
        }
    } else {
        leave_partials(sums, team, lane, who);
        workgroupBarrier();
        // First the lanes of each team, then the teams of each row.
        for (var o = lid; o < ROWS * TEAMS; o += WG) {
            var sum = 0.0;
            for (var l = 0u; l < LANES / folded_by(who); l++) {
                sum += partials[o * (LANES + 1u) + l];
            }
            partials[o * (LANES + 1u)] = sum;
        }
        workgroupBarrier();
        for (var o = lid; o < ROWS * ROW_TEAMS; o += WG) {
            var sum = 0.0;
            for (var s = 0u; s < SLOTS; s++) {
                sum += partials[(o / ROW_TEAMS * TEAMS + s * ROW_TEAMS + o % ROW_TEAMS) * (LANES + 1u)];
            }
            store(t, who.wg.x * (ROW_TEAMS * ROWS) + o, sum);
        }
    }
}
