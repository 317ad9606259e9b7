
// Where the rows of a step belong. Of one sequence, row t stands at position P + t. With BATCH = 1 every row names its
// sequence, whose part of the caches it sees, and its position.
@group(0) @binding(20) var<storage, read> rows: array<vec2<u32>>;  // BATCH = 1: [T] of sequence, position; else not read

fn position_of(t: u32) -> u32 {
    var position = frame.past + t;
    if (BATCH == 1u) { // static
        position = rows[t].y;
    }
    return position;
}

fn sequence_of(t: u32) -> u32 {
    var sequence = 0u;
    if (BATCH == 1u) { // static
        sequence = rows[t].x;
    }
    return sequence;
}
