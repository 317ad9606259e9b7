
// expert_places: the slots of the experts that a router has chosen for a few tokens; see `experts/place.wgsl`.
//
// Grid: 1.

@group(0) @binding(2) var<storage, read> ids: array<u32>;  // [T, k]

var<workgroup> keys: array<u32, CACHE_ROOM>;
var<workgroup> chosen_ids: array<u32, CHOSEN>;

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) lid: u32) {
    let chosen = min(frame.tokens * p.used, CHOSEN);
    for (var i = lid; i < CHOSEN; i += WG) {
        let at = min(i, chosen - 1u);
        chosen_ids[i] = min(ids[p.ids_offset + at / p.used * p.ids_stride + at % p.used], p.experts - 1u);
    }
    workgroupBarrier();
    place_experts(lid, chosen);
}
