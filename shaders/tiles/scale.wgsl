// Powers of two that bring each row's largest number to 1024 .. 2048: halves neither overflow nor vanish. Infinity and what
// is no number stay what they are.
var<workgroup> scales: array<f32, COLS>;
var<workgroup> maxima: array<u32, WG>;

fn scale_of(bits: u32) -> f32 {
    return bitcast<f32>(max(bits & 0x7f800000u, 11u << 23u) - (10u << 23u));
}

// The largest magnitude of four numbers, as bits: what is no number counts as the largest.
fn magnitude(v: vec4<f32>) -> u32 {
    let bits = bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu);
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

fn prepare_x(lid: u32) {
    let c = lid % COLS;
    var most = 0u;
    for (var q = lid / COLS; q < p.cols / 4u; q += WG / COLS) {
        most = max(most, magnitude(x[x_starts[c] + q]));
    }
    maxima[lid] = most;
    workgroupBarrier();
    if (lid < COLS) {
        for (var o = lid + COLS; o < WG; o += COLS) {
            most = max(most, maxima[o]);
        }
        scales[lid] = scale_of(most);
    }
    workgroupBarrier();
}

