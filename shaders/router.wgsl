
// router: from logits to the k chosen experts and their weights; see `ops/router.rs` for the variants.
//
// One workgroup a token. The choice is by rank: an expert's rank is the number of experts with a larger logit, or an equal
// one and a lower id; ranks below k are chosen. That costs E^2 comparisons of integers, spread over WG invocations, and
// needs no round of reductions; ranks are distinct whatever the logits, so every slot is filled. Scores in f32.
//
// Grid: x = 1, y = T.

struct Params {
    experts: u32,
    used: u32,
    score: u32,
    renormalise: u32,
    x_offset: u32,
    x_stride: u32,
    ids_offset: u32,
    ids_stride: u32,
    weights_offset: u32,
    weights_stride: u32,
    scale: f32,
}
@group(0) @binding(1) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> x: array<f32>;              // logits: [T, E]
@group(0) @binding(3) var<storage, read_write> ids: array<u32>;      // [T, k]
@group(0) @binding(4) var<storage, read_write> weights: array<f32>;  // [T, k]

const SOFTMAX: u32 = 0u;
const SIGMOID: u32 = 2u;

var<workgroup> keys: array<u32, EXPERTS>;
var<workgroup> chosen: array<f32, EXPERTS>;  // logits by rank

// An integer that orders like the number; not-a-number like minus infinity.
fn order(v: f32) -> u32 {
    let bits = bitcast<u32>(v);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return 0x007fffffu;
    }
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let t = wg.y;
    if (t >= frame.tokens) {
        return;
    }
    let start = p.x_offset + t * p.x_stride;
    // Experts that are not there come after all others. Loops run to the constant EXPERTS, not to the uniform: lavapipe
    // makes a new shader for each value of a uniform that bounds a loop, at every dispatch.
    for (var e = lid; e < EXPERTS; e += WG) {
        keys[e] = select(0u, order(x[start + min(e, p.experts - 1u)]), e < p.experts);
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
            chosen[rank] = x[start + e];
            ids[p.ids_offset + t * p.ids_stride + rank] = e;
        }
    }
    workgroupBarrier();

    // What the weights are divided by.
    let top = chosen[0];
    var part = 0.0;
    if (p.score == SOFTMAX && p.renormalise == 0u) {
        for (var e = lid; e < p.experts; e += WG) {
            part += exp(x[start + e] - top);
        }
    } else {
        for (var j = lid; j < p.used; j += WG) {
            part += select(exp(chosen[j] - top), 1.0 / (1.0 + exp(min(-chosen[j], 80.0))), p.score == SIGMOID);
        }
    }
    let sum = workgroup_sum(lid, part);
    let divisor = select(sum, 1.0, p.score == SIGMOID && p.renormalise == 0u);
    for (var j = lid; j < p.used; j += WG) {
        let score = select(exp(chosen[j] - top), 1.0 / (1.0 + exp(min(-chosen[j], 80.0))), p.score == SIGMOID);
        weights[p.weights_offset + t * p.weights_stride + j] = score / divisor * p.scale;
    }
}
