//! Named numbers that Rust and WGSL share, each written once. A shader fragment uses them by name; the linker declares
//! those that a text uses.

/// Makes the constants, and the list of them all.
macro_rules! numbers {
    ($($(#[doc = $doc:literal])* $name:ident = $value:expr;)*) => {
        $($(#[doc = $doc])* pub const $name: u32 = $value;)*

        /// Every number by its name.
        pub const ALL: &[(&str, u32)] = &[$((stringify!($name), $name),)*];
    };
}

numbers! {
    /// Flag: add the bias.
    BIAS = 1;
    /// Flag: add the residual.
    RESIDUAL = 2;
    /// Flag: multiply by the sigmoid of the gate, before the residual.
    GATE = 4;
    /// Flag: add to what `y` holds; for second and later segments of `expert_down_add`.
    ACCUMULATE = 8;
    /// Flag: multiply by the factor, before the residual.
    FACTOR = 16;

    /// `OP` of `elementwise`: a + b.
    OP_ADD = 0;
    /// `OP` of `elementwise`: factor · a.
    OP_SCALE = 1;
    /// `OP` of `elementwise`: act(a) · b, or another gated unit of a and b.
    OP_GLU = 2;
    /// `OP` of `elementwise`: a · sigmoid(b), b one number a row.
    OP_SIGMOID_GATE = 3;
    /// `OP` of `elementwise`: the rows of a whose outputs are wanted.
    OP_TAKE_OUTPUTS = 4;
    /// `OP` of `elementwise`: act(a).
    OP_ACT = 5;
    /// `OP` of `elementwise`: a times each of the k numbers in a row of b, and then k ones.
    OP_SCALE_EXPERT_INPUTS = 6;

    /// `ACT`: SiLU.
    ACT_SILU = 0;
    /// `ACT`: GELU by the error function.
    ACT_GELU = 1;
    /// `ACT`: GELU by the hyperbolic tangent.
    ACT_GELU_TANH = 2;
    /// `ACT`: ReLU.
    ACT_RELU = 3;
    /// `ACT`: the clamped SwiGLU of GPT-OSS, a gated unit only, with `ALPHA` and `LIMIT` (bits of f32).
    ACT_CLAMPED_SWIGLU = 4;
    /// `ACT`: sigmoid.
    ACT_SIGMOID = 5;
    /// `ACT`: identity.
    ACT_IDENTITY = 6;
    /// `ACT`: hyperbolic tangent.
    ACT_TANH = 7;
    /// `ACT` of a product that no activation follows.
    NO_ACT = 9;

    /// Scores of a router: softmax over all experts.
    SCORE_SOFTMAX = 0;
    /// Scores of a router: softmax over the chosen experts.
    SCORE_SOFTMAX_OF_SELECTED = 1;
    /// Scores of a router: sigmoid.
    SCORE_SIGMOID = 2;
    /// Scores of a router: square root of the softplus.
    SCORE_SQRT_SOFTPLUS = 3;
    /// Scores of a router: sparsemixer.
    SCORE_SPARSE_MIXER = 4;

    /// What a router divides the chosen scores by: nothing.
    RENORMALISE_NO = 0;
    /// What a router divides the chosen scores by: their sum.
    RENORMALISE_SUM = 1;
    /// What a router divides the chosen scores by: their sum plus epsilon.
    RENORMALISE_SUM_PLUS = 2;
    /// What a router divides the chosen scores by: their sum, or epsilon where that is larger.
    RENORMALISE_SUM_AT_LEAST = 3;
    /// A router's weights are the softmax of the chosen scores.
    RENORMALISE_SOFTMAX = 4;

    /// Norm of q or k in `rope_store`: none.
    NORM_NONE = 0;
    /// Norm of q or k in `rope_store`: of each head by itself.
    NORM_EACH_HEAD = 1;
    /// Norm of q or k in `rope_store`: of all heads of a row together.
    NORM_WHOLE_ROW = 2;

    /// Ids in the list of forbidden tokens, at most.
    FORBIDDEN = 1024;
    /// Recent tokens in the ring that the repetition penalty looks at, at most.
    RING = 16384;
    /// u32 words of the sampler's state before the ring.
    RING_AT = 4;
    /// Tokens of a group whose largest key stands for them in the sampler.
    SAMPLE_GROUP = 64;
    /// In place of a token: logits that are no finite numbers. Also the key of a group that holds one.
    BROKEN = 0xffff_ffff;
    /// In place of a token: no token can be chosen.
    NOTHING = 0xffff_fffe;

    /// u32 words of a `Span` in the list of spans.
    SPAN_WORDS = 4;
    /// In place of a slot: states that are zeros, at the beginning of a text.
    STATE_FRESH = 0xffff_ffff;

    /// u32 word of a cache of experts: steps that it has seen.
    CACHE_CLOCK = 0;
    /// u32 word of a cache of experts: experts that were asked for.
    CACHE_LOOKUPS = 1;
    /// u32 word of a cache of experts: those of them that were in slots.
    CACHE_HITS = 2;
    /// u32 word of a cache of experts: those of them that were copied to slots.
    CACHE_UPLOADS = 3;
    /// First u32 word of a cache of experts that says where an expert is.
    CACHE_TABLE = 4;
    /// Policy of a cache of experts: the slot of the expert whose last use is longest ago is taken.
    CACHE_LRU = 0;
    /// Policy of a cache of experts: the slot of the expert that was used least, counts growing old.
    CACHE_LFU_AGED = 1;
    /// Policy of a cache of experts: as `CACHE_LRU`, but the experts that were used most keep their slots.
    CACHE_PINNED_LRU = 2;
    /// Steps after which `CACHE_LFU_AGED` halves its counts.
    CACHE_AGING = 256;

    /// Workgroups that attention shares the positions of a step out among, where fewer would have work: enough for the units of
    /// large GPUs.
    PIECE_WORKGROUPS = 256;
    /// Positions of a piece at least.
    PIECE_LEAST = 16;
    /// Positions up to which one workgroup goes through all of them: joining pieces costs a dispatch.
    PIECE_ALONE = 128;
    /// Pieces that a step is meant to have at most. By rounding they are up to a sixteenth more, and one.
    MOST_PIECES = 240;

    /// Workgroups that WebGPU dispatches in one dimension, at most.
    MOST_WORKGROUPS = 65535;
}

/// The number of this name.
pub fn named(name: &str) -> Option<u32> {
    ALL.iter().find(|n| n.0 == name).map(|n| n.1)
}
