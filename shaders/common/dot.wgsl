
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

fn dot_group(a: array<vec4<f32>, 8>, b: array<vec4<f32>, 8>) -> f32 {
    var s = a[0] * b[0];
    s = fma(a[1], b[1], s);
    s = fma(a[2], b[2], s);
    s = fma(a[3], b[3], s);
    s = fma(a[4], b[4], s);
    s = fma(a[5], b[5], s);
    s = fma(a[6], b[6], s);
    s = fma(a[7], b[7], s);
    return (s.x + s.y) + (s.z + s.w);
}
