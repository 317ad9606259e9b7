
// sample_pick: the next token, from the keys that `sample_keys` left; `sampler.rs` says which it is.
//
// One workgroup in all. What stays after top-k, top-p and min-p is always the front of one order: by falling logit, equal
// ones by rising id. So every filter is a search for the token at which a sum over that order, of ones or of
// probabilities, passes an aim; and so is the draw. The search (`descend`) sorts nothing: it adds the summands up in 256
// bins, takes the bin in which the aim falls, and bins that one again: first by distance from the best logit, then by
// 8 bits of the key at a time, at last, where many logits are equal, by id (`descend_ids`).
// With a top-k of at most WG, the common case, only the groups with the k best largest keys can hold the k best tokens:
// these 64 k tokens are searched, the k best are put into a list, and the rest is done in that list.
//
// Sums are 64-bit fixed-point numbers, 2^44 to a probability relative to the best token's, so that they do not depend on
// the order in which invocations add: same logits, same draw, same token. Exponentials are in f32.
//
// Grid: 1.

@group(0) @binding(3) var<storage, read> keys: array<u32>;          // [V]
@group(0) @binding(4) var<storage, read> maxima: array<u32>;        // [ceil(V / 64)]
@group(0) @binding(5) var<storage, read_write> state: array<u32>;   // tokens so far, this pick, the ring of recent tokens
@group(0) @binding(6) var<storage, read_write> tokens: array<u32>;  // the ids of the next step

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

fn add64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn less64(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x < b.x);
}

fn product(a: u32, b: u32) -> vec2<u32> {
    let ll = (a & 0xffffu) * (b & 0xffffu);
    let lh = (a & 0xffffu) * (b >> 16u);
    let hl = (a >> 16u) * (b & 0xffffu);
    let middle = (ll >> 16u) + (lh & 0xffffu) + (hl & 0xffffu);
    return vec2<u32>((ll & 0xffffu) | (middle << 16u), (a >> 16u) * (b >> 16u) + (lh >> 16u) + (hl >> 16u) + (middle >> 16u));
}

// total * part / 2^32.
fn fraction(total: vec2<u32>, part: u32) -> vec2<u32> {
    return add64(product(total.y, part), vec2<u32>(product(total.x, part).y, 0u));
}

fn key_at(kind: u32, id: u32) -> u32 {
    if (kind == GROUPS) {
        return maxima[id];
    }
    return select(0u, keys[min(id, p.vocab - 1u)], id < p.vocab);
}

fn id_at(kind: u32, i: u32) -> u32 {
    if (kind == LISTED) {
        return list_id[i / SAMPLE_GROUP] * SAMPLE_GROUP + i % SAMPLE_GROUP;
    }
    return i;
}

fn in_set(key: u32, id: u32) -> bool {
    return key > cut.x || (key == cut.x && id <= cut.y && key > 0u);
}

fn below_top(key: u32) -> f32 {
    return logit_of(key) - logit_of(top_key);
}

fn weight(mode: u32, key: u32) -> vec2<u32> {
    if (mode == COUNT) {
        return vec2<u32>(1u, 0u);
    }
    let below = below_top(key);
    if (mode == HEAT && below < settings.log_min_p) {
        return vec2<u32>(0u);
    }
    let scaled = 4096.0 * exp(max(below * select(1.0, settings.inverse_temperature, mode == HEAT), -100.0));
    let high = floor(scaled);
    return vec2<u32>(u32((scaled - high) * 4294967296.0), u32(high));
}

// Running sums of one value an invocation, its own included; and the sum of all.
fn sums(lid: u32, value: vec2<u32>) -> vec2<u32> {
    scan[lid] = value;
    workgroupBarrier();
    for (var reach = 1u; reach < WG; reach *= 2u) {
        var sum = scan[lid];
        if (lid >= reach) {
            sum = add64(sum, scan[lid - reach]);
        }
        workgroupBarrier();
        scan[lid] = sum;
        workgroupBarrier();
    }
    return scan[WG - 1u];
}

// The invocation in whose value the sum passes the aim, with all before `base` counted; `base` then is the sum before it.
// WG where the sum never does.
fn choose(lid: u32, value: vec2<u32>) -> u32 {
    if (lid == 0u) {
        taken = WG;
    }
    sums(lid, value);
    var before = base;
    let after = add64(base, scan[lid]);
    if (lid > 0u) {
        before = add64(base, scan[lid - 1u]);
    }
    workgroupBarrier();
    if (!less64(aim, before) && less64(aim, after)) {
        taken = lid;
        base = before;
    }
    return workgroupUniformLoad(&taken);
}

// Bins of an eighth below the best logit; the last takes the rest.
fn near_bin(key: u32) -> u32 {
    return u32(min(-8.0 * below_top(key), 255.0));
}

// Whether a key lies in the bins that were taken on the levels before this one.
fn in_bins(key: u32, level: u32, near: u32, prefix: u32) -> bool {
    if (level == 0u) {
        return true;
    }
    return near_bin(key) == near && (level == 1u || key >> (40u - 8u * max(level, 2u)) == prefix);
}

// Finds the element of the set at which the sum passes the aim, best first: `found`, where `is_found` is 1.
fn descend(lid: u32, kind: u32, n: u32, mode: u32) {
    if (lid == 0u) {
        base = vec2<u32>(0u);
        is_found = 0u;
    }
    var near = 0u;
    var prefix = 0u;
    var last = 0u;
    var population = 0u;
    for (var level = 0u; level < 5u; level++) {
        atomicStore(&bin_low[lid], 0u);
        atomicStore(&bin_high[lid], 0u);
        atomicStore(&bin_count[lid], 0u);
        workgroupBarrier();
        for (var i = lid; i < n; i += WG) {
            let id = id_at(kind, i);
            let key = key_at(kind, id);
            if (in_set(key, id) && in_bins(key, level, near, prefix)) {
                var bin = 255u - (key >> (32u - 8u * max(level, 1u)) & 255u);
                if (level == 0u) {
                    bin = near_bin(key);
                }
                let w = weight(mode, key);
                let old = atomicAdd(&bin_low[bin], w.x);
                atomicAdd(&bin_high[bin], w.y + select(0u, 1u, old + w.x < old));
                atomicAdd(&bin_count[bin], 1u);
            }
        }
        workgroupBarrier();
        let bin = choose(lid, vec2<u32>(atomicLoad(&bin_low[lid]), atomicLoad(&bin_high[lid])));
        if (bin == WG) {
            return;
        }
        if (level == 0u) {
            near = bin;
        } else {
            prefix = prefix << 8u | (255u - bin);
        }
        last = level + 1u;
        if (lid == bin) {
            taken = atomicLoad(&bin_count[lid]);
        }
        population = workgroupUniformLoad(&taken);
        if (population == 1u) {
            break;
        }
    }
    if (population == 1u) {
        for (var i = lid; i < n; i += WG) {
            let id = id_at(kind, i);
            let key = key_at(kind, id);
            if (in_set(key, id) && in_bins(key, last, near, prefix)) {
                found = vec2<u32>(key, id);
                is_found = 1u;
            }
        }
        workgroupBarrier();
    } else {
        // Several of one key. Of tokens, those outside the listed groups count too: the order is that of all tokens.
        descend_ids(lid, select(TOKENS, GROUPS, kind == GROUPS), select(p.vocab, p.groups, kind == GROUPS), mode, prefix);
    }
}

// The same among the elements with this key, or among all (0), by id.
fn descend_ids(lid: u32, kind: u32, n: u32, mode: u32, only: u32) {
    var start = 0u;
    var length = n;
    for (var level = 0u; level < 4u; level++) {
        let share = (length + WG - 1u) / WG;
        var sum = vec2<u32>(0u);
        let first = start + lid * share;
        for (var id = first; id < min(first + share, min(start + length, n)); id++) {
            let key = key_at(kind, id);
            if (in_set(key, id) && (only == 0u || key == only)) {
                sum = add64(sum, weight(mode, key));
            }
        }
        let part = choose(lid, sum);
        if (part == WG) {
            return;
        }
        start += part * share;
        length = share;
        if (share == 1u) {
            break;
        }
    }
    if (lid == 0u) {
        found = vec2<u32>(key_at(kind, start), start);
        is_found = 1u;
    }
    workgroupBarrier();
}

// Sets the aim `part` of the way through a sum over the set.
fn aim_at(lid: u32, value: vec2<u32>, part: u32) {
    let total = sums(lid, value);
    if (lid == 0u) {
        aim = fraction(total, part);
        base = vec2<u32>(0u);
    }
    workgroupBarrier();
}

// The sum passes this aim where it reaches the one before.
fn reach_aim(lid: u32) {
    if (lid == 0u) {
        if (aim.x > 0u) {
            aim.x -= 1u;
        } else if (aim.y > 0u) {
            aim = vec2<u32>(0xffffffffu, aim.y - 1u);
        }
    }
    workgroupBarrier();
}

fn set_sum(lid: u32, mode: u32) -> vec2<u32> {
    var sum = vec2<u32>(0u);
    for (var id = lid; id < p.vocab; id += WG) {
        if (in_set(keys[id], id)) {
            sum = add64(sum, weight(mode, keys[id]));
        }
    }
    return sum;
}

// Cuts the set behind what was found.
fn cut_here(lid: u32) {
    if (lid == 0u) {
        cut = select(vec2<u32>(0u), found, is_found == 1u);
    }
    workgroupBarrier();
}

fn aim_for_count(lid: u32, count: u32) {
    if (lid == 0u) {
        aim = vec2<u32>(count - 1u, 0u);
    }
    workgroupBarrier();
}

// The best token: the lowest group with the largest key, the lowest token in it.
fn best(lid: u32) {
    if (lid == 0u) {
        atomicStore(&lowest, 0xffffffffu);
    }
    workgroupBarrier();
    for (var g = lid; g < p.groups; g += WG) {
        if (maxima[g] == top_key) {
            atomicMin(&lowest, g);
        }
    }
    workgroupBarrier();
    let group = atomicLoad(&lowest);
    workgroupBarrier();
    if (lid == 0u) {
        atomicStore(&lowest, 0xffffffffu);
    }
    workgroupBarrier();
    for (var i = lid; i < SAMPLE_GROUP; i += WG) {
        let id = group * SAMPLE_GROUP + i;
        if (key_at(TOKENS, id) == top_key) {
            atomicMin(&lowest, id);
        }
    }
    workgroupBarrier();
    if (lid == 0u) {
        found = vec2<u32>(top_key, atomicLoad(&lowest));
        is_found = 1u;
    }
    workgroupBarrier();
}

// Empties the list, then puts the elements of the set into it that `kind` gives; at most WG.
fn list(lid: u32, kind: u32, n: u32) -> u32 {
    if (lid == 0u) {
        atomicStore(&list_length, 0u);
    }
    workgroupBarrier();
    for (var i = lid; i < n; i += WG) {
        let id = id_at(kind, i);
        let key = key_at(kind, id);
        if (in_set(key, id)) {
            let at = atomicAdd(&list_length, 1u);
            if (at < WG) {
                sorted_key[at] = key;
                sorted_id[at] = id;
            }
        }
    }
    workgroupBarrier();
    if (lid == 0u) {
        taken = min(atomicLoad(&list_length), WG);
    }
    let length = workgroupUniformLoad(&taken);
    // `sorted_*` held them because the groups are still read from the list.
    list_key[lid] = sorted_key[lid];
    list_id[lid] = sorted_id[lid];
    workgroupBarrier();
    return length;
}

// The k best tokens, k at most WG, to the list; then the filters and the draw in it.
fn pick_from_list(lid: u32) {
    aim_for_count(lid, settings.top_k);
    descend(lid, GROUPS, p.groups, COUNT);
    cut_here(lid);
    let groups = list(lid, GROUPS, p.groups);
    if (lid == 0u) {
        cut = vec2<u32>(0u);
    }
    aim_for_count(lid, settings.top_k);
    descend(lid, LISTED, groups * SAMPLE_GROUP, COUNT);
    cut_here(lid);
    let n = list(lid, LISTED, groups * SAMPLE_GROUP);
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
    if (settings.top_p != 0u) {
        let mass = select(vec2<u32>(0u), weight(MASS, sorted_key[lid]), lid < n);
        aim_at(lid, mass, settings.top_p);
        reach_aim(lid);
        kept = choose(lid, mass) + 1u;
    }
    let heat = select(vec2<u32>(0u), weight(HEAT, sorted_key[lid]), lid < min(n, kept));
    aim_at(lid, heat, frame.draw);
    let rank = min(choose(lid, heat), WG - 1u);
    if (lid == 0u) {
        found = vec2<u32>(sorted_key[rank], sorted_id[rank]);
        is_found = 1u;
    }
    workgroupBarrier();
}

fn pick_from_all(lid: u32) {
    if (settings.top_k != 0u && settings.top_k < p.vocab) {
        aim_for_count(lid, settings.top_k);
        descend(lid, TOKENS, p.vocab, COUNT);
        cut_here(lid);
    }
    if (settings.top_p != 0u) {
        aim_at(lid, set_sum(lid, MASS), settings.top_p);
        reach_aim(lid);
        descend(lid, TOKENS, p.vocab, MASS);
        cut_here(lid);
    }
    aim_at(lid, set_sum(lid, HEAT), frame.draw);
    if (settings.by_id != 0u) {
        if (lid == 0u) {
            is_found = 0u;
        }
        descend_ids(lid, TOKENS, p.vocab, HEAT, 0u);
    } else {
        descend(lid, TOKENS, p.vocab, HEAT);
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) lid: u32) {
    var largest = 0u;
    for (var g = lid; g < p.groups; g += WG) {
        largest = max(largest, maxima[g]);
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
    if (top != 0u && top != BROKEN) {
        if (settings.inverse_temperature == 0.0) {
            best(lid);
        } else if (settings.top_k != 0u && settings.top_k <= WG && settings.top_k < p.vocab) {
            pick_from_list(lid);
        } else {
            pick_from_all(lid);
        }
    }
    if (lid == 0u) {
        var token = select(NOTHING, found.y, is_found == 1u);
        if (top == BROKEN) {
            token = BROKEN;
        }
        state[1] = token;
        if (token < p.vocab) {
            if (settings.window > 0u) {
                state[RING_AT + state[0] % settings.window] = token;
            }
            state[0] += 1u;
        }
        tokens[0] = select(0u, token, token < p.vocab);
    }
}
