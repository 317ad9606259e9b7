// TQ1_0: x = d * (q - 1), q in 0..3, d for 8 groups.
//
// Layout, in vec4: [0, 3 n / 8) three for 8 groups: bytes of five quants; then (at 3 n / 8) a word for 8 groups: bytes of four; then (at
// 3 n / 8 + ceil(n / 32)) d, f16, one for 8 groups. A quant is the first digit to base three of 3^i times a byte taken as a fraction:
// quant i of byte j is weight 32 i + j for j below 32, weight 160 + 16 i + j - 32 below 48, and weight 240 + 4 i + j - 48 beyond.
// Precision: f32, equal to ggml's dequantisation bit for bit.

// The i-th half of the plane that starts at `plane`.
fn W_half(plane: u32, i: u32) -> f32 {
    return unpack2x16float(W_data[plane + (i >> 3u)][(i >> 1u) & 3u] >> ((i & 1u) * 16u)).x;
}

// The quants' bytes, times 3^i, of 16 weights: the h-th 16 of block b.
fn W_half_group(b: u32, h: u32, n: u32) -> vec4<u32> {
    var v: vec4<u32>;
    var i: vec4<u32>;
    if (h < 10u) {
        v = W_data[3u * b + (h & 1u)];
        i = vec4<u32>(h >> 1u);
    } else if (h < 15u) {
        v = W_data[3u * b + 2u];
        i = vec4<u32>(h - 10u);
    } else {
        v = vec4<u32>(W_data[3u * (n >> 3u) + (b >> 2u)][b & 3u]);
        i = vec4<u32>(0u, 1u, 2u, 3u);
    }
    // 1, 3, 9, 27, 81; bytes at even and odd places apart, so that none overflows into its neighbour.
    let by = select(select(select(select(vec4<u32>(1u), vec4<u32>(3u), i == vec4<u32>(1u)), vec4<u32>(9u), i == vec4<u32>(2u)),
        vec4<u32>(27u), i == vec4<u32>(3u)), vec4<u32>(81u), i == vec4<u32>(4u));
    let even = ((v & vec4<u32>(0x00ff00ffu)) * by) & vec4<u32>(0x00ff00ffu);
    let odd = (((v >> vec4<u32>(8u)) & vec4<u32>(0x00ff00ffu)) * by) & vec4<u32>(0x00ff00ffu);
    return even | (odd << vec4<u32>(8u));
}

fn W_four(v: u32) -> vec4<i32> {
    return vec4<i32>((unpack4xU8(v) * 3u) >> vec4<u32>(8u)) - 1;
}

fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8> {
    let k = g & 7u;
    let s = W_half(3u * (n >> 3u) + ((n + 31u) >> 5u), g >> 3u);
    let a = W_half_group(g >> 3u, 2u * k, n);
    let b = W_half_group(g >> 3u, 2u * k + 1u, n);
    return array<vec4<f32>, 8>(
        vec4<f32>(W_four(a.x)) * s,
        vec4<f32>(W_four(a.y)) * s,
        vec4<f32>(W_four(a.z)) * s,
        vec4<f32>(W_four(a.w)) * s,
        vec4<f32>(W_four(b.x)) * s,
        vec4<f32>(W_four(b.y)) * s,
        vec4<f32>(W_four(b.z)) * s,
        vec4<f32>(W_four(b.w)) * s,
    );
}
