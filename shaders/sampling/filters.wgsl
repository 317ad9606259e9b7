// Aims of the filters and of the draw, and the cuts that they make of the set.

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
        let key = keys[keys_at + id];
        if (in_set(key, id)) {
            sum = add64(sum, weight(mode, key));
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
        if (maxima[maxima_at + g] == top_key) {
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

