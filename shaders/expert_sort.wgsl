
// expert_sort: groups the T*k (token, slot) pairs by expert, and cuts each expert's pairs into tiles for the grouped
// kernels, whose dispatch arguments it writes: how many tokens an expert got never visits the host.
//
// One workgroup in all: counts by atomics in workgroup memory, prefix sums (each invocation adds up the counts before
// its experts), then tiles and scattered pairs. The order of pairs within an expert is not fixed; no result depends on it.
//
// Grid: 1.

@group(0) @binding(2) var<storage, read> ids: array<u32>;                // [T, k]
@group(0) @binding(3) var<storage, read_write> pairs: array<u32>;        // [T*k]: t*k + j
@group(0) @binding(4) var<storage, read_write> tiles: array<vec4<u32>>;  // expert, first pair, pairs, 0
@group(0) @binding(5) var<storage, read_write> args: array<u32>;         // two of x, y, z, 0

var<workgroup> counts: array<atomic<u32>, EXPERTS>;
var<workgroup> next: array<atomic<u32>, EXPERTS>;

// The expert of a pair; `p.experts` or more where it is not here (see `local_ids`): such pairs go to no tile.
fn expert_of(pair: u32) -> u32 {
    return ids[p.ids_offset + pair / p.used * p.ids_stride + pair % p.used];
}

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) lid: u32) {
    let all = frame.tokens * p.used;
    // Loops run to the constant EXPERTS, not to the uniform: lavapipe makes a new shader for each value of a uniform that
    // bounds a loop, at every dispatch. Experts that are not there have no pairs.
    for (var e = lid; e < EXPERTS; e += WG) {
        atomicStore(&counts[e], 0u);
    }
    workgroupBarrier();
    for (var i = lid; i < all; i += WG) {
        let e = expert_of(i);
        if (e < p.experts) {
            atomicAdd(&counts[e], 1u);
        }
    }
    workgroupBarrier();
    for (var e = lid; e < EXPERTS; e += WG) {
        var first = 0u;
        var tile = 0u;
        var most = 0u;
        for (var other = 0u; other < EXPERTS; other++) {
            let n = atomicLoad(&counts[other]);
            first += select(0u, n, other < e);
            tile += select(0u, (n + p.tile - 1u) / p.tile, other < e);
            most = max(most, n);
        }
        let n = atomicLoad(&counts[e]);
        for (var done = 0u; done < most; done += p.tile) {
            if (done < n) {
                tiles[tile] = vec4<u32>(e, first + done, min(p.tile, n - done), 0u);
                tile++;
            }
        }
        atomicStore(&next[e], first);
        if (e == p.experts - 1u) {
            args[0] = p.blocks_0;
            args[1] = tile;
            args[2] = 1u;
            args[4] = p.blocks_1;
            args[5] = tile;
            args[6] = 1u;
        }
    }
    workgroupBarrier();
    for (var i = lid; i < all; i += WG) {
        let e = expert_of(i);
        if (e < p.experts) {
            pairs[atomicAdd(&next[e], 1u)] = i;
        }
    }
}
