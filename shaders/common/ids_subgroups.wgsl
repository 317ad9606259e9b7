// Who an invocation is, and how LANES invocations that share a row add up: first within their subgroup, of whatever size, then
// in workgroup memory what the subgroups left. An invocation's place in the workgroup is counted by subgroups, so that lanes
// side by side are in one subgroup whatever order the device gives `local_invocation_index`.
struct Ids {
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) invocation: u32,
}

fn place_of(ids: Ids) -> u32 {
    return ids.subgroup * ids.size + ids.invocation;
}

// Neighbouring lanes whose sum `fold` gives to each of them.
fn folded_by(ids: Ids) -> u32 {
    return min(LANES, ids.size);
}

// Every invocation of the subgroup must call it.
fn fold(v: f32, ids: Ids) -> f32 {
    var sum = v;
    for (var reach = 1u; reach < min(LANES, ids.size); reach *= 2u) {
        sum += subgroupShuffleXor(sum, reach);
    }
    return sum;
}

