
// The rows of each sequence in a step, for kernels that carry a state from row to row: one span a sequence, and with BATCH = 1 the
// rows of all spans, a sequence's in the order of its text. Slots are places for the states of a sequence: a step reads one and
// writes another, so that it can be undone.
@group(0) @binding(21) var<storage, read> spans: array<u32>;  // [sequences] of Span, then [T] rows

// The span of a sequence; its count is 0 where the step has no row of it.
fn span_of(sequence: u32) -> Span {
    let at = SPAN_WORDS * sequence;
    return Span(spans[at], spans[at + 1u], spans[at + 2u], spans[at + 3u]);
}

// Row i of a span, as a row of the step.
fn row_of(span: Span, i: u32) -> u32 {
    var row = i;
    if (BATCH == 1u) { // static
        row = spans[span.first + i];
    }
    return row;
}
