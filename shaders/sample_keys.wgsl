
// sample_keys: for each choice, logits after the repetition penalty and the ban on some tokens, as keys that order like them, and
// the largest key of every group of 64 tokens.
//
// A workgroup takes 1024 tokens. Which of them are recent or forbidden is marked in bit maps in workgroup memory: the lists
// are gone through once a workgroup, and a token that stands in them twice is penalised once. f32.
//
// Grid: x = ceil(V / 1024), y = choices.

@group(0) @binding(3) var<storage, read> x: array<f32>;             // logits: [O, V]
@group(0) @binding(4) var<storage, read> state: array<u32>;         // [sequences, STATE_WORDS]
@group(0) @binding(5) var<storage, read_write> keys: array<u32>;    // [choices, V]
@group(0) @binding(6) var<storage, read_write> maxima: array<u32>;  // [choices, ceil(V / 64)]
@group(0) @binding(8) var<storage, read> masks: array<u32>;         // [choices, ceil(V / 32)]: bits of tokens that are allowed

const GROUPS: u32 = BLOCK / SAMPLE_GROUP;
const SHARES: u32 = WG / GROUPS;  // invocations that look for the maximum of a group
const LARGEST: f32 = 3.4028234e38;

var<workgroup> recent: array<atomic<u32>, BLOCK / 32u>;
var<workgroup> forbidden: array<atomic<u32>, BLOCK / 32u>;
var<workgroup> block: array<u32, BLOCK>;
var<workgroup> shares: array<u32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let first = wg.x * BLOCK;
    let choice = choices[wg.y];
    let sequence = choice.sequence;
    let state_at = sequence * STATE_WORDS;
    let keys_at = wg.y * p.vocab;
    let groups = (p.vocab + SAMPLE_GROUP - 1u) / SAMPLE_GROUP;
    let mask_at = wg.y * ((p.vocab + 31u) / 32u);
    let penalty = settings[sequence].penalty;
    if (lid < BLOCK / 32u) {
        atomicStore(&recent[lid], 0u);
        atomicStore(&forbidden[lid], 0u);
    }
    workgroupBarrier();
    let window = select(min(state[state_at], settings[sequence].window), 0u, penalty == 1.0);
    for (var i = lid; i < window; i += WG) {
        let at = state[state_at + RING_AT + i] - first;
        if (at < BLOCK) {
            atomicOr(&recent[at / 32u], 1u << (at % 32u));
        }
    }
    for (var i = lid; i < forbidden_count(sequence); i += WG) {
        let at = settings[sequence].forbidden_ids[i] - first;
        if (at < BLOCK) {
            atomicOr(&forbidden[at / 32u], 1u << (at % 32u));
        }
    }
    workgroupBarrier();
    for (var i = lid; i < BLOCK; i += WG) {
        var key = 0u;
        let id = first + i;
        if (id < p.vocab) {
            let logit = x[p.x_offset + choice.row * p.x_stride + id];
            if ((bitcast<u32>(logit) & 0x7f800000u) == 0x7f800000u) {
                key = BROKEN;
            } else {
                let penalised = clamp(select(logit * penalty, logit / penalty, logit > 0.0), -LARGEST, LARGEST);
                let is_recent = (atomicLoad(&recent[i / 32u]) >> (i % 32u) & 1u) == 1u;
                var is_forbidden = (atomicLoad(&forbidden[i / 32u]) >> (i % 32u) & 1u) == 1u;
                if (choice.masked == 1u) {
                    is_forbidden = is_forbidden || (masks[mask_at + id / 32u] >> (id % 32u) & 1u) == 0u;
                }
                key = select(key_of(select(logit, penalised, is_recent)), 0u, is_forbidden);
            }
            keys[keys_at + id] = key;
        }
        block[i] = key;
    }
    workgroupBarrier();
    // The maxima of groups: SHARES invocations each.
    var most = 0u;
    for (var i = lid % SHARES; i < SAMPLE_GROUP; i += SHARES) {
        most = max(most, block[lid / SHARES * SAMPLE_GROUP + i]);
    }
    shares[lid] = most;
    workgroupBarrier();
    let group = first / SAMPLE_GROUP + lid;
    if (lid < GROUPS && group * SAMPLE_GROUP < p.vocab) {
        var largest = 0u;
        for (var i = 0u; i < SHARES; i++) {
            largest = max(largest, shares[lid * SHARES + i]);
        }
        maxima[wg.y * groups + group] = largest;
    }
}
