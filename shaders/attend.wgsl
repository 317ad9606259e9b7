
// attend: causal attention of grouped query heads over the cache, with an online softmax (Milakov and Gimelshein 2018;
// Dao et al. 2022). A sliding window (or chunks of positions) and attention sinks are parameters.
//
// The query rows of one kv head are its G = heads/kv_heads query heads, token after token; a workgroup takes ROWS of them,
// so that in decode all heads of a kv head, in prefill several tokens too, share each key and value that is read. It goes
// through its positions KEYS at a time, in three passes with a barrier behind each: TEAM invocations share a position's key and
// leave a part of its score for each row (`score_position`); each invocation takes some positions of one row, whose scores
// become weights relative to the row's maximum so far (`find_maxima`, `weigh`); each invocation owns four columns of the result
// and adds the weighted values of all positions, or of one of PARTS shares of them where there are fewer columns than invocations
// (`add_values`). Both passes that read the cache ask for LOADS words before they use the first. At the end the shares are added
// up (`join_parts`).
//
// Where a step's positions are shared out (`pieces.wgsl`), a workgroup sees the z-th piece of them and leaves sums, maximum and
// denominator to `attend_reduce`. f32 throughout; keys and values as the cache stores them.
//
// Grid: x = kv_heads, y = ceil(T*G / ROWS) (BATCH = 1: T * ceil(G / ROWS)), z = pieces. A long dispatch may be cut in y: then
// it begins at `frame.first_block`.

@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;        // [T, heads*Dk]
@group(0) @binding(3) var<storage, read> k_cache: array<KvWord>;     // [sequences, kv_heads, ctx, Dk/4 and scales]
@group(0) @binding(4) var<storage, read> v_cache: array<KvWord>;     // [sequences, kv_heads, ctx, Dv/4 and scales]
@group(0) @binding(5) var<storage, read> sinks: array<f32>;          // [heads]
@group(0) @binding(6) var<storage, read_write> y: array<vec4<f32>>;  // [T, heads*Dv]; written where there is one piece
@group(0) @binding(7) var<storage, read_write> partials: array<vec4<f32>>;  // [T, heads, pieces, Dv + 4]; where there are more

const K4: u32 = K_DIM / 4u;
const V4: u32 = V_DIM / 4u;
// Words of a position's key. Where the cache has scales, they come behind the quants.
const K_ROW: u32 = K4 + KV_SCALES * ((K4 + 15u) / 16u);
// The same of a value, and where its scales begin: values may be the first part of keys, in the same buffer (V_IN_K).
const V_ROW: u32 = (V4 + KV_SCALES * ((V4 + 15u) / 16u)) * (1u - V_IN_K) + K_ROW * V_IN_K;
const V_SCALES: u32 = V4 * (1u - V_IN_K) + K4 * V_IN_K;
// Positions of a round; words of its key that an invocation takes at most, and whether the last of them may be beyond it.
const KEYS: u32 = WG / TEAM;
const K_TAIL: bool = K4 % (TEAM * LOADS) != 0u;
// Columns (in fours) of an invocation, and shares that the positions are split into.
const OWN: u32 = (V4 + WG - 1u) / WG;
const PARTS: u32 = (WG / V4) + (1u - min(1u, WG / V4));
// Invocations that look at the scores of a row, and positions of each: ROWS is a power of two, TEAM at most ROWS.
const SHARES: u32 = WG / ROWS;
const PER: u32 = ROWS / TEAM;
const NONE: f32 = -1e30;

// The scaled queries, [row, K4]; at the end the shares' sums while they are added up.
var<workgroup> room: array<vec4<f32>, max(ROWS * K4, PARTS / 2u * V4 * ROWS)>;
var<workgroup> parts: array<f32, ROWS * WG>;             // [position, TEAM, row]: scores in parts
var<workgroup> maxima: array<f32, WG>;                   // [SHARES, row]
var<workgroup> weights: array<f32, (KEYS + 1u) * ROWS>;  // [position, row], and a position of weight 0
var<workgroup> shrinks: array<f32, ROWS>;
var<workgroup> tops: array<f32, ROWS>;

// What a workgroup works on.
struct Task {
    kv_head: u32,
    group: u32,      // query heads of a kv head
    first: u32,      // the first of its query rows
    all_rows: u32,   // one more than the last query row that it may take
    past: u32,       // token t of this workgroup stands at `past` + t, also where that wraps round
    unit: u32,       // its head of keys of its sequence, counted in the part of the cache that is bound
    cache_row: u32,  // row of the caches where its positions begin
    begin: u32,      // positions that any of its rows sees: from here
    end: u32,        // to before here
}

// What an invocation knows of the row whose scores it looks at.
struct Row {
    row: u32,
    share: u32,  // which of the row's invocations it is
    low: u32,    // positions that the row sees: from here
    high: u32,   // to here
    top: f32,    // the maximum so far
    sum: f32,    // weights of the invocation's positions, relative to it
}

// The task without its positions; there is none where `first` is not below `all_rows`.
fn task_at(wg: vec3<u32>) -> Task {
    let block = wg.y + frame.first_block;
    var t: Task;
    t.kv_head = wg.x;
    t.group = p.heads / p.kv_heads;
    t.all_rows = frame.tokens * t.group;
    t.first = block * ROWS;
    if (BATCH == 1u) { // static
        // Only rows of one token: the next may belong to another sequence.
        let each = (t.group + ROWS - 1u) / ROWS;
        t.first = block / each * t.group + block % each * ROWS;
        t.all_rows = min(t.all_rows, (block / each + 1u) * t.group);
    }
    return t;
}

// Where its positions lie, and which of them it sees.
fn with_positions(task: Task, piece: u32, cut: Pieces) -> Task {
    var t = task;
    let last_token = (min(t.first + ROWS, t.all_rows) - 1u) / t.group;
    t.past = position_of(last_token) - last_token;
    t.unit = sequence_of(last_token) * p.kv_heads + t.kv_head - p.first_unit;
    t.cache_row = t.unit * p.ctx;
    t.begin = first_seen(t.past + t.first / t.group);
    t.end = min(t.past + last_token + 1u, p.ctx);
    if (cut.count > 1u) {
        let at = pieces_begin(last_token) + piece * cut.length;
        t.begin = max(t.begin, at);
        t.end = min(t.end, at + cut.length);
    }
    return t;
}

// The row whose scores an invocation looks at. Neighbours look at neighbouring rows.
fn row_of_scores(t: Task, lid: u32) -> Row {
    let row = lid % ROWS;
    let position = t.past + (t.first + row) / t.group;
    return Row(row, lid / ROWS, first_seen(position), position, NONE, 0.0);
}

// The scaled queries of the rows, to workgroup memory.
fn load_queries(t: Task, lid: u32) {
    for (var i = lid; i < ROWS * K4; i += WG) {
        let row = min(t.first + i / K4, t.all_rows - 1u);
        let head = t.kv_head * t.group + row % t.group;
        room[i] = q[(p.q_offset + row / t.group * p.q_stride) / 4u + head * K4 + i % K4] * p.scale;
    }
    if (lid < ROWS) {
        weights[KEYS * ROWS + lid] = 0.0;
    }
    workgroupBarrier();
}

// Of the position lid / TEAM from `start` on this invocation's part of the score, for each row.
fn score_position(t: Task, start: u32, count: u32, lid: u32) {
    let at = (t.cache_row + start + min(lid / TEAM, count - 1u)) * K_ROW;
    var score: array<f32, ROWS>;
    for (var d = lid % TEAM; d < K4; d += TEAM * LOADS) {
        var words: array<KvWord, LOADS>;
        for (var u = 0u; u < LOADS; u++) { // unroll
            words[u] = k_cache[at + min(d + u * TEAM, K4 - 1u)];
        }
        for (var u = 0u; u < LOADS; u++) { // unroll
            let c = min(d + u * TEAM, K4 - 1u);
            var key = kv_load(words[u]);
            if (KV_SCALES == 1u) { // static
                key *= kv_scale(k_cache[at + K4 + c / 16u], c / 8u);
            }
            key = select(key, vec4<f32>(0.0), K_TAIL && d + u * TEAM >= K4);
            for (var i = 0u; i < ROWS; i++) { // unroll
                score[i] += dot(key, room[i * K4 + c]);
            }
        }
    }
    for (var i = 0u; i < ROWS; i++) { // unroll
        parts[lid * ROWS + i] = score[i];
    }
    workgroupBarrier();
}

// The scores of this invocation's positions of its row, NONE for those that the row does not see; their maximum goes to the row's
// other invocations.
fn find_maxima(r: Row, start: u32, count: u32, lid: u32) -> array<f32, PER> {
    var mine: array<f32, PER>;
    var m = NONE;
    for (var i = 0u; i < PER; i++) {
        let s = r.share + i * SHARES;
        var score = 0.0;
        for (var part = 0u; part < TEAM; part++) { // unroll
            score += parts[(s * TEAM + part) * ROWS + r.row];
        }
        let seen = s < count && start + s <= r.high && start + s >= r.low;
        mine[i] = select(NONE, score, seen);
        m = max(m, mine[i]);
    }
    maxima[lid] = m;
    workgroupBarrier();
    return mine;
}

// The softmax so far: scores become weights relative to the row's new maximum, to which what was added up will shrink.
fn weigh(row: Row, scores: array<f32, PER>) -> Row {
    var r = row;
    var mine = scores;
    var m = r.top;
    for (var s = 0u; s < SHARES; s++) {
        m = max(m, maxima[s * ROWS + r.row]);
    }
    let shrink = exp(r.top - m);
    r.top = m;
    r.sum *= shrink;
    for (var i = 0u; i < PER; i++) {
        let weight = select(0.0, exp(mine[i] - m), mine[i] > NONE);
        r.sum += weight;
        weights[(r.share + i * SHARES) * ROWS + r.row] = weight;
    }
    if (r.share == 0u) {
        shrinks[r.row] = shrink;
    }
    workgroupBarrier();
    return r;
}

// Adds the weighted values of `count` positions from `start` on, of those that are this invocation's share.
fn add_values(sums: ptr<function, array<vec4<f32>, ROWS * OWN>>, t: Task, start: u32, count: u32, lid: u32) {
    for (var i = 0u; i < ROWS; i++) { // unroll
        for (var o = 0u; o < OWN; o++) {
            (*sums)[i * OWN + o] *= shrinks[i];
        }
    }
    let part = lid / V4;
    if (part >= PARTS) {
        return;
    }
    for (var s = part; s < count; s += PARTS * LOADS) {
        for (var o = 0u; o < OWN; o++) {
            let column = min(lid % V4 + o * WG, V4 - 1u);
            var words: array<KvWord, LOADS>;
            for (var u = 0u; u < LOADS; u++) { // unroll
                words[u] = v_cache[(t.cache_row + start + min(s + u * PARTS, count - 1u)) * V_ROW + column];
            }
            for (var u = 0u; u < LOADS; u++) { // unroll
                var value = kv_load(words[u]);
                if (KV_SCALES == 1u) { // static
                    let at = (t.cache_row + start + min(s + u * PARTS, count - 1u)) * V_ROW;
                    value *= kv_scale(v_cache[at + V_SCALES + column / 16u], column / 8u);
                }
                let first = min(s + u * PARTS, KEYS) * ROWS;
                for (var i = 0u; i < ROWS; i++) { // unroll
                    (*sums)[i * OWN + o] = fma(vec4<f32>(weights[first + i]), value, (*sums)[i * OWN + o]);
                }
            }
        }
    }
}

// Adds up the shares' sums, half of them at a time: the first has them at the end. With several shares an invocation has one
// column in fours.
fn join_parts(sums: ptr<function, array<vec4<f32>, ROWS * OWN>>, lid: u32) {
    let part = lid / V4;
    for (var left = PARTS; left > 1u; left = (left + 1u) / 2u) {
        let half = (left + 1u) / 2u;
        if (part >= half && part < left) {
            for (var i = 0u; i < ROWS; i++) { // unroll
                room[((part - half) * ROWS + i) * V4 + lid % V4] = (*sums)[i * OWN];
            }
        }
        workgroupBarrier();
        if (part + half < left) {
            for (var i = 0u; i < ROWS; i++) { // unroll
                (*sums)[i * OWN] += room[(part * ROWS + i) * V4 + lid % V4];
            }
        }
        workgroupBarrier();
    }
}

// For `attend_reduce`: row i's sums as they are, its maximum and its denominator.
fn store_piece(sums: ptr<function, array<vec4<f32>, ROWS * OWN>>, i: u32, to: u32, total: f32, lid: u32) {
    for (var o = 0u; o < OWN; o++) {
        if (lid + o * WG < V4) {
            partials[to + lid + o * WG] = (*sums)[i * OWN + o];
        }
    }
    if (lid == 0u) {
        partials[to + V4] = vec4<f32>(tops[i], total, 0.0, 0.0);
    }
}

// Row i's result: its sums over the denominator, in which a sink counts as a position without a value.
fn store_row(sums: ptr<function, array<vec4<f32>, ROWS * OWN>>, i: u32, to: u32, head: u32, weight: f32, lid: u32) {
    var total = weight;
    var shrink = 1.0;
    if (p.sinks_on != 0u) {
        let m = max(tops[i], sinks[head]);
        shrink = exp(tops[i] - m);
        total = total * shrink + exp(sinks[head] - m);
    }
    for (var o = 0u; o < OWN; o++) {
        if (lid + o * WG < V4) {
            y[to + lid + o * WG] = (*sums)[i * OWN + o] * (shrink / total);
        }
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    var task = task_at(wg);
    if (task.first >= task.all_rows) {
        return;
    }
    let cut = pieces();
    task = with_positions(task, wg.z, cut);
    if (task.unit >= p.units) {
        // Another part of the cache holds it.
        return;
    }
    load_queries(task, lid);

    var sums: array<vec4<f32>, ROWS * OWN>;
    var row = row_of_scores(task, lid);
    for (var start = task.begin; start < task.end; start += KEYS) {
        let count = min(task.end - start, KEYS);
        score_position(task, start, count, lid);
        let scores = find_maxima(row, start, count, lid);
        row = weigh(row, scores);
        add_values(&sums, task, start, count, lid);
    }
    maxima[lid] = row.sum;
    if (row.share == 0u) {
        tops[row.row] = row.top;
    }
    workgroupBarrier();
    join_parts(&sums, lid);
    if (lid / V4 > 0u) {
        return;
    }
    for (var i = 0u; i < ROWS; i++) { // unroll
        if (task.first + i < task.all_rows) {
            var total = 0.0;
            for (var s = 0u; s < SHARES; s++) {
                total += maxima[s * ROWS + i];
            }
            let token = (task.first + i) / task.group;
            let head = task.kv_head * task.group + (task.first + i) % task.group;
            if (cut.count > 1u) {
                store_piece(&sums, i, ((token * p.heads + head) * cut.count + wg.z) * (V4 + 1u), total, lid);
            } else {
                store_row(&sums, i, (p.y_offset + token * p.y_stride) / 4u + head * V4, head, total, lid);
            }
        }
    }
}
