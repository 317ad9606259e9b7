
// Writes to a row of keys or values in the cache: a workgroup one head's, an invocation four columns.
var<workgroup> block_tops: array<u32, WG>;

fn kv_write_word(is_v: bool, at: u32, word: KvWord) {
    if (is_v) {
        v_cache[at] = word;
    } else {
        k_cache[at] = word;
    }
}

// Words of a row of so many columns, in fours.
fn row_words(fours: u32) -> u32 {
    return fours + KV_SCALES * ((fours + 15u) / 16u);
}

// Magnitudes are compared as bits, which have the same order.
//
// Columns 4 i .. 4 i + 4 of the row at word `row`, of `fours` times four; beyond them nothing is written. A scale needs its
// block's largest magnitude, for which neighbours meet: every invocation of the workgroup calls this, i is `lid` plus a
// multiple of WG, and that is a multiple of 16.
fn kv_write(lid: u32, is_v: bool, row: u32, i: u32, fours: u32, v: vec4<f32>) {
    if (KV_SCALES == 1u) { // static
        let a = bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu);
        block_tops[lid] = select(0u, max(max(a.x, a.y), max(a.z, a.w)), i < fours);
        workgroupBarrier();
        var top = 0u;
        for (var s = 0u; s < 8u; s++) {
            top = max(top, block_tops[(lid & ~7u) + s]);
        }
        // Two blocks' scales share a word, which the first invocation of both writes.
        var next = 0u;
        for (var s = 8u; s < 16u; s++) {
            next = max(next, block_tops[(lid & ~15u) + s]);
        }
        workgroupBarrier();
        if (i < fours) {
            kv_write_word(is_v, row + i, kv_quants(v, top));
            if ((i & 15u) == 0u) {
                kv_write_word(is_v, row + fours + i / 16u, (kv_scale_bits(top) >> 16u) | kv_scale_bits(next));
            }
        }
    } else {
        if (i < fours) {
            kv_write_word(is_v, row + i, kv_pack(v));
        }
    }
}
