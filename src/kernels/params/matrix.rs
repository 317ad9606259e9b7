//! Uniforms of the kernels that read weight matrices.

use super::uniforms;

uniforms! {
    /// Uniforms of `embed`.
    EmbedParams {
        /// First row of the segment.
        row0: u32,
        /// Rows of the segment.
        rows: u32,
        /// Groups of 32 weights in a row of the matrix.
        groups: u32,
        /// Columns, a multiple of 4.
        cols: u32,
        /// Start of the token ids in its binding, in elements.
        ids_offset: u32,
        /// Elements from one row of the token ids to the next.
        ids_stride: u32,
        /// Start of the result in its binding, in elements.
        y_offset: u32,
        /// Elements from one row of the result to the next.
        y_stride: u32,
        /// Factor on the rows.
        scale: f32,
    }

    /// Uniforms of `linear`, `linear_two`, `expert_linear`, `expert_linear_grouped`.
    LinearParams {
        /// 1: the rows are the O outputs, 0: the T tokens; 0 for experts.
        outputs: u32,
        /// First row of the segment; for experts of the flattened `[E * out]` rows.
        row0: u32,
        /// Rows of the segment.
        rows: u32,
        /// Groups of 32 weights in a row of the matrix.
        groups: u32,
        /// Columns of the matrix (K), a multiple of 4.
        cols: u32,
        /// Rows of one expert's matrix; 0 for plain products.
        out: u32,
        /// Start of the input in its binding, in elements.
        x_offset: u32,
        /// Elements from one token of the input to the next.
        x_stride: u32,
        /// Start of the result in its binding, in elements. Output column n of the whole matrix lies at `y_offset + n` of a row.
        y_offset: u32,
        /// Elements from one row of the result to the next. Experts: slot j of a token is `j * out` further.
        y_stride: u32,
        /// Flags `BIAS`, `RESIDUAL`, `GATE` and `FACTOR`; for experts `BIAS` only.
        flags: u32,
        /// Start of the residual in its binding, in elements.
        residual_offset: u32,
        /// Elements from one row of the residual to the next.
        residual_stride: u32,
        /// Start of the gate `[R, 1]` in its binding, in elements.
        gate_offset: u32,
        /// Elements from one row of the gate `[R, 1]` to the next.
        gate_stride: u32,
        /// Epsilon of the norm that is folded in (`NORM` = 1); plain products only.
        eps: f32,
        /// Experts used by a token (k); 0 for plain products.
        used: u32,
        /// Experts: 1 where x is `[T, k * cols]`, 0 where it is `[T, cols]`.
        x_slots: u32,
        /// Start of the expert ids in its binding, in elements.
        ids_offset: u32,
        /// Elements from one row of the expert ids to the next.
        ids_stride: u32,
        /// Workgroups in x that take the first matrix (`linear_two`).
        blocks: u32,
        /// Rows of the second matrix (`linear_two`).
        rows_1: u32,
        /// Output column of the second matrix's first row (`linear_two`).
        column_1: u32,
        /// Start of the normalised x in a row of `y` (`NORMED`), in elements from the start of the row.
        normed_offset: u32,
        /// Factor on the product (`FACTOR`).
        factor: f32,
    }

    /// Uniforms of `linear_glu`, `expert_glu`, `expert_glu_shared`, `expert_glu_choose`, `expert_glu_shared_choose`,
    /// `expert_glu_grouped`.
    GluLinearParams {
        /// 1: the rows are the O outputs, 0: the T tokens; 0 for experts.
        outputs: u32,
        /// First row of both segments; for experts of the flattened `[E * out]` rows.
        row0: u32,
        /// Rows of both segments.
        rows: u32,
        /// Groups of 32 weights in a row of the matrix.
        groups: u32,
        /// Columns of the matrices (K), a multiple of 4.
        cols: u32,
        /// Rows of one expert's matrix; 0 for plain products.
        out: u32,
        /// Start of the input in its binding, in elements.
        x_offset: u32,
        /// Elements from one row of the input to the next.
        x_stride: u32,
        /// Start of the result in its binding, in elements. Output column n of the whole matrix lies at `y_offset + n` of a row.
        y_offset: u32,
        /// Elements from one row of the result to the next. Experts: slot j of a token is `j * out` further.
        y_stride: u32,
        /// Epsilon of the norm that is folded in (`NORM` = 1); plain products only.
        eps: f32,
        /// Experts used by a token (k); 0 for plain products.
        used: u32,
        /// Experts: 1 where x is `[T, k * cols]`, 0 where it is `[T, cols]`.
        x_slots: u32,
        /// Start of the expert ids in its binding, in elements.
        ids_offset: u32,
        /// Elements from one row of the expert ids to the next.
        ids_stride: u32,
        /// Rows of the shared expert's matrices (Is).
        shared_rows: u32,
        /// Slots that the shared expert takes, of `out` rows each.
        shared_parts: u32,
        /// Experts to choose from (E), where the kernel chooses itself (`CHOOSE` = 1); so are the fields of the router below.
        experts: u32,
        /// Scoring function: `SCORE_SOFTMAX`, `SCORE_SOFTMAX_OF_SELECTED` or `SCORE_SIGMOID`.
        score: u32,
        /// `RENORMALISE_NO`, or `RENORMALISE_SUM`: divide by the sum of the chosen scores.
        renormalise: u32,
        /// Factor on the experts' weights.
        router_scale: f32,
        /// Start of the logits, which lie in the rows of x, in elements.
        logits_offset: u32,
        /// Start of the experts' weights in its binding, in elements.
        weights_offset: u32,
        /// Elements from one row of the experts' weights to the next.
        weights_stride: u32,
        /// Flag `BIAS`, for experts only.
        flags: u32,
        /// Start of the biases of up, in elements from those of gate.
        bias_up: u32,
    }

    /// Uniforms of `expert_down_add`, `expert_down_shared_add`.
    ExpertDownAddParams {
        /// First row of the segment, of the flattened `[E * out]` rows.
        row0: u32,
        /// Rows of the segment.
        rows: u32,
        /// Groups of 32 weights in a row of the matrix.
        groups: u32,
        /// Columns of one expert's matrix (I), a multiple of 4.
        cols: u32,
        /// Rows of one expert's matrix (H).
        out: u32,
        /// Experts used by a token (k).
        used: u32,
        /// Flags `RESIDUAL` (the sum starts from the residual) or `ACCUMULATE` (from y), or neither (from 0); `BIAS` and `GATE`.
        flags: u32,
        /// Start of the hidden values h `[T, k * I]` in its binding, in elements.
        x_offset: u32,
        /// Elements from one row of the hidden values h `[T, k * I]` to the next.
        x_stride: u32,
        /// Start of the result in its binding, in elements.
        y_offset: u32,
        /// Elements from one row of the result to the next.
        y_stride: u32,
        /// Start of the residual in its binding, in elements.
        residual_offset: u32,
        /// Elements from one row of the residual to the next.
        residual_stride: u32,
        /// Start of the expert ids in its binding, in elements.
        ids_offset: u32,
        /// Elements from one row of the expert ids to the next.
        ids_stride: u32,
        /// Start of the experts' weights in its binding, in elements.
        weights_offset: u32,
        /// Elements from one row of the experts' weights to the next.
        weights_stride: u32,
        /// Columns of the shared expert's matrix (Is), a multiple of 4.
        shared_cols: u32,
        /// Groups of 32 weights in a row of the shared expert's matrix.
        shared_groups: u32,
        /// Start of the shared expert's gate `[T, 1]` in its binding, in elements.
        gate_offset: u32,
        /// Elements from one row of the shared expert's gate `[T, 1]` to the next.
        gate_stride: u32,
        /// Factor on the weighted sum.
        factor: f32,
    }
}
