//! The uniforms of the kernels: Rust twins of each file's `struct Params`, and of the `Frame` that all share.
//!
//! Offsets and strides are in elements, `*_offset` from the start of the binding. The twins are compared with the WGSL
//! field by field in the tests.

use bytemuck::{Pod, Zeroable};

/// A field of a uniform: name, offset in bytes, size in bytes.
pub type Field = (&'static str, usize, usize);

macro_rules! params {
    ($($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident : $ty:ty,)* })*) => { $(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }
        impl $name {
            /// The fields as the shader must have them.
            pub const FIELDS: &'static [Field] = &[$((
                stringify!($field),
                std::mem::offset_of!($name, $field),
                std::mem::size_of::<$ty>(),
            ),)*];
        }
    )* };
}

/// Add the bias.
pub const BIAS: u32 = 1;
/// Add the residual.
pub const RESIDUAL: u32 = 2;
/// Multiply by the sigmoid of the gate, before the residual.
pub const GATE: u32 = 4;
/// Add to what `y` holds: second and later segments of `expert_down_add`.
pub const ACCUMULATE: u32 = 8;
/// Multiply by the factor, before the residual.
pub const FACTOR: u32 = 16;

params! {
    /// Sizes of this step, written once a step.
    Frame {
        /// T.
        tokens: u32,
        /// P.
        past: u32,
        /// O.
        outputs: u32,
        /// T - O: the first row whose output is wanted.
        first_output: u32,
        /// Where in [0, 2^32) the draw of this step's token falls.
        draw: u32,
        /// Room.
        reserved_1: u32,
        /// Room.
        reserved_2: u32,
        /// Room.
        reserved_3: u32,
    }

    /// `embed`.
    EmbedParams {
        /// First row of the segment.
        row0: u32,
        /// Rows of the segment.
        rows: u32,
        /// Groups a row.
        groups: u32,
        /// Columns, a multiple of 4.
        cols: u32,
        /// Of the token ids (their stride is `ids_stride`).
        ids_offset: u32,
        /// Of the token ids.
        ids_stride: u32,
        /// Of the result.
        y_offset: u32,
        /// Of the result.
        y_stride: u32,
        /// Factor.
        scale: f32,
    }

    /// `rms_norm`.
    RmsNormParams {
        /// 1: the rows are the O outputs, 0: the T tokens.
        outputs: u32,
        /// Columns that are normalised together, a multiple of 4.
        cols: u32,
        /// Of the input.
        x_offset: u32,
        /// Of the input.
        x_stride: u32,
        /// Of the result.
        y_offset: u32,
        /// Of the result.
        y_stride: u32,
        /// Added to the mean square.
        eps: f32,
    }

    /// `linear`, `linear_two`, `expert_linear`, `expert_linear_grouped`.
    LinearParams {
        /// 1: the rows are the O outputs, 0: the T tokens. (Experts: 0.)
        outputs: u32,
        /// First row of the segment (of the flattened `[E * out]` rows for experts).
        row0: u32,
        /// Rows of the segment.
        rows: u32,
        /// Groups a row.
        groups: u32,
        /// Columns of the matrix (K), a multiple of 4.
        cols: u32,
        /// Rows of one expert's matrix; plain: unused.
        out: u32,
        /// Of the input.
        x_offset: u32,
        /// Of the input, token to token.
        x_stride: u32,
        /// Of the result: output column n of the whole matrix is at `y_offset + n`.
        y_offset: u32,
        /// Of the result, token to token. Experts: slot j of a token is `j * out` further.
        y_stride: u32,
        /// `BIAS | RESIDUAL | GATE | FACTOR`; experts: `BIAS` only.
        flags: u32,
        /// Of the residual.
        residual_offset: u32,
        /// Of the residual.
        residual_stride: u32,
        /// Of the gate `[R, 1]`.
        gate_offset: u32,
        /// Of the gate.
        gate_stride: u32,
        /// Added to the mean square where the norm is folded in (`NORM`), plain only.
        eps: f32,
        /// Experts used a token (k); plain: unused.
        used: u32,
        /// Experts: 1 where x is `[T, k * cols]`, 0 where it is `[T, cols]`.
        x_slots: u32,
        /// Of the expert ids.
        ids_offset: u32,
        /// Of the expert ids.
        ids_stride: u32,
        /// `linear_two`: workgroups in x that take the first matrix.
        blocks: u32,
        /// `linear_two`: rows of the second matrix.
        rows_1: u32,
        /// `linear_two`: output column of its first row.
        column_1: u32,
        /// Of the normalised x in a row of `y` (`NORMED`), from the row's start.
        normed_offset: u32,
        /// On the product.
        factor: f32,
    }

    /// `linear_glu`, `expert_glu`, `expert_glu_shared`, `expert_glu_choose`, `expert_glu_shared_choose`,
    /// `expert_glu_grouped`.
    GluLinearParams {
        /// 1: the rows are the O outputs, 0: the T tokens. (Experts: 0.)
        outputs: u32,
        /// First row of both segments (of the flattened `[E * out]` rows for experts).
        row0: u32,
        /// Rows of both segments.
        rows: u32,
        /// Groups a row.
        groups: u32,
        /// Columns of the matrices (K), a multiple of 4.
        cols: u32,
        /// Rows of one expert's matrix; plain: unused.
        out: u32,
        /// Of the input.
        x_offset: u32,
        /// Of the input, token to token.
        x_stride: u32,
        /// Of the result: output column n of the whole matrix is at `y_offset + n`.
        y_offset: u32,
        /// Of the result, token to token. Experts: slot j of a token is `j * out` further.
        y_stride: u32,
        /// Added to the mean square where the norm is folded in (`NORM`), plain only.
        eps: f32,
        /// Experts used a token (k); plain: unused.
        used: u32,
        /// Experts: 1 where x is `[T, k * cols]`, 0 where it is `[T, cols]`.
        x_slots: u32,
        /// Of the expert ids.
        ids_offset: u32,
        /// Of the expert ids.
        ids_stride: u32,
        /// Rows of the shared expert's matrices (Is).
        shared_rows: u32,
        /// Slots that it takes, of `out` rows each.
        shared_parts: u32,
        /// The router's, where the kernel chooses (`CHOOSE`): E.
        experts: u32,
        /// 0 softmax, 1 softmax of the selected, 2 sigmoid.
        score: u32,
        /// 1: divide by the sum of the selected.
        renormalise: u32,
        /// Factor on the weights.
        router_scale: f32,
        /// Of the logits, which lie in the rows of x.
        logits_offset: u32,
        /// Of the expert weights.
        weights_offset: u32,
        /// Of the expert weights.
        weights_stride: u32,
        /// `BIAS`, experts only.
        flags: u32,
        /// Where the biases of up start.
        bias_up: u32,
    }

    /// `expert_down_add`, `expert_down_shared_add`.
    ExpertDownAddParams {
        /// First row of the segment, of the flattened `[E * out]` rows.
        row0: u32,
        /// Rows of the segment.
        rows: u32,
        /// Groups a row.
        groups: u32,
        /// Columns of one expert's matrix (I), a multiple of 4.
        cols: u32,
        /// Rows of one expert's matrix (H).
        out: u32,
        /// Experts used a token (k).
        used: u32,
        /// `RESIDUAL` (start from the residual) or `ACCUMULATE` (start from y), or neither (start from 0); and `BIAS`, `GATE`.
        flags: u32,
        /// Of h `[T, k * I]`.
        x_offset: u32,
        /// Of h, token to token.
        x_stride: u32,
        /// Of the result.
        y_offset: u32,
        /// Of the result.
        y_stride: u32,
        /// Of the residual.
        residual_offset: u32,
        /// Of the residual.
        residual_stride: u32,
        /// Of the expert ids.
        ids_offset: u32,
        /// Of the expert ids.
        ids_stride: u32,
        /// Of the expert weights.
        weights_offset: u32,
        /// Of the expert weights.
        weights_stride: u32,
        /// Columns of the shared expert's matrix (Is), a multiple of 4.
        shared_cols: u32,
        /// Groups of a row of it.
        shared_groups: u32,
        /// Of the shared expert's gate `[T, 1]` (`GATE`).
        gate_offset: u32,
        /// Of the gate.
        gate_stride: u32,
        /// On the weighted sum.
        factor: f32,
    }

    /// `rope`.
    RopeParams {
        /// Heads.
        heads: u32,
        /// Columns of a head, even.
        head_dim: u32,
        /// Columns that rotate, even.
        dims: u32,
        /// 1: columns i and i + dims/2 are a pair; 0: columns 2i and 2i+1.
        halves: u32,
        /// Of the input.
        x_offset: u32,
        /// Of the input.
        x_stride: u32,
        /// Of the result.
        y_offset: u32,
        /// Of the result.
        y_stride: u32,
    }

    /// `kv_store`.
    KvStoreParams {
        /// Heads of the cache.
        kv_heads: u32,
        /// Length of a key, a multiple of 4.
        k_dim: u32,
        /// Length of a value, a multiple of 4.
        v_dim: u32,
        /// Positions of the cache.
        ctx: u32,
        /// Of the keys.
        k_offset: u32,
        /// Of the keys.
        k_stride: u32,
        /// Of the values.
        v_offset: u32,
        /// Of the values.
        v_stride: u32,
    }

    /// `head_ids`.
    HeadIdsParams {
        /// Heads.
        heads: u32,
        /// Of the ids.
        y_offset: u32,
        /// Of the ids.
        y_stride: u32,
    }

    /// `join_heads`.
    JoinHeadsParams {
        /// 1: the rows are the O outputs, 0: the T tokens.
        outputs: u32,
        /// Heads.
        heads: u32,
        /// Columns of a head of the first operand.
        a_cols: u32,
        /// Columns of a head of the second operand.
        b_cols: u32,
        /// Of the first operand.
        a_offset: u32,
        /// Of the first operand.
        a_stride: u32,
        /// Of the second operand.
        b_offset: u32,
        /// Of the second operand.
        b_stride: u32,
        /// Of the result.
        y_offset: u32,
        /// Of the result.
        y_stride: u32,
    }

    /// `rope_store`.
    RopeStoreParams {
        /// Query heads.
        heads: u32,
        /// Heads of the cache.
        kv_heads: u32,
        /// Length of a query and of a key, a multiple of 4.
        head_dim: u32,
        /// Length of a value, a multiple of 4.
        v_dim: u32,
        /// Positions of the cache.
        ctx: u32,
        /// Columns that rotate, even.
        dims: u32,
        /// 1: columns i and i + dims/2 are a pair; 0: columns 2i and 2i+1.
        halves: u32,
        /// Norm of q: 0 none, 1 each head, 2 the whole row.
        q_norm_kind: u32,
        /// Norm of k: 0 none, 1 each head, 2 the whole row.
        k_norm_kind: u32,
        /// 1: the norms come after the rotation.
        norm_last: u32,
        /// Of q in `qkv`.
        q_offset: u32,
        /// Of k in `qkv`.
        k_offset: u32,
        /// Of v in `qkv`.
        v_offset: u32,
        /// Of `qkv`, token to token.
        stride: u32,
        /// Of the rotated queries.
        y_offset: u32,
        /// Of the rotated queries.
        y_stride: u32,
        /// Of q's norm.
        q_eps: f32,
        /// Of k's norm.
        k_eps: f32,
    }

    /// `attend`.
    AttendParams {
        /// Query heads.
        heads: u32,
        /// Heads of the cache.
        kv_heads: u32,
        /// Positions of the cache.
        ctx: u32,
        /// A query sees this many positions; 0: all.
        window: u32,
        /// 1: positions are in chunks of `window`, and a query sees those of its own.
        chunked: u32,
        /// 1: `sinks` is there.
        sinks_on: u32,
        /// Positions of one split (`SPLIT` = 1), a multiple of `WG`.
        chunk: u32,
        /// Splits that `partials` has room for.
        splits: u32,
        /// Of the queries.
        q_offset: u32,
        /// Of the queries.
        q_stride: u32,
        /// Of the result.
        y_offset: u32,
        /// Of the result.
        y_stride: u32,
        /// Factor on the dot products.
        scale: f32,
    }

    /// `attend_reduce`.
    AttendReduceParams {
        /// Query heads.
        heads: u32,
        /// Length of a value, a multiple of 4.
        v_dim: u32,
        /// 1: `sinks` is there.
        sinks_on: u32,
        /// Positions of one split.
        chunk: u32,
        /// Splits that `partials` has room for.
        splits: u32,
        /// Of the result.
        y_offset: u32,
        /// Of the result.
        y_stride: u32,
        /// A query sees this many positions; 0: all.
        window: u32,
    }

    /// `short_conv`.
    ShortConvParams {
        /// C.
        channels: u32,
        /// 1: `bias` is there.
        bias_on: u32,
        /// 1: the activation `ACT` follows.
        act_on: u32,
        /// Of the input.
        x_offset: u32,
        /// Of the input.
        x_stride: u32,
        /// Of the result.
        y_offset: u32,
        /// Of the result.
        y_stride: u32,
    }

    /// `delta_net`.
    DeltaNetParams {
        /// Heads of queries and keys.
        k_heads: u32,
        /// Heads of values.
        v_heads: u32,
        /// Columns of a query and of a key.
        k_dim: u32,
        /// Columns of a value.
        v_dim: u32,
        /// 1: value head h goes with key head `h % k_heads`; 0: `h / (v_heads / k_heads)`.
        tiled: u32,
        /// Of qkv.
        qkv_offset: u32,
        /// Of qkv.
        qkv_stride: u32,
        /// Of a.
        a_offset: u32,
        /// Of a.
        a_stride: u32,
        /// Of b.
        b_offset: u32,
        /// Of b.
        b_stride: u32,
        /// Of the result.
        y_offset: u32,
        /// Of the result.
        y_stride: u32,
    }

    /// `router`.
    RouterParams {
        /// E, at most 1024.
        experts: u32,
        /// k, at most E.
        used: u32,
        /// 0 softmax, 1 softmax of the selected, 2 sigmoid, 3 sqrt-softplus, 4 sparsemixer (its threshold in `epsilon`).
        score: u32,
        /// Groups that take part.
        groups_used: u32,
        /// 1: a group is scored by its two best experts, 0: by its best.
        top_two: u32,
        /// 1: divide by the sum of the chosen scores; 2: by the sum plus `epsilon`; 3: by at least `epsilon`; 0: by nothing.
        renormalise: u32,
        /// Of the logits.
        x_offset: u32,
        /// Of the logits.
        x_stride: u32,
        /// Of the ids.
        ids_offset: u32,
        /// Of the ids.
        ids_stride: u32,
        /// Of the weights.
        weights_offset: u32,
        /// Of the weights.
        weights_stride: u32,
        /// See `renormalise`, which is 4 for a softmax over the chosen scores.
        epsilon: f32,
        /// Factor on the weights.
        scale: f32,
    }

    /// `copy`.
    CopyParams {
        /// Groups of 4 numbers.
        groups: u32,
    }

    /// `sample_keys`.
    SampleKeysParams {
        /// Logits, V.
        vocab: u32,
        /// Of the logits.
        x_offset: u32,
    }

    /// `sample_pick`.
    SamplePickParams {
        /// Logits, V.
        vocab: u32,
        /// Groups of 64 of them, rounded up.
        groups: u32,
    }

    /// `expert_sort`.
    ExpertSortParams {
        /// E, at most 1024.
        experts: u32,
        /// k.
        used: u32,
        /// Pairs of a tile: the `COLS` of the grouped kernels that follow.
        tile: u32,
        /// Of the ids.
        ids_offset: u32,
        /// Of the ids.
        ids_stride: u32,
        /// Workgroups in x of the first grouped dispatch: `ceil(out / tile[0])`. Its arguments are `args[0..3]`.
        blocks_0: u32,
        /// Of the second: `args[4..7]`.
        blocks_1: u32,
    }

    /// `expert_combine`.
    ExpertCombineParams {
        /// Columns (n).
        cols: u32,
        /// k.
        used: u32,
        /// `RESIDUAL` or 0.
        flags: u32,
        /// Of the experts' results `[T, k * n]`.
        x_offset: u32,
        /// Of the experts' results.
        x_stride: u32,
        /// Of the result.
        y_offset: u32,
        /// Of the result.
        y_stride: u32,
        /// Of the residual.
        residual_offset: u32,
        /// Of the residual.
        residual_stride: u32,
        /// Of the weights.
        weights_offset: u32,
        /// Of the weights.
        weights_stride: u32,
        /// On the sum.
        factor: f32,
    }

    /// `add`, `scale`, `glu`, `sigmoid_gate`, `take_outputs`: element by element.
    ElementwiseParams {
        /// 1: the rows are the O outputs, 0: the T tokens. (`take_outputs`: 1.)
        outputs: u32,
        /// Columns.
        cols: u32,
        /// Of the first operand.
        a_offset: u32,
        /// Of the first operand.
        a_stride: u32,
        /// Of the second operand (`add`, `glu`: up, `sigmoid_gate`: g).
        b_offset: u32,
        /// Of the second operand.
        b_stride: u32,
        /// Of the result.
        y_offset: u32,
        /// Of the result.
        y_stride: u32,
        /// The factor of `scale`.
        /// Columns of `a`, where they are repeated.
        inner: u32,
        /// Times x (`OP` = 1).
        factor: f32,
    }
}
