// Two halves as singles, on devices whose own conversion takes subnormal halves for zeros (WGSL allows it). Most scales of k-quants
// are subnormal. No number here is a subnormal single, which such a device may take for zero as well.
fn half_pair(word: u32) -> vec2<f32> {
    let bits = vec2<u32>(word & 0xffffu, word >> 16u);
    let magnitude = bits & vec2<u32>(0x7fffu);
    // Exponents of singles begin 112 lower; the largest one means infinities and what is no number in both.
    let normal = bitcast<vec2<f32>>((magnitude << vec2<u32>(13u)) + vec2<u32>(112u << 23u));
    let special = bitcast<vec2<f32>>((magnitude << vec2<u32>(13u)) | vec2<u32>(0x7f800000u));
    let small = vec2<f32>(magnitude) * 5.9604644775390625e-8;
    let value = select(select(normal, small, magnitude < vec2<u32>(0x0400u)), special, magnitude >= vec2<u32>(0x7c00u));
    return select(value, -value, bits >= vec2<u32>(0x8000u));
}

