
// The experts of a token, chosen anew by every workgroup from the router's logits, which lie before x in its rows: E^2
// comparisons of integers, spread over WG invocations, cost less than a dispatch that does it once. The first workgroup of a
// token writes ids and weights for those who come later. For routers that choose by their logits, without groups; the
// choice and the scores are those of `router.wgsl`.
@group(0) @binding(11) var<storage, read_write> ids: array<u32>;      // [T, k]
@group(0) @binding(12) var<storage, read_write> weights: array<f32>;  // [T, k]

var<workgroup> keys: array<u32, EXPERTS>;
var<workgroup> chosen: array<f32, EXPERTS>;  // logits by rank
var<workgroup> chosen_ids: array<u32, EXPERTS>;

// An integer that orders like the number, both zeros alike; not-a-number like minus infinity.
fn order(v: f32) -> u32 {
    let bits = bitcast<u32>(select(v, 0.0, v == 0.0));
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return 0x007fffffu;
    }
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

fn logit(t: u32, e: u32) -> f32 {
    let at = p.logits_offset + t * p.x_stride + e;
    return x[at / 4u][at % 4u];
}

// Every invocation of the workgroup must call it.
fn choose(t: u32, lid: u32) {
    for (var e = lid; e < EXPERTS; e += WG) {
        keys[e] = select(0u, order(logit(t, min(e, p.experts - 1u))), e < p.experts);
    }
    workgroupBarrier();
    for (var e = lid; e < EXPERTS; e += WG) {
        let key = keys[e];
        var rank = 0u;
        for (var other = 0u; other < EXPERTS; other++) {
            let before = keys[other] > key || (keys[other] == key && other < e);
            rank += select(0u, 1u, before);
        }
        if (e < p.experts && rank < p.used) {
            chosen[rank] = logit(t, e);
            chosen_ids[rank] = e;
        }
    }
    workgroupBarrier();
}

fn score_of(v: f32, top: f32) -> f32 {
    if (p.score == SCORE_SIGMOID) {
        // No infinity on the way, and not-a-number stays.
        let e = exp(-abs(v));
        return select(e, 1.0, v >= 0.0) / (1.0 + e);
    }
    return exp(v - top);
}

// Ids and weights of what was chosen. Every invocation of the workgroup must call it.
fn write_choice(t: u32, lid: u32) {
    let top = chosen[0];
    var part = 0.0;
    if (p.score == SCORE_SOFTMAX && p.renormalise == RENORMALISE_NO) {
        for (var e = lid; e < EXPERTS; e += WG) {
            part += select(0.0, exp(logit(t, min(e, p.experts - 1u)) - top), e < p.experts);
        }
    } else {
        for (var j = lid; j < p.used; j += WG) {
            part += score_of(chosen[j], top);
        }
    }
    let sum = workgroup_sum(lid, part);
    let divisor = select(sum, 1.0, p.score == SCORE_SIGMOID && p.renormalise == RENORMALISE_NO);
    for (var j = lid; j < p.used; j += WG) {
        weights[p.weights_offset + t * p.weights_stride + j] = score_of(chosen[j], top) / divisor * p.router_scale;
        ids[p.ids_offset + t * p.ids_stride + j] = chosen_ids[j];
    }
}

fn expert_at(t: u32, slot: u32) -> u32 {
    return chosen_ids[slot];
}
