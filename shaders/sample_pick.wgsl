
// sample_pick: for each choice the next token, from the keys that `sample_keys` left; `sampler.rs` says which it is.
//
// One workgroup a choice; a sequence has one at most. What stays after top-k, top-p and min-p is always the front of one order:
// by falling logit, equal ones by rising id. So every filter is a search for the token at which a sum over that order, of ones or of
// probabilities, passes an aim; and so is the draw. The search (`descend`) sorts nothing: it adds the summands up in 256
// bins, takes the bin in which the aim falls, and bins that one again: first by distance from the best logit, then by
// 8 bits of the key at a time, at last, where many logits are equal, by id (`descend_ids`).
// With a top-k of at most WG, the common case, only the groups with the k best largest keys can hold the k best tokens:
// these 64 k tokens are searched, the k best are put into a list, and the rest is done in that list.
//
// Sums are 64-bit fixed-point numbers, 2^44 to a probability relative to the best token's, so that they do not depend on
// the order in which invocations add: same logits, same draw, same token. Exponentials are in f32.
//
// Grid: x = 1, y = choices.

@group(0) @binding(3) var<storage, read> keys: array<u32>;          // [choices, V]
@group(0) @binding(4) var<storage, read> maxima: array<u32>;        // [choices, ceil(V / 64)]
@group(0) @binding(5) var<storage, read_write> state: array<u32>;   // [sequences, STATE_WORDS]
@group(0) @binding(6) var<storage, read_write> tokens: array<u32>;  // ids of the next step, choice i in row i; 0 where none was chosen
@group(0) @binding(8) var<storage, read_write> chosen: array<u32>;  // [choices]: ids, NOTHING or BROKEN

// Where elements come from: tokens, groups, or tokens of the groups in `list_id`.
const TOKENS: u32 = 0u;
const GROUPS: u32 = 1u;
const LISTED: u32 = 2u;
// What is summed: ones, probabilities, probabilities at the temperature.
const COUNT: u32 = 0u;
const MASS: u32 = 1u;
const HEAT: u32 = 2u;

var<workgroup> bin_low: array<atomic<u32>, WG>;
var<workgroup> bin_high: array<atomic<u32>, WG>;
var<workgroup> bin_count: array<atomic<u32>, WG>;
var<workgroup> scan: array<vec2<u32>, WG>;
var<workgroup> list_key: array<u32, WG>;
var<workgroup> list_id: array<u32, WG>;
var<workgroup> sorted_key: array<u32, WG>;
var<workgroup> sorted_id: array<u32, WG>;
var<workgroup> list_length: atomic<u32>;
var<workgroup> lowest: atomic<u32>;
var<workgroup> top_key: u32;
var<workgroup> taken: u32;          // the bin that `choose` took
var<workgroup> base: vec2<u32>;     // the sum over all that come before it
var<workgroup> aim: vec2<u32>;
var<workgroup> found: vec2<u32>;    // key and id of the element at which the sum passes the aim
var<workgroup> is_found: u32;
// The last element of the set; key 0: the set is not cut.
var<workgroup> cut: vec2<u32>;
// The sequence of this workgroup's choice, and its random word.
var<workgroup> own: u32;
var<workgroup> random: u32;

// Where this choice's keys and maxima begin.
var<private> keys_at: u32;
var<private> maxima_at: u32;

// Up to three searches, one behind the other, each of which cuts the set behind what it finds; the last one finds the draw. With a
// list: the groups that can hold the k best tokens, then these tokens. Without: the k best tokens, those that top-p keeps, the draw.
// All go through the same code, for compilers write out whatever is called.
fn search(lid: u32, by_list: bool) {
    var lists = by_list;
    let sequence = workgroupUniformLoad(&own);
    let top_k = settings[sequence].top_k;
    let top_p = settings[sequence].top_p;
    let by_id = settings[sequence].by_id != 0u;
    var listed = 0u;
    for (var turn = 0u; turn < 3u; turn++) {
        var kind = TOKENS;
        var n = p.vocab;
        var mode = turn;
        var wanted = turn == 2u || (turn == 0u && top_k != 0u && top_k < p.vocab) || (turn == 1u && top_p != 0u);
        if (lists) {
            kind = turn + 1u;
            n = select(listed * SAMPLE_GROUP, p.groups, turn == 0u);
            mode = COUNT;
            wanted = turn < 2u;
        }
        if (wanted) {
            if (mode == COUNT) {
                aim_for_count(lid, top_k);
            } else {
                aim_at(lid, set_sum(lid, mode), select(random, top_p, mode == MASS));
                if (mode == MASS) {
                    reach_aim(lid);
                }
            }
            descend(lid, kind, n, mode, by_id && turn == 2u);
            if (turn < 2u) {
                cut_here(lid);
            }
            if (lists) {
                listed = list(lid, kind, n);
                if (turn == 0u) {
                    if (lid == 0u) {
                        cut = vec2<u32>(0u);
                    }
                    workgroupBarrier();
                }
            }
        }
    }
}

// The filters and the draw among the k best tokens, which are in the list.
fn pick_from_list(lid: u32) {
    let sequence = workgroupUniformLoad(&own);
    let top_p = settings[sequence].top_p;
    if (lid == 0u) {
        taken = min(atomicLoad(&list_length), WG);
    }
    let n = workgroupUniformLoad(&taken);
    if (lid < n) {
        let own = vec2<u32>(list_key[lid], list_id[lid]);
        var rank = 0u;
        for (var i = 0u; i < n; i++) {
            let other = list_key[i];
            rank += select(0u, 1u, other > own.x || (other == own.x && list_id[i] < own.y));
        }
        sorted_key[rank] = own.x;
        sorted_id[rank] = own.y;
    }
    workgroupBarrier();
    var kept = n;
    for (var mode = MASS; mode <= HEAT; mode++) {
        if (mode == HEAT || top_p != 0u) {
            let value = select(vec2<u32>(0u), weight(mode, sorted_key[lid]), lid < min(n, kept));
            aim_at(lid, value, select(random, top_p, mode == MASS));
            if (mode == MASS) {
                reach_aim(lid);
            }
            kept = choose(lid, value) + 1u;
        }
    }
    let rank = min(kept - 1u, WG - 1u);
    if (lid == 0u) {
        found = vec2<u32>(sorted_key[rank], sorted_id[rank]);
        is_found = 1u;
    }
    workgroupBarrier();
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    keys_at = wg.y * p.vocab;
    maxima_at = wg.y * p.groups;
    if (lid == 0u) {
        own = choices[wg.y].sequence;
        random = choices[wg.y].random;
    }
    var largest = 0u;
    for (var g = lid; g < p.groups; g += WG) {
        largest = max(largest, maxima[maxima_at + g]);
    }
    list_key[lid] = largest;
    workgroupBarrier();
    for (var reach = WG / 2u; reach > 0u; reach = reach / 2u) {
        if (lid < reach) {
            list_key[lid] = max(list_key[lid], list_key[lid + reach]);
        }
        workgroupBarrier();
    }
    if (lid == 0u) {
        top_key = list_key[0];
        cut = vec2<u32>(0u);
        is_found = 0u;
    }
    let top = workgroupUniformLoad(&top_key);
    let sequence = workgroupUniformLoad(&own);
    let top_k = settings[sequence].top_k;
    let state_at = sequence * STATE_WORDS;
    if (top != 0u && top != BROKEN) {
        if (settings[sequence].inverse_temperature == 0.0) {
            best(lid);
        } else {
            let lists = top_k != 0u && top_k <= WG && top_k < p.vocab;
            search(lid, lists);
            if (lists) {
                pick_from_list(lid);
            }
        }
    }
    if (lid == 0u) {
        var token = select(NOTHING, found.y, is_found == 1u);
        if (top == BROKEN) {
            token = BROKEN;
        }
        chosen[wg.y] = token;
        state[state_at + 1u] = select(0u, token, token < p.vocab);
        if (token < p.vocab) {
            if (settings[sequence].window > 0u) {
                state[state_at + RING_AT + state[state_at] % settings[sequence].window] = token;
            }
            state[state_at] += 1u;
        }
        tokens[wg.y] = select(0u, token, token < p.vocab);
    }
}
