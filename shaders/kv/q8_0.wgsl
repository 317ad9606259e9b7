
// Cache storage: quants of 8 bits, four a word; behind the quants of a row the scales of its blocks of 32 columns, two a word,
// the upper halves of singles. A scale is a 127th of the block's largest magnitude, rounded up.
alias KvWord = u32;

fn kv_load(word: KvWord) -> vec4<f32> {
    return vec4<f32>(unpack4xI8(word));
}

// The scale of a block, from the word that has it.
fn kv_scale(word: KvWord, block: u32) -> f32 {
    return bitcast<f32>((word << (16u - (block & 1u) * 16u)) & 0xffff0000u);
}

// The scale for the largest magnitude of these bits, in the upper half of the word. Bits of infinities and of what is no number
// are above all others: the scale shows them.
fn kv_scale_bits(top: u32) -> u32 {
    if (top >= 0x7f800000u) {
        return 0x7fc00000u;
    }
    return (bitcast<u32>(bitcast<f32>(top) * (1.0 / 127.0)) + 0xffffu) & 0xffff0000u;
}

fn kv_quants(v: vec4<f32>, top: u32) -> KvWord {
    let scale = bitcast<f32>(kv_scale_bits(top));
    let inverse = select(0.0, 1.0 / scale, scale > 0.0);
    return pack4xI8(vec4<i32>(clamp(round(v * inverse), vec4<f32>(-127.0), vec4<f32>(127.0))));
}
