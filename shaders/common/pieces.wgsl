
// How the positions that a step sees are shared out among workgroups: in pieces of equal length, side by side, so that a large
// device has work for all of its units whatever the cache holds. One piece goes through everything where there are few positions,
// or enough workgroups without. `Pieces` in the plan counts them in the same way.
struct Pieces {
    count: u32,   // of a step
    length: u32,  // positions of one
}

// The first position that a query at this one sees.
fn first_seen(position: u32) -> u32 {
    if (p.window == 0u) {
        return 0u;
    }
    if (p.attention_chunks != 0u) {
        return position - position % p.window;
    }
    return position + 1u - min(position + 1u, p.window);
}

fn pieces() -> Pieces {
    let group = p.heads / p.kv_heads;
    var blocks = p.kv_heads * ((frame.tokens * group + p.tile_rows - 1u) / p.tile_rows);
    if (BATCH == 1u) { // static
        blocks = p.kv_heads * frame.tokens * ((group + p.tile_rows - 1u) / p.tile_rows);
    }
    var span = frame.past + frame.tokens;
    if (p.window != 0u) {
        span = min(span, p.window + frame.tokens - 1u);
    }
    let wanted = clamp((PIECE_WORKGROUPS + blocks - 1u) / blocks, 1u, p.most_pieces);
    if (wanted == 1u || span <= PIECE_ALONE) {
        return Pieces(1u, span);
    }
    let length = max(span / wanted, PIECE_LEAST);
    return Pieces((span + length - 1u) / length, length);
}

// Where the first piece of a token begins. Without BATCH a workgroup may take rows of several tokens, so the first token's
// counts for all.
fn pieces_begin(token: u32) -> u32 {
    if (BATCH == 1u) { // static
        return first_seen(position_of(token));
    } else {
        return first_seen(frame.past);
    }
}
