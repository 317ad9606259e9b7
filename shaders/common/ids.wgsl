// Who an invocation is, and how LANES invocations that share a row add up: in workgroup memory only.
struct Ids {
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
}

fn place_of(ids: Ids) -> u32 {
    return ids.lid;
}

// Neighbouring lanes whose sum `fold` gives to each of them.
fn folded_by(ids: Ids) -> u32 {
    return 1u;
}

fn fold(v: f32, ids: Ids) -> f32 {
    return v;
}

