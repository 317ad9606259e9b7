
// The expert of a slot, from the router's ids.
@group(0) @binding(11) var<storage, read> ids: array<u32>;  // [T, k]

fn expert_at(t: u32, slot: u32) -> u32 {
    return ids[p.ids_offset + t * p.ids_stride + slot];
}
