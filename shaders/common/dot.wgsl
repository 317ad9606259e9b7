
// What the matrix kernels share: groups of 32 activations and their dot product with a group of weights, in f32.

// Group j of the row of x of `cols` columns that starts at vec4 `base`; zero beyond the end of the last group (TAIL).
fn x_group(base: u32, j: u32, cols: u32) -> array<vec4<f32>, 8> {
    let at = base + j * 8u;
    if (TAIL == 1u) { // static
        let left = cols / 4u - j * 8u;
        let zero = vec4<f32>(0.0);
        // The index stays inside the row where the value is not wanted.
        return array<vec4<f32>, 8>(
            x[at],
            select(zero, x[at + min(1u, left - 1u)], left > 1u),
            select(zero, x[at + min(2u, left - 1u)], left > 2u),
            select(zero, x[at + min(3u, left - 1u)], left > 3u),
            select(zero, x[at + min(4u, left - 1u)], left > 4u),
            select(zero, x[at + min(5u, left - 1u)], left > 5u),
            select(zero, x[at + min(6u, left - 1u)], left > 6u),
            select(zero, x[at + min(7u, left - 1u)], left > 7u),
        );
    } else {
        return array<vec4<f32>, 8>(
            x[at], x[at + 1u], x[at + 2u], x[at + 3u], x[at + 4u], x[at + 5u], x[at + 6u], x[at + 7u],
        );
    }
}

fn sum_quad(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

fn sum_group(v: array<vec4<f32>, 8>) -> f32 {
    return sum_quad(((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])));
}

// The dot product of 32 numbers with the nibbles of four words as they are: byte j has number j below and number j + 16 above.
fn dot_nibbles(q: vec4<u32>, v: array<vec4<f32>, 8>) -> f32 {
    let low = q & vec4<u32>(0x0f0f0f0fu);
    let high = (q >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
    var s = vec4<f32>(unpack4xU8(low.x)) * v[0];
    s = fma(vec4<f32>(unpack4xU8(low.y)), v[1], s);
    s = fma(vec4<f32>(unpack4xU8(low.z)), v[2], s);
    s = fma(vec4<f32>(unpack4xU8(low.w)), v[3], s);
    s = fma(vec4<f32>(unpack4xU8(high.x)), v[4], s);
    s = fma(vec4<f32>(unpack4xU8(high.y)), v[5], s);
    s = fma(vec4<f32>(unpack4xU8(high.z)), v[6], s);
    s = fma(vec4<f32>(unpack4xU8(high.w)), v[7], s);
    return sum_quad(s);
}

fn dot_group(a: array<vec4<f32>, 8>, b: array<vec4<f32>, 8>) -> f32 {
    var s = a[0] * b[0];
    s = fma(a[1], b[1], s);
    s = fma(a[2], b[2], s);
    s = fma(a[3], b[3], s);
    s = fma(a[4], b[4], s);
    s = fma(a[5], b[5], s);
    s = fma(a[6], b[6], s);
    s = fma(a[7], b[7], s);
    return sum_quad(s);
}
