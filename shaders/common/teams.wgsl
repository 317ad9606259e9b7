// How the invocations of a workgroup share rows of a matrix: LANES of them, side by side, are a team, which takes ROWS rows,
// TEAMS apart.
const TEAMS: u32 = WG / LANES;

// Which of its team's lanes an invocation is.
fn lane_of(lid: u32) -> u32 {
    var lane = lid % LANES;
    if (LANES == 1u) { // static
        // Said outright, so that every compiler sees that all invocations read the same x at the same time.
        lane = 0u;
    }
    return lane;
}

