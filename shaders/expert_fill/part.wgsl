
// Copies 16 bytes, the i-th of an expert's share of a matrix, to a slot. The planes of a segment (see `src/quant/gpu.rs`) hold the same
// number of bytes for each expert, a multiple of 16. Linked once for each matrix.
fn A_copy(expert: u32, slot: u32, i: u32) {
    // Of other segments.
    if (expert < p.A_first || expert - p.A_first >= p.A_experts) {
        return;
    }
    var at = i;
    var size = p.A_size_0;
    var source = p.A_from_0;
    var target_at = p.A_to_0;
    if (at >= size) {
        at -= size;
        size = p.A_size_1;
        source = p.A_from_1;
        target_at = p.A_to_1;
        if (at >= size) {
            at -= size;
            size = p.A_size_2;
            source = p.A_from_2;
            target_at = p.A_to_2;
            if (at >= size) {
                at -= size;
                size = p.A_size_3;
                source = p.A_from_3;
                target_at = p.A_to_3;
            }
        }
    }
    if (at < size) {
        A_to[target_at + slot * size + at] = A_from[source + (expert - p.A_first) * size + at];
    }
}
