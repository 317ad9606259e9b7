
// router: from logits to the k chosen experts and their weights; see `ops/router.rs` for the variants.
//
// One workgroup a token. The choice is by rank: an expert's rank is the number of experts with a larger choice value, or an
// equal one and a lower id; ranks below k are chosen. That costs E^2 comparisons of integers, spread over WG invocations,
// and needs no round of reductions; ranks are distinct whatever the logits, so every slot is filled. The choice value is
// the logit, or with BY_SCORE = 1 the score plus the selection bias. With GROUPS > 1 the groups are ranked in the same way
// first, and experts of others come after all that take part. Scores in f32.
//
// With OWN_GROUPS = 1 a router over groups has logits behind those of the experts: the best groups by these take part, with as many
// experts each; both softmaxes multiply.
//
// With CACHED = 1 (one token, KEEP_IDS = 1) the slots of the chosen experts follow: `experts/place.wgsl`.
//
// Grid: x = 1, y = T.

@group(0) @binding(2) var<storage, read> x: array<f32>;               // logits: [T, E], with OWN_GROUPS = 1 [T, E + GROUPS]
// [E] selection biases, read with BY_SCORE = 1 (zeros where there are none); [2 E] with SCALED = 1: factors follow
@group(0) @binding(3) var<storage, read> per_expert: array<f32>;
@group(0) @binding(4) var<storage, read_write> ids: array<u32>;       // [T, k]
@group(0) @binding(5) var<storage, read_write> weights: array<f32>;   // [T, k]

// Loops run to the constants EXPERTS and GROUPS, not to a uniform: lavapipe makes a new shader for each value of a uniform
// that bounds a loop, at every dispatch.
var<workgroup> keys: array<u32, EXPERTS>;
var<workgroup> chosen: array<f32, EXPERTS>;  // logits by rank; before that, 1 for every group that takes part
var<workgroup> group_keys: array<u32, GROUPS>;
var<workgroup> chosen_ids: array<u32, EXPERTS * KEEP_IDS + 1u>;  // by rank; with KEEP_IDS = 1

fn is_nan(v: f32) -> bool {
    return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u;
}

// An integer that orders like the number, both zeros alike; not-a-number like minus infinity.
fn order(v: f32) -> u32 {
    if (is_nan(v)) {
        return 0x007fffffu;
    }
    let bits = bitcast<u32>(select(v, 0.0, v == 0.0));
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

// The number that `order` made this of.
fn number(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, (key & 0x80000000u) != 0u));
}

// Maximum over the workgroup; not-a-number is passed over. As `workgroup_sum`.
fn workgroup_max(lane: u32, value: f32) -> f32 {
    sum_lane[lane] = value;
    workgroupBarrier();
    for (var reach = WG / 2u; reach > 0u; reach = reach / 2u) {
        if (lane < reach && order(sum_lane[lane + reach]) > order(sum_lane[lane])) {
            sum_lane[lane] = sum_lane[lane + reach];
        }
        workgroupBarrier();
    }
    let top = sum_lane[0];
    workgroupBarrier();
    return top;
}

// ln(1 + e) for e in 0..1: a GPU's own logarithm is not exact near 1. Series of 2 atanh(z), z = e / (2 + e) <= 1/3.
fn log_1p(e: f32) -> f32 {
    let z = e / (2.0 + e);
    let s = z * z;
    let poly = 1.0 + s * (0.33333333 + s * (0.2 + s * (0.14285714 + s * (0.11111111 + s * (0.09090909 + s * 0.07692308)))));
    return 2.0 * z * poly;
}

// The score of a logit before any division; softmaxes relative to `top`.
fn score_of(logit: f32, top: f32) -> f32 {
    if (p.score <= SCORE_SOFTMAX_OF_SELECTED) {
        return exp(logit - top);
    }
    if (p.score == SCORE_SIGMOID) {
        // No infinity on the way, and not-a-number stays.
        let e = exp(-abs(logit));
        return select(e, 1.0, logit >= 0.0) / (1.0 + e);
    }
    return sqrt(max(logit, 0.0) + log_1p(exp(-abs(logit))));
}

// The weight of the j-th chosen, times what it is to be scaled by.
fn put(t: u32, j: u32, weight: f32) {
    var factor = p.scale;
    if (SCALED == 1u) { // static
        factor *= per_expert[p.experts + chosen_ids[j]];
    }
    weights[p.weights_offset + t * p.weights_stride + j] = weight * factor;
}

// The divisor of a sparsemixer's softmax at the expert `id`: over it and all that rank after it, without those whose logits
// are more than the threshold (in `epsilon`) below.
fn sparse_sum(start: u32, id: u32) -> f32 {
    let m = x[start + id];
    var sum = 0.0;
    for (var e = 0u; e < EXPERTS; e++) {
        let v = x[start + min(e, p.experts - 1u)];
        let left = e < p.experts && (keys[e] < keys[id] || (keys[e] == keys[id] && e >= id));
        let masked = (m - v) / max(abs(v), m) > p.epsilon;
        sum += select(0.0, exp(v - m), left && !masked);
    }
    return sum;
}

// This invocation's part of the sum of a softmax.
fn sum_of_all(lid: u32, start: u32, top: f32) -> f32 {
    var part = 0.0;
    for (var e = lid; e < EXPERTS; e += WG) {
        part += select(0.0, exp(x[start + min(e, p.experts - 1u)] - top), e < p.experts);
    }
    return part;
}

// Takes the experts of all but the best groups out of the choice.
fn limit_to_groups(lid: u32, start: u32) {
    let size = p.experts / GROUPS;
    for (var g = lid; g < GROUPS; g += WG) {
        var best = -3.4028234e38;
        var second = best;
        for (var i = 0u; i < EXPERTS / GROUPS; i++) {
            let at = g * size + min(i, size - 1u);
            // Not-a-number and minus infinity are the smallest number here.
            let v = select(max(number(keys[at]), -3.4028234e38), -3.4028234e38, i >= size);
            second = max(second, min(best, v));
            best = max(best, v);
        }
        var score = select(best, best + second, p.top_two == 1u);
        if (OWN_GROUPS == 1u) { // static
            score = x[start + p.experts + g];
        }
        group_keys[g] = order(score);
    }
    workgroupBarrier();
    for (var g = lid; g < GROUPS; g += WG) {
        var rank = 0u;
        for (var other = 0u; other < GROUPS; other++) {
            let before = group_keys[other] > group_keys[g] || (group_keys[other] == group_keys[g] && other < g);
            rank += select(0u, 1u, before);
        }
        // The number of the group among the chosen, from 1.
        chosen[g] = select(0.0, f32(rank + 1u), rank < p.groups_used);
    }
    workgroupBarrier();
    for (var e = lid; e < EXPERTS; e += WG) {
        keys[e] = select(0u, keys[e], chosen[min(e / size, GROUPS - 1u)] > 0.0);
    }
    if (OWN_GROUPS == 1u) { // static
        for (var g = lid; g < GROUPS; g += WG) {
            group_keys[g] = u32(chosen[g]);
        }
    }
    workgroupBarrier();
}

// The place of expert e among the chosen of a router over groups; `p.used` where it is not chosen.
fn place_in_groups(e: u32) -> u32 {
    let size = p.experts / GROUPS;
    let group = min(e / size, GROUPS - 1u);
    let each = p.used / p.groups_used;
    var rank = 0u;
    for (var i = 0u; i < EXPERTS / GROUPS; i++) {
        let other = group * size + min(i, size - 1u);
        let before = keys[other] > keys[e] || (keys[other] == keys[e] && other < e);
        rank += select(0u, 1u, before && i < size);
    }
    let taken = e < p.experts && group_keys[group] > 0u && rank < each;
    return select(p.used, (max(group_keys[group], 1u) - 1u) * each + rank, taken);
}

// What the logits of a softmax are relative to, and what its scores are divided by: the sum over all experts.
struct Softmax {
    top: f32,
    all: f32,
}

// This invocation's part of the largest logit.
fn largest_of(lid: u32, start: u32, other: f32) -> f32 {
    var m = other;
    for (var e = lid; e < EXPERTS; e += WG) {
        let v = x[start + min(e, p.experts - 1u)];
        m = select(m, v, order(v) > order(m));
    }
    return m;
}

// The softmax of all logits, where the choice is made on it.
fn softmax_before_choice(lid: u32, start: u32) -> Softmax {
    var s = Softmax(0.0, 1.0);
    if (BY_SCORE == 1u && p.score == SCORE_SOFTMAX) {
        s.top = workgroup_max(lid, largest_of(lid, start, x[start]));
        s.all = workgroup_sum(lid, sum_of_all(lid, start, s.top));
    }
    return s;
}

// What experts are chosen by, as integers that order alike: the logit, or the score and its bias.
fn make_keys(lid: u32, start: u32, s: Softmax) {
    for (var e = lid; e < EXPERTS; e += WG) {
        let at = min(e, p.experts - 1u);
        var value = x[start + at];
        if (BY_SCORE == 1u) { // static
            value = score_of(value, s.top) / s.all + per_expert[at];
        }
        // Experts that are not there come after all others.
        keys[e] = select(0u, order(value), e < p.experts);
    }
    workgroupBarrier();
}

// The chosen experts of token t by rank: their logits and ids.
fn choose(t: u32, lid: u32, start: u32) {
    for (var e = lid; e < EXPERTS; e += WG) {
        let key = keys[e];
        var rank = 0u;
        if (OWN_GROUPS == 1u) { // static
            rank = place_in_groups(e);
        } else {
            for (var other = 0u; other < EXPERTS; other++) {
                let before = keys[other] > key || (keys[other] == key && other < e);
                rank += select(0u, 1u, before);
            }
        }
        if (e < p.experts && rank < p.used) {
            chosen[rank] = x[start + e];
            ids[p.ids_offset + t * p.ids_stride + rank] = e;
            if (KEEP_IDS == 1u) { // static
                chosen_ids[rank] = e;
            }
        }
    }
    workgroupBarrier();
}

// The softmax of the weights, where the choice was made on logits.
fn softmax_after_choice(lid: u32, start: u32, before: Softmax) -> Softmax {
    var s = before;
    if (BY_SCORE == 0u && p.score <= SCORE_SOFTMAX_OF_SELECTED) {
        s.top = chosen[0];
        // A plain division by the sum of the chosen cancels the sum of all.
        if (p.score == SCORE_SOFTMAX && p.renormalise != RENORMALISE_SUM) {
            if (GROUPED == 1u) { // static
                // With groups the chosen one need not be the largest of all.
                s.top = workgroup_max(lid, largest_of(lid, start, s.top));
            }
            s.all = workgroup_sum(lid, sum_of_all(lid, start, s.top));
        }
    }
    return s;
}

// What the chosen scores, which add up to `sum`, are divided by.
fn divisor_of(sum: f32) -> f32 {
    switch p.renormalise {
        case RENORMALISE_SUM: {
            return sum;
        }
        case RENORMALISE_SUM_PLUS: {
            return sum + p.epsilon;
        }
        case RENORMALISE_SUM_AT_LEAST: {
            return select(sum, p.epsilon, sum < p.epsilon);
        }
        default: {
            return 1.0;
        }
    }
}

// The weights of the chosen experts.
fn weigh(t: u32, lid: u32, softmax: Softmax) {
    var s = softmax;
    var part = 0.0;
    for (var j = lid; j < p.used; j += WG) {
        part += score_of(chosen[j], s.top);
    }
    let sum = workgroup_sum(lid, part);
    if (p.score == SCORE_SOFTMAX_OF_SELECTED) {
        s.all = sum;
    }
    if (p.renormalise == RENORMALISE_SOFTMAX) {
        // A softmax over the chosen scores, which are too small to overflow.
        part = 0.0;
        for (var j = lid; j < p.used; j += WG) {
            part += exp(score_of(chosen[j], s.top) / s.all);
        }
        let again = workgroup_sum(lid, part);
        for (var j = lid; j < p.used; j += WG) {
            put(t, j, exp(score_of(chosen[j], s.top) / s.all) / again);
        }
        return;
    }
    let divisor = divisor_of(sum / s.all);
    for (var j = lid; j < p.used; j += WG) {
        put(t, j, score_of(chosen[j], s.top) / s.all / divisor);
    }
}

// The logit of the n-th chosen group.
fn group_logit(start: u32, n: u32) -> f32 {
    let first = chosen_ids[n * (p.used / p.groups_used)];
    return x[start + p.experts + first / (p.experts / GROUPS)];
}

// The weights of a router over groups and those in the groups.
fn weigh_in_groups(t: u32, lid: u32, start: u32) {
    let each = p.used / p.groups_used;
    let top = group_logit(start, 0u);
    var groups = 0.0;
    for (var n = 0u; n < GROUPS; n++) {
        groups += select(0.0, exp(group_logit(start, min(n, p.groups_used - 1u)) - top), n < p.groups_used);
    }
    for (var j = lid; j < p.used; j += WG) {
        let n = j / each;
        let first = chosen[n * each];
        var experts = 0.0;
        for (var i = 0u; i < EXPERTS / GROUPS; i++) {
            experts += select(0.0, exp(chosen[n * each + min(i, each - 1u)] - first), i < each);
        }
        put(t, j, exp(group_logit(start, n) - top) / groups * (exp(chosen[j] - first) / experts));
    }
}

// The weights of a sparsemixer.
fn weigh_sparsely(t: u32, lid: u32, start: u32) {
    for (var j = lid; j < p.used; j += WG) {
        put(t, j, 1.0 / sparse_sum(start, chosen_ids[j]));
    }
}

// The weights of routers whose scores say them.
fn weigh_as_scored(t: u32, lid: u32, start: u32, before: Softmax) {
    if (SPARSE == 1u) { // static
        if (p.score == SCORE_SPARSE_MIXER) {
            weigh_sparsely(t, lid, start);
        } else {
            weigh(t, lid, softmax_after_choice(lid, start, before));
        }
    } else {
        weigh(t, lid, softmax_after_choice(lid, start, before));
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.y;
    if (t >= frame.tokens) {
        return;
    }
    let start = p.x_offset + t * p.x_stride;
    let before = softmax_before_choice(lid, start);
    make_keys(lid, start, before);
    if (GROUPED == 1u) { // static
        limit_to_groups(lid, start);
    }
    choose(t, lid, start);
    if (OWN_GROUPS == 1u) { // static
        weigh_in_groups(t, lid, start);
    } else {
        weigh_as_scored(t, lid, start, before);
    }
    if (CACHED == 1u) { // static
        place_experts(lid, p.used);
    }
}
