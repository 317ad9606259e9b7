
// probe: what this device really does, where WGSL leaves it open: once when it is opened, by one workgroup.
//
// Each invocation marks its place in the workgroup, counted as kernels with SUBGROUPS do: 1 where what it sees of its subgroup
// fits together (size, numbers of invocations, a sum, a shuffle), else 2. A place that nobody marks stays 0. Behind them
// the device's conversions of some halves, as bits. Grid: 1.

@group(0) @binding(2) var<storage, read> x: array<u32>;        // [HALVES] halves, in the lower half of each word
@group(0) @binding(3) var<storage, read_write> y: array<u32>;  // [WG + 1 + HALVES]: marks, size of a subgroup, singles

const LANES: u32 = 1u;

@compute @workgroup_size(WG)
fn main(who: Ids) {
    let place = place_of(who);
    var good = place < WG;
    var size = 0u;
    if (SUBGROUPS == 1u) { // static
        size = subgroupMax(who.invocation) + 1u;
        good = good && size == who.size && subgroupAdd(1u) == who.size;
        good = good && subgroupShuffleXor(who.invocation, 1u) == (who.invocation ^ 1u);
    }
    y[min(place, WG - 1u)] = select(2u, 1u, good);
    if (place == 0u) {
        y[WG] = size;
    }
    if (place < p.halves) {
        y[WG + 1u + place] = bitcast<u32>(unpack2x16float(x[place]).x);
    }
}
