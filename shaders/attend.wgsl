
// attend: causal attention of grouped query heads over the cache, with an online softmax (Milakov and Gimelshein 2018;
// Dao et al. 2022). Sliding window (or chunks of positions) and attention sinks are parameters.
//
// The query rows of one kv head are its G = heads/kv_heads query heads, token after token; a workgroup takes ROWS of them,
// so that in decode all heads of a kv head, in prefill several tokens too, share each key and value that is read. It goes
// through the positions WG at a time: each invocation scores one position for all rows; then the rows' maxima; then each
// invocation owns four columns of the result and goes through the scores, or through one of PARTS shares of them where
// there are fewer columns than invocations. With SPLIT = 1 a workgroup sees only one chunk of positions, the z-th that
// the window of the step's first token touches, and leaves sums, maximum and denominator to `attend_reduce`. f32 throughout;
// keys and values as the cache stores them.
//
// Grid: x = kv_heads, y = ceil(T*G / ROWS) (BATCH = 1: T * ceil(G / ROWS)), z = 1 or chunks.

@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;        // [T, heads*Dk]
@group(0) @binding(3) var<storage, read> k_cache: array<KvWord>;     // [sequences, kv_heads, ctx, Dk/4 and scales]
@group(0) @binding(4) var<storage, read> v_cache: array<KvWord>;     // [sequences, kv_heads, ctx, Dv/4 and scales]
@group(0) @binding(5) var<storage, read> sinks: array<f32>;          // [heads]
@group(0) @binding(6) var<storage, read_write> y: array<vec4<f32>>;  // [T, heads*Dv], or [T, heads, splits, Dv + 4]

const K4: u32 = K_DIM / 4u;
const V4: u32 = V_DIM / 4u;
// Words of a position's key. Where the cache has scales, they come behind the codes.
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
var<workgroup> scores: array<f32, ROWS * WG>;
var<workgroup> shares: array<f32, WG>;
var<workgroup> maxima: array<f32, ROWS>;
var<workgroup> merge: array<vec4<f32>, (PARTS - 1u) * V4 * ROWS + 1u>;
var<workgroup> merge_sum: array<f32, PARTS * ROWS>;

// The first position that a query at this one sees.
fn first_seen(position: u32) -> u32 {
    if (p.window == 0u) {
        return 0u;
    }
    if (p.chunked != 0u) {
        return position - position % p.window;
    }
    return position + 1u - min(position + 1u, p.window);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let kv_head = wg.x;
    let group = p.heads / p.kv_heads;
    var all_rows = frame.tokens * group;
    var first = wg.y * ROWS;
    if (BATCH == 1u) { // static
        // Only rows of one token: the next may belong to another sequence.
        let each = (group + ROWS - 1u) / ROWS;
        first = wg.y / each * group + wg.y % each * ROWS;
        all_rows = min(all_rows, (wg.y / each + 1u) * group);
    }
    if (first >= all_rows) {
        return;
    }
    let last_token = (min(first + ROWS, all_rows) - 1u) / group;
    // Token t of this workgroup stands at `past` + t, also where that wraps round.
    let past = position_of(last_token) - last_token;
    let cache_row = (sequence_of(last_token) * p.kv_heads + kv_head) * p.ctx;

    // Positions that any row of this workgroup sees.
    var begin = first_seen(past + first / group);
    var end = min(past + last_token + 1u, p.ctx);
    if (SPLIT == 1u) { // static
        let seen = frame.past + 1u;
        var chunk = wg.z;
        if (p.window != 0u) {
            chunk += (seen - min(seen, p.window)) / p.split_len;
        }
        begin = max(begin, chunk * p.split_len);
        end = min(end, (chunk + 1u) * p.split_len);
    }

    for (var i = lid; i < ROWS * K4; i += WG) {
        let row = min(first + i / K4, all_rows - 1u);
        let head = kv_head * group + row % group;
        queries[i] = q[(p.q_offset + row / group * p.q_stride) / 4u + head * K4 + i % K4] * p.scale;
    }
    workgroupBarrier();

    var acc: array<vec4<f32>, ROWS * OWN>;
    var sum: array<f32, ROWS>;
    var top: array<f32, ROWS>;
    for (var i = 0u; i < ROWS; i++) { // unroll
        top[i] = NONE;
    }
    let part = lid / V4;
    for (var start = begin; start < end; start += WG) {
        let count = min(end - start, WG);
        // Scores of one position.
        let at = (cache_row + start + min(lid, count - 1u)) * K_ROW;
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
        for (var i = 0u; i < ROWS; i++) { // unroll
            let position = past + (first + i) / group;
            let here = start + lid;
            let seen = lid < count && here <= position && here >= first_seen(position);
            score[i] = select(NONE, score[i], seen);
            scores[i * WG + lid] = score[i];
        }
        workgroupBarrier();
        // Maximum of each row: WG/ROWS invocations go through a share of the scores each, then through the shares.
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
        for (var i = 0u; i < ROWS; i++) { // unroll
            let m = max(top[i], maxima[i]);
            scores[i * WG + lid] = select(0.0, exp(score[i] - m), score[i] > NONE);
            let shrink = exp(top[i] - m);
            top[i] = m;
            sum[i] *= shrink;
            for (var o = 0u; o < OWN; o++) {
                acc[i * OWN + o] *= shrink;
            }
        }
        workgroupBarrier();
        // Weighted sum of values.
        if (part < PARTS) {
            for (var s = part; s < count; s += PARTS) {
                for (var i = 0u; i < ROWS; i++) { // unroll
                    sum[i] += scores[i * WG + s];
                }
                for (var o = 0u; o < OWN; o++) {
                    let column = min(lid % V4 + o * WG, V4 - 1u);
                    let at = (cache_row + start + s) * V_ROW;
                    var value = kv_load(v_cache[at + column]);
                    if (KV_SCALES == 1u) { // static
                        value *= kv_scale(v_cache[at + V_SCALES + column / 16u], column / 8u);
                    }
                    for (var i = 0u; i < ROWS; i++) { // unroll
                        acc[i * OWN + o] = fma(vec4<f32>(scores[i * WG + s]), value, acc[i * OWN + o]);
                    }
                }
            }
        }
        workgroupBarrier();
    }

    // The shares meet.
    if (part < PARTS && lid % V4 == 0u) {
        for (var i = 0u; i < ROWS; i++) { // unroll
            merge_sum[i * PARTS + part] = sum[i];
        }
    }
    if (part > 0u && part < PARTS) {
        for (var i = 0u; i < ROWS; i++) { // unroll
            merge[(i * (PARTS - 1u) + part - 1u) * V4 + lid % V4] = acc[i * OWN];
        }
    }
    workgroupBarrier();
    if (part > 0u) {
        return;
    }
    for (var i = 0u; i < ROWS; i++) { // unroll
        if (first + i < all_rows) {
            var total = 0.0;
            for (var o = 0u; o < PARTS; o++) {
                total += merge_sum[i * PARTS + o];
            }
            for (var o = 1u; o < PARTS; o++) {
                acc[i * OWN] += merge[(i * (PARTS - 1u) + o - 1u) * V4 + lid];
            }
            let token = (first + i) / group;
            let head = kv_head * group + (first + i) % group;
            if (SPLIT == 1u) { // static
                let to = ((token * p.heads + head) * p.splits + wg.z) * (V4 + 1u);
                for (var o = 0u; o < OWN; o++) {
                    if (lid + o * WG < V4) {
                        y[to + lid + o * WG] = acc[i * OWN + o];
                    }
                }
                if (lid == 0u) {
                    y[to + V4] = vec4<f32>(top[i], total, 0.0, 0.0);
                }
            } else {
                var shrink = 1.0;
                if (p.sinks_on != 0u) {
                    let m = max(top[i], sinks[head]);
                    shrink = exp(top[i] - m);
                    total = total * shrink + exp(sinks[head] - m);
                }
                let to = (p.y_offset + token * p.y_stride) / 4u + head * V4;
                for (var o = 0u; o < OWN; o++) {
                    if (lid + o * WG < V4) {
                        y[to + lid + o * WG] = acc[i * OWN + o] * (shrink / total);
                    }
                }
            }
        }
    }
}
