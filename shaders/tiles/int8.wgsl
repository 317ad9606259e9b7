// Tiles of packed signed bytes: weights as their format's own integers, x rounded to 8 bits with one scale for each group of
// 32. Products of four bytes at a time are exact (`dot4I8Packed`); scales and sums in f32. x is off by at most 1/254 of its
// group's largest number, as with Q8_0.
struct Ints {
    a: vec4<u32>,  // weights 0 .. 16 of a group, signed bytes
    b: vec4<u32>,  // 16 .. 32
    s: vec4<f32>,  // weights are s.x * a + s.z and s.y * b + s.w
}
var<workgroup> weight_tile: array<vec4<u32>, 2 * TM>;    // [half of the group, row]
var<workgroup> weight_scales: array<vec4<f32>, TM>;
var<workgroup> x_tile: array<vec4<u32>, 2 * COLS>;  // [half of the group, row]
var<workgroup> x_scales: array<vec4<f32>, COLS>;    // scale, sums of the halves' numbers times it, 0
var<workgroup> sum_tile: array<vec4<f32>, 8 * TM>;

fn keep_weights(i: u32, v: Ints) {
    weight_tile[i] = v.a;
    weight_tile[TM + i] = v.b;
    weight_scales[i] = v.s;
}

fn prepare_x(lid: u32) {}

// The largest magnitude of four numbers, as bits: what is no number counts as the largest.
fn magnitude(v: vec4<f32>) -> u32 {
    let bits = bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu);
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

fn bytes_of(v: vec4<f32>, by: f32) -> u32 {
    return pack4xI8(vec4<i32>(round(v * by)));
}

fn byte_sum(v: vec4<u32>) -> f32 {
    let ones = 0x01010101u;
    return f32(dot4I8Packed(v.x, ones) + dot4I8Packed(v.y, ones) + dot4I8Packed(v.z, ones) + dot4I8Packed(v.w, ones));
}

fn stage_x(count: u32, j: u32, lid: u32) {
    for (var c = lid; c < count; c += WG) {
        let at = x_starts[c];
        let v = array<vec4<f32>, 8>(
            x_quad(at, j, 0u),
            x_quad(at, j, 1u),
            x_quad(at, j, 2u),
            x_quad(at, j, 3u),
            x_quad(at, j, 4u),
            x_quad(at, j, 5u),
            x_quad(at, j, 6u),
            x_quad(at, j, 7u),
        );
        var most = 0u;
        for (var q = 0u; q < 8u; q++) { // unroll
            most = max(most, magnitude(v[q]));
        }
        // Infinity and what is no number make the scale such; a group of next to nothing (at most 1e-30) is nothing.
        let largest = bitcast<f32>(most);
        let something = most > 0x0da24260u;
        let d = select(0.0, largest / 127.0, something);
        let by = select(0.0, 127.0 / largest, something);
        let a = vec4<u32>(bytes_of(v[0], by), bytes_of(v[1], by), bytes_of(v[2], by), bytes_of(v[3], by));
        let b = vec4<u32>(bytes_of(v[4], by), bytes_of(v[5], by), bytes_of(v[6], by), bytes_of(v[7], by));
        x_tile[c] = a;
        x_tile[COLS + c] = b;
        x_scales[c] = vec4<f32>(d, d * byte_sum(a), d * byte_sum(b), 0.0);
    }
}

fn dot_bytes(a: vec4<u32>, b: vec4<u32>) -> f32 {
    return f32(dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y) + dot4I8Packed(a.z, b.z) + dot4I8Packed(a.w, b.w));
}

fn multiply(count: u32, lid: u32, sums: ptr<function, array<f32, 32>>) {
    let ti = lid % 8u;
    let tj = lid / 8u;
    for (var c = 0u; c < 4u; c++) { // unroll
        // A tile with few rows pays for few.
        if (8u * c < count) {
            let at = tj + 8u * c;
            let xa = x_tile[at];
            let xb = x_tile[COLS + at];
            let xs = x_scales[at];
            for (var r = 0u; r < 8u; r++) { // unroll
                let row = ti + 8u * r;
                let s = weight_scales[row];
                let scaled = s.x * dot_bytes(weight_tile[row], xa) + s.y * dot_bytes(weight_tile[TM + row], xb);
                (*sums)[r * 4u + c] += xs.x * scaled + s.z * xs.y + s.w * xs.z;
            }
        }
    }
}

fn leave(at: u32, v: vec4<f32>) {
    sum_tile[at] = v;
}

// The sum of weight row i and row c of x.
fn result(i: u32, c: u32) -> f32 {
    return sum_tile[c % 8u * TM + i][c / 8u];
}

