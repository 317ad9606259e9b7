
// The slots of chosen experts. Experts lie where kernels read them slowly; slots of the device's own memory hold copies of some. Here,
// behind the choice, it is decided which: an expert that is in a slot is a hit and stays there; each of the others takes, in the order of
// tokens and of the router, the first empty slot, else that of the victim which the policy names among the experts that this step does not
// use, of equal ones that in the lowest slot. `expert_fill` then copies what is missing, and the products read slot numbers where they read
// ids else. There are at least as many slots as a step can choose experts, or one for each expert. `src/routing/slots.rs` is the same rule
// for recorded texts, a token at a time.
//
// All of it is one workgroup's, in integers. Loops run to constants, as in `router.wgsl`. The kernel has `keys` and `chosen_ids` in
// workgroup memory.

// From word CACHE_CLOCK on: steps so far, experts that were asked for, hits, uploads; from CACHE_TABLE on for each expert its slot + 1,
// or 0; E words further for each expert how often it was used, by CACHE_PINNED_LRU alone; from `slots_at` on for each slot its expert + 1
// or 0, the step that used it last, how often it was used; from `fills_at` on experts that are missing now, each with its slot.
@group(0) @binding(6) var<storage, read_write> cache: array<u32>;
@group(0) @binding(7) var<storage, read_write> places: array<u32>;  // [T, k]
@group(0) @binding(8) var<storage, read_write> args: array<u32>;    // workgroups of `expert_fill`

var<workgroup> slot_of: array<u32, CHOSEN>;   // of each choice: slot + 1, or 0 where it is in none
var<workgroup> first_of: array<u32, CHOSEN>;  // the first choice of the same expert
var<workgroup> victims: array<u32, CHOSEN>;   // the slots that missing experts take, in order

// A slot that no missing expert takes; also the slot of a choice that is not there.
const TAKEN: u32 = 0xffffffffu;

// Where a slot's words are.
fn slot_at(slot: u32) -> u32 {
    return p.slots_at + 3u * min(slot, p.slots - 1u);
}

// Of two slots that are as good victims as each other: whether the first goes before the second.
fn goes_before(a: u32, b: u32) -> bool {
    let used_a = cache[slot_at(a) + 1u];
    let used_b = cache[slot_at(b) + 1u];
    return used_a < used_b || (used_a == used_b && a < b);
}

// The first choice of the expert of choice i. A token chooses none twice.
fn first_choice(i: u32) -> u32 {
    var first = i;
    if (TOKENS == 1u) { // static
    } else {
        for (var other = 0u; other < CHOSEN; other++) {
            if (other < first && chosen_ids[other] == chosen_ids[i]) {
                first = other;
            }
        }
    }
    return first;
}

// Experts among the choices before the j-th that are in no slot; of all of them where j is CHOSEN.
fn missing_before(j: u32) -> u32 {
    var count = 0u;
    for (var i = 0u; i < CHOSEN; i++) {
        count += select(0u, 1u, i < j && slot_of[i] == 0u && first_of[i] == i);
    }
    return count;
}

// Choices whose experts are in slots.
fn count_hits(chosen: u32) -> u32 {
    var count = 0u;
    for (var i = 0u; i < CHOSEN; i++) {
        count += select(0u, 1u, i < chosen && slot_of[i] > 0u);
    }
    return count;
}

// Where it is counted how often an expert was used since the slots were empty.
fn uses_at(expert: u32) -> u32 {
    return CACHE_TABLE + p.experts + expert;
}

// Whose turn it is, as a number of which the smallest goes first: empty slots, then those used least or, else, longest ago.
fn slot_key(s: u32, by_count: bool) -> u32 {
    let at = slot_at(s);
    let key = select(cache[at + 1u], cache[at + 2u], by_count) + 1u;
    return select(select(key, 0u, cache[at] == 0u), TAKEN, s >= p.slots);
}

// How many slots go before this one by their keys. Ranks are distinct whatever the keys.
fn slot_rank(s: u32) -> u32 {
    let key = keys[s];
    var rank = 0u;
    for (var other = 0u; other < CACHE_ROOM; other++) {
        let before = keys[other] < key || (keys[other] == key && other != s && goes_before(other, s));
        rank += select(0u, 1u, before);
    }
    return rank;
}

// Which of this invocation's slots, a bit each, hold the experts that were used most: these keep them. An invocation has 32 slots at
// most. All of the workgroup must call it.
fn pinned_slots(lid: u32) -> u32 {
    for (var s = lid; s < CACHE_ROOM; s += WG) {
        keys[s] = slot_key(s, true);
    }
    workgroupBarrier();
    var bits = 0u;
    for (var s = lid; s < CACHE_ROOM; s += WG) {
        let full = keys[s] != 0u && keys[s] != TAKEN;
        bits |= select(0u, 1u << (s / WG), full && slot_rank(s) + p.pinned >= p.slots);
    }
    workgroupBarrier();
    return bits;
}

// The keys of the slots by the policy. Counts grow old here.
fn make_slot_keys(lid: u32, now: u32) {
    let by_count = p.policy == CACHE_LFU_AGED;
    let ages = by_count && now > 0u && now % CACHE_AGING == 0u;
    var pinned = 0u;
    if (p.policy == CACHE_PINNED_LRU) {
        pinned = pinned_slots(lid);
    }
    for (var s = lid; s < CACHE_ROOM; s += WG) {
        if (ages && s < p.slots) {
            cache[slot_at(s) + 2u] /= 2u;
        }
        keys[s] = select(slot_key(s, by_count), TAKEN, ((pinned >> (s / WG)) & 1u) == 1u);
    }
}

// The slots that the missing experts take: those whose ranks are below their number.
fn choose_victims(lid: u32, missing: u32) {
    for (var s = lid; s < CACHE_ROOM; s += WG) {
        let rank = slot_rank(s);
        if (keys[s] != TAKEN && rank < missing) {
            victims[rank] = s;
        }
    }
}

// Puts the expert of a choice into its slot, in step `now`. The first choice of an expert does what is to be done once.
fn settle(i: u32, now: u32) {
    let expert = chosen_ids[i];
    let first = first_of[i];
    var slot = slot_of[i] - 1u;
    let pins = p.policy == CACHE_PINNED_LRU;
    var count = 1u;
    if (slot_of[i] == 0u) {
        if (pins) {
            count = cache[uses_at(expert)] + 1u;
        }
        let nth = missing_before(first);
        slot = victims[nth];
        if (first == i) {
            let old = cache[slot_at(slot)];
            if (old > 0u) {
                cache[CACHE_TABLE + old - 1u] = 0u;
            }
            cache[CACHE_TABLE + expert] = slot + 1u;
            cache[slot_at(slot)] = expert + 1u;
            cache[p.fills_at + 2u * nth] = expert;
            cache[p.fills_at + 2u * nth + 1u] = slot;
        }
    } else {
        count = cache[slot_at(slot) + 2u] + 1u;
    }
    if (first == i) {
        cache[slot_at(slot) + 1u] = now;
        cache[slot_at(slot) + 2u] = count;
        if (pins) {
            cache[uses_at(expert)] = count;
        }
    }
    places[p.places_offset + i / p.used * p.places_stride + i % p.used] = slot;
}

// The slots of the first `chosen` of `chosen_ids`. Every invocation of the workgroup must call it, once these stand.
fn place_experts(lid: u32, chosen: u32) {
    let now = cache[CACHE_CLOCK];
    // The keys of the choice are done with.
    workgroupBarrier();
    make_slot_keys(lid, now);
    for (var i = lid; i < CHOSEN; i += WG) {
        slot_of[i] = TAKEN;
        first_of[i] = i;
        if (i < chosen) {
            slot_of[i] = cache[CACHE_TABLE + chosen_ids[i]];
            first_of[i] = first_choice(i);
        }
    }
    workgroupBarrier();
    for (var i = lid; i < CHOSEN; i += WG) {
        if (i < chosen && slot_of[i] > 0u) {
            keys[slot_of[i] - 1u] = TAKEN;
        }
    }
    workgroupBarrier();
    let missing = missing_before(CHOSEN);
    if (missing > 0u) {
        choose_victims(lid, missing);
    }
    // Halved counts, too, are seen by all.
    storageBarrier();
    workgroupBarrier();
    for (var i = lid; i < CHOSEN; i += WG) {
        if (i < chosen) {
            settle(i, now);
        }
    }
    if (lid == 0u) {
        cache[CACHE_CLOCK] = now + 1u;
        cache[CACHE_LOOKUPS] += chosen;
        cache[CACHE_HITS] += count_hits(chosen);
        cache[CACHE_UPLOADS] += missing;
        args[0] = p.fill_blocks;
        args[1] = missing;
        args[2] = 1u;
    }
}
