// What the sampler searches: elements (tokens or groups) with a key and an id, of which some are in the set that the
// filters have left, and what each adds to a sum.
fn key_at(kind: u32, id: u32) -> u32 {
    if (kind == GROUPS) {
        return maxima[maxima_at + id];
    }
    return select(0u, keys[keys_at + min(id, p.vocab - 1u)], id < p.vocab);
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
    if (mode == HEAT && below < settings[own].log_min_p) {
        return vec2<u32>(0u);
    }
    let scaled = 4096.0 * exp(max(below * select(1.0, settings[own].inverse_temperature, mode == HEAT), -100.0));
    let high = floor(scaled);
    return vec2<u32>(u32((scaled - high) * 4294967296.0), u32(high));
}

