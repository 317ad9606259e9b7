
// attend: causal attention of grouped query heads over the cache, with an online softmax (Milakov and Gimelshein 2018;
// Dao et al. 2022). A sliding window (or chunks of positions) and attention sinks are parameters.
//
// The query rows of one kv head are its G = heads/kv_heads query heads, token after token; a workgroup takes ROWS of them,
// so that in decode all heads of a kv head, in prefill several tokens too, share each key and value that is read. It goes
// through the positions WG at a time, in four passes: each invocation scores one position for all rows (`score_position`);
// the rows' maxima are found (`find_maxima`); scores become weights and the sums so far shrink to the new maxima (`weigh`);
// each invocation owns four columns of the result and adds the weighted values of all positions, or of one of PARTS shares of
// them where there are fewer columns than invocations (`add_values`). At the end the shares are added up (`join_parts`). With
// SPLIT = 1 a workgroup sees only one split of the positions, the z-th that the window of the step's first token touches,
// and leaves sums, maximum and denominator to `attend_reduce`. f32 throughout; keys and values as the cache stores them.
//
// Grid: x = kv_heads, y = ceil(T*G / ROWS) (BATCH = 1: T * ceil(G / ROWS)), z = 1 or splits.

@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;        // [T, heads*Dk]
@group(0) @binding(3) var<storage, read> k_cache: array<KvWord>;     // [sequences, kv_heads, ctx, Dk/4 and scales]
@group(0) @binding(4) var<storage, read> v_cache: array<KvWord>;     // [sequences, kv_heads, ctx, Dv/4 and scales]
@group(0) @binding(5) var<storage, read> sinks: array<f32>;          // [heads]
@group(0) @binding(6) var<storage, read_write> y: array<vec4<f32>>;  // [T, heads*Dv], or [T, heads, splits, Dv + 4]

const K4: u32 = K_DIM / 4u;
const V4: u32 = V_DIM / 4u;
// Words of a position's key. Where the cache has scales, they come behind the quants.
const K_ROW: u32 = K4 + KV_SCALES * ((K4 + 15u) / 16u);
// The same of a value, and where its scales begin: values may be the first part of keys, in the same buffer (V_IN_K).
const V_ROW: u32 = (V4 + KV_SCALES * ((V4 + 15u) / 16u)) * (1u - V_IN_K) + K_ROW * V_IN_K;
const V_SCALES: u32 = V4 * (1u - V_IN_K) + K4 * V_IN_K;
// Columns (in fours) of an invocation, and shares that the positions are split into.
const OWN: u32 = (V4 + WG - 1u) / WG;
const PARTS: u32 = (WG / V4) + (1u - min(1u, WG / V4));
// Invocations that look for the maximum of a row. ROWS is a power of two.
const SHARES: u32 = WG / ROWS;
const NONE: f32 = -1e30;

var<workgroup> queries: array<vec4<f32>, ROWS * K4>;
var<workgroup> scores: array<f32, ROWS * WG>;  // of the WG positions at hand; then their weights
var<workgroup> shares: array<f32, WG>;
var<workgroup> maxima: array<f32, ROWS>;
var<workgroup> merge: array<vec4<f32>, (PARTS - 1u) * V4 * ROWS + 1u>;
var<workgroup> merge_sum: array<f32, PARTS * ROWS>;

// What a workgroup works on.
struct Task {
    kv_head: u32,
    group: u32,      // query heads of a kv head
    first: u32,      // the first of its query rows
    all_rows: u32,   // one more than the last query row that it may take
    past: u32,       // token t of this workgroup stands at `past` + t, also where that wraps round
    cache_row: u32,  // row of the caches where the positions of its sequence and head begin
    begin: u32,      // positions that any of its rows sees: from here
    end: u32,        // to before here
}

// What an invocation has added up so far, for each row: its columns of weighted values, the sum of its weights, and the
// maximum that both are relative to.
struct Sums {
    values: array<vec4<f32>, ROWS * OWN>,
    weights: array<f32, ROWS>,
    top: array<f32, ROWS>,
}

// The first position that a query at this one sees.
fn first_seen(position: u32) -> u32 {
    if (p.window == 0u) {
        return 0u;
    }
    if (p.attention_chunks != 0u) {
        return position - position % p.window;
    }
    return position + 1u - min(position + 1u, p.window);
}

// The task without its positions; there is none where `first` is not below `all_rows`.
fn task_at(wg: vec3<u32>) -> Task {
    var t: Task;
    t.kv_head = wg.x;
    t.group = p.heads / p.kv_heads;
    t.all_rows = frame.tokens * t.group;
    t.first = wg.y * ROWS;
    if (BATCH == 1u) { // static
        // Only rows of one token: the next may belong to another sequence.
        let each = (t.group + ROWS - 1u) / ROWS;
        t.first = wg.y / each * t.group + wg.y % each * ROWS;
        t.all_rows = min(t.all_rows, (wg.y / each + 1u) * t.group);
    }
    return t;
}

// Where its positions lie, and which of them it sees.
fn with_positions(task: Task, split: u32) -> Task {
    var t = task;
    let last_token = (min(t.first + ROWS, t.all_rows) - 1u) / t.group;
    t.past = position_of(last_token) - last_token;
    t.cache_row = (sequence_of(last_token) * p.kv_heads + t.kv_head) * p.ctx;
    t.begin = first_seen(t.past + t.first / t.group);
    t.end = min(t.past + last_token + 1u, p.ctx);
    if (SPLIT == 1u) { // static
        let seen = frame.past + 1u;
        var at = split;
        if (p.window != 0u) {
            at += (seen - min(seen, p.window)) / p.split_len;
        }
        t.begin = max(t.begin, at * p.split_len);
        t.end = min(t.end, (at + 1u) * p.split_len);
    }
    return t;
}

// The scaled queries of the rows, to workgroup memory.
fn load_queries(t: Task, lid: u32) {
    for (var i = lid; i < ROWS * K4; i += WG) {
        let row = min(t.first + i / K4, t.all_rows - 1u);
        let head = t.kv_head * t.group + row % t.group;
        queries[i] = q[(p.q_offset + row / t.group * p.q_stride) / 4u + head * K4 + i % K4] * p.scale;
    }
    workgroupBarrier();
}

// Scores of this invocation's position, the lid-th of `count` from `start` on: NONE for rows that do not see it.
fn score_position(t: Task, start: u32, count: u32, lid: u32) -> array<f32, ROWS> {
    let at = (t.cache_row + start + min(lid, count - 1u)) * K_ROW;
    var score: array<f32, ROWS>;
    var scale = 1.0;
    for (var d = 0u; d < K4; d++) {
        var key = kv_load(k_cache[at + d]);
        if (KV_SCALES == 1u) { // static
            if (d % 8u == 0u) {
                scale = kv_scale(k_cache[at + K4 + d / 16u], d / 8u);
            }
            key *= scale;
        }
        for (var i = 0u; i < ROWS; i++) { // unroll
            score[i] += dot(key, queries[i * K4 + d]);
        }
    }
    let here = start + lid;
    for (var i = 0u; i < ROWS; i++) { // unroll
        let position = t.past + (t.first + i) / t.group;
        let seen = lid < count && here <= position && here >= first_seen(position);
        score[i] = select(NONE, score[i], seen);
        scores[i * WG + lid] = score[i];
    }
    workgroupBarrier();
    return score;
}

// The maximum of each row's scores: WG/ROWS invocations go through a share of the scores each, then through the shares.
fn find_maxima(lid: u32) {
    var m = NONE;
    for (var s = 0u; s < WG; s += SHARES) {
        m = max(m, scores[lid % ROWS * WG + s + lid / ROWS]);
    }
    shares[lid] = m;
    workgroupBarrier();
    for (var s = 0u; s < SHARES; s++) {
        m = max(m, shares[s * ROWS + lid % ROWS]);
    }
    if (lid < ROWS) {
        maxima[lid] = m;
    }
    workgroupBarrier();
}

// The softmax so far: scores become weights relative to the new maxima, to which the sums shrink.
fn weigh(sums: ptr<function, Sums>, score: array<f32, ROWS>, lid: u32) {
    for (var i = 0u; i < ROWS; i++) { // unroll
        let m = max((*sums).top[i], maxima[i]);
        scores[i * WG + lid] = select(0.0, exp(score[i] - m), score[i] > NONE);
        let shrink = exp((*sums).top[i] - m);
        (*sums).top[i] = m;
        (*sums).weights[i] *= shrink;
        for (var o = 0u; o < OWN; o++) {
            (*sums).values[i * OWN + o] *= shrink;
        }
    }
    workgroupBarrier();
}

// Adds the weighted values of `count` positions from `start` on, of those that are this invocation's share.
fn add_values(sums: ptr<function, Sums>, t: Task, start: u32, count: u32, lid: u32) {
    let part = lid / V4;
    if (part < PARTS) {
        for (var s = part; s < count; s += PARTS) {
            for (var i = 0u; i < ROWS; i++) { // unroll
                (*sums).weights[i] += scores[i * WG + s];
            }
            for (var o = 0u; o < OWN; o++) {
                let column = min(lid % V4 + o * WG, V4 - 1u);
                let at = (t.cache_row + start + s) * V_ROW;
                var value = kv_load(v_cache[at + column]);
                if (KV_SCALES == 1u) { // static
                    value *= kv_scale(v_cache[at + V_SCALES + column / 16u], column / 8u);
                }
                for (var i = 0u; i < ROWS; i++) { // unroll
                    (*sums).values[i * OWN + o] = fma(vec4<f32>(scores[i * WG + s]), value, (*sums).values[i * OWN + o]);
                }
            }
        }
    }
    workgroupBarrier();
}

// Leaves the sums of all shares where the invocations of the first find them.
fn join_parts(sums: ptr<function, Sums>, lid: u32) {
    let part = lid / V4;
    if (part < PARTS && lid % V4 == 0u) {
        for (var i = 0u; i < ROWS; i++) { // unroll
            merge_sum[i * PARTS + part] = (*sums).weights[i];
        }
    }
    if (part > 0u && part < PARTS) {
        for (var i = 0u; i < ROWS; i++) { // unroll
            merge[(i * (PARTS - 1u) + part - 1u) * V4 + lid % V4] = (*sums).values[i * OWN];
        }
    }
    workgroupBarrier();
}

// For `attend_reduce`: row i's sums as they are, its maximum and its denominator.
fn store_split(sums: ptr<function, Sums>, i: u32, to: u32, total: f32, lid: u32) {
    for (var o = 0u; o < OWN; o++) {
        if (lid + o * WG < V4) {
            y[to + lid + o * WG] = (*sums).values[i * OWN + o];
        }
    }
    if (lid == 0u) {
        y[to + V4] = vec4<f32>((*sums).top[i], total, 0.0, 0.0);
    }
}

// Row i's result: its sums over the denominator, in which a sink counts as a position without a value.
fn store_row(sums: ptr<function, Sums>, i: u32, to: u32, head: u32, weights: f32, lid: u32) {
    var total = weights;
    var shrink = 1.0;
    if (p.sinks_on != 0u) {
        let m = max((*sums).top[i], sinks[head]);
        shrink = exp((*sums).top[i] - m);
        total = total * shrink + exp(sinks[head] - m);
    }
    for (var o = 0u; o < OWN; o++) {
        if (lid + o * WG < V4) {
            y[to + lid + o * WG] = (*sums).values[i * OWN + o] * (shrink / total);
        }
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    var task = task_at(wg);
    if (task.first >= task.all_rows) {
        return;
    }
    task = with_positions(task, wg.z);
    load_queries(task, lid);

    var sums: Sums;
    for (var i = 0u; i < ROWS; i++) { // unroll
        sums.top[i] = NONE;
    }
    for (var start = task.begin; start < task.end; start += WG) {
        let count = min(task.end - start, WG);
        let score = score_position(task, start, count, lid);
        find_maxima(lid);
        weigh(&sums, score, lid);
        add_values(&sums, task, start, count, lid);
    }
    join_parts(&sums, lid);
    if (lid / V4 > 0u) {
        return;
    }
    for (var i = 0u; i < ROWS; i++) { // unroll
        if (task.first + i < task.all_rows) {
            var total = 0.0;
            for (var o = 0u; o < PARTS; o++) {
                total += merge_sum[i * PARTS + o];
            }
            for (var o = 1u; o < PARTS; o++) {
                sums.values[i * OWN] += merge[(i * (PARTS - 1u) + o - 1u) * V4 + lid];
            }
            let token = (task.first + i) / task.group;
            let head = task.kv_head * task.group + (task.first + i) % task.group;
            if (SPLIT == 1u) { // static
                store_split(&sums, i, ((token * p.heads + head) * p.splits + wg.z) * (V4 + 1u), total, lid);
            } else {
                store_row(&sums, i, (p.y_offset + token * p.y_stride) / 4u + head * V4, head, total, lid);
            }
        }
    }
}
