// The search for the element at which a sum over the set, best first, passes an aim; see `sample_pick.wgsl`.

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

// Finds the element of the set at which the sum passes the aim, best first or by id: `found`, where `is_found` is 1.
fn descend(lid: u32, kind: u32, n: u32, mode: u32, by_id: bool) {
    if (lid == 0u) {
        base = vec2<u32>(0u);
        is_found = 0u;
    }
    var near = 0u;
    var prefix = 0u;
    var last = 0u;
    var population = 0u;
    for (var level = select(0u, 5u, by_id); level < 5u; level++) {
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

