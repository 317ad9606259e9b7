
// Sizes of this step, written once a step; the layout is `kernels::params::Frame`.
struct Frame {
    tokens: u32,        // T
    past: u32,          // P, positions in the cache before this step
    outputs: u32,       // O, the last rows whose results are wanted
    first_output: u32,  // T - O
    draw: u32,          // where in [0, 2^32) the draw of this step's token falls
    reserved_1: u32,
    reserved_2: u32,
    reserved_3: u32,
}
@group(0) @binding(0) var<uniform> frame: Frame;
