
// Rotary position embedding (Su et al. 2021). Cosines and sines come from a table made on the host: WGSL's own are only
// required to be right to 2^-11, and not at all for large angles.
@group(0) @binding(2) var<storage, read> rope_table: array<vec2<f32>>;  // [ctx, dims / 2]: cos, sin, times the rope's scale

// The column of a head that rotates together with column c; c itself beyond the first `dims`.
fn partner(c: u32, dims: u32, halves: u32) -> u32 {
    if (c >= dims) {
        return c;
    }
    if (halves == 0u) {
        return c ^ 1u;
    }
    return select(c - dims / 2u, c + dims / 2u, c < dims / 2u);
}

// Column c rotated, from its own value and its partner's; columns beyond `dims` as they are.
fn rotate(own: f32, other: f32, c: u32, dims: u32, halves: u32, position: u32) -> f32 {
    if (c >= dims) {
        return own;
    }
    let pair = select(c % (dims / 2u), c / 2u, halves == 0u);
    let first = select(c < dims / 2u, c % 2u == 0u, halves == 0u);
    let cs = rope_table[position * (dims / 2u) + pair];
    return own * cs.x + select(other, -other, first) * cs.y;
}
