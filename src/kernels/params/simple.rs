//! Uniforms of norms, recurrent layers, routing, elementwise ops and sampling.

use super::uniforms;

uniforms! {
    /// Uniforms of `rms_norm`.
    RmsNormParams {
        /// 1: the rows are the O outputs, 0: the T tokens.
        outputs: u32,
        /// Columns that are normalised together, a multiple of 4.
        cols: u32,
        /// Start of the input in its binding, in elements.
        x_offset: u32,
        /// Elements from one row of the input to the next.
        x_stride: u32,
        /// Start of the result in its binding, in elements.
        y_offset: u32,
        /// Elements from one row of the result to the next.
        y_stride: u32,
        /// Added to the mean square, so that zeros do not divide by zero.
        eps: f32,
    }

    /// Uniforms of `short_conv`.
    ShortConvParams {
        /// Channels (C).
        channels: u32,
        /// 1: `bias` is read, one number a channel; 0: there is none.
        bias_on: u32,
        /// 1: the activation `ACT` follows, 0: none does.
        act_on: u32,
        /// Start of the input in its binding, in elements.
        x_offset: u32,
        /// Elements from one row of the input to the next.
        x_stride: u32,
        /// Start of the result in its binding, in elements.
        y_offset: u32,
        /// Elements from one row of the result to the next.
        y_stride: u32,
    }

    /// Uniforms of `delta_net`.
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
        /// Start of the joined q, k and v in its binding, in elements.
        qkv_offset: u32,
        /// Elements from one row of the joined q, k and v to the next.
        qkv_stride: u32,
        /// Start of the a, one number a head of values, in its binding, in elements.
        a_offset: u32,
        /// Elements from one row of the a, one number a head of values, to the next.
        a_stride: u32,
        /// Start of the b, one number a head of values, in its binding, in elements.
        b_offset: u32,
        /// Elements from one row of the b, one number a head of values, to the next.
        b_stride: u32,
        /// Start of the result in its binding, in elements.
        y_offset: u32,
        /// Elements from one row of the result to the next.
        y_stride: u32,
    }

    /// Uniforms of `router` and `router_cached`.
    RouterParams {
        /// Experts (E), at most 1024.
        experts: u32,
        /// Experts used by a token (k), at most E.
        used: u32,
        /// Scoring function: one of the `SCORE_` numbers.
        score: u32,
        /// Groups of experts that take part in the choice.
        groups_used: u32,
        /// 1: a group is scored by its two best experts, 0: by its best.
        top_two: u32,
        /// What the chosen scores are divided by: one of the `RENORMALISE_` numbers.
        renormalise: u32,
        /// Start of the logits in its binding, in elements.
        x_offset: u32,
        /// Elements from one row of the logits to the next.
        x_stride: u32,
        /// Start of the chosen ids in its binding, in elements.
        ids_offset: u32,
        /// Elements from one row of the chosen ids to the next.
        ids_stride: u32,
        /// Start of the experts' weights in its binding, in elements.
        weights_offset: u32,
        /// Elements from one row of the experts' weights to the next.
        weights_stride: u32,
        /// Epsilon of `RENORMALISE_SUM_PLUS` and `RENORMALISE_SUM_AT_LEAST`; the threshold of `SCORE_SPARSE_MIXER`.
        epsilon: f32,
        /// Factor on the experts' weights.
        scale: f32,
        /// Slots of the cache (`router_cached`, as what follows).
        slots: u32,
        /// Whose slot a missing expert takes: `CACHE_LRU`, `CACHE_LFU_AGED` or `CACHE_PINNED_LRU`.
        policy: u32,
        /// Experts that keep their slots by `CACHE_PINNED_LRU`.
        pinned: u32,
        /// First word of the slots in the cache's binding.
        slots_at: u32,
        /// First word of the missing experts there.
        fills_at: u32,
        /// Start of the slot numbers in their binding, in elements.
        places_offset: u32,
        /// Elements from one row of the slot numbers to the next.
        places_stride: u32,
        /// Workgroups in x of the dispatches that copy the missing experts.
        fill_blocks: u32,
    }

    /// Uniforms of `expert_places`.
    ExpertPlacesParams {
        /// Experts (E).
        experts: u32,
        /// Experts used by a token (k).
        used: u32,
        /// Start of the expert ids in their binding, in elements.
        ids_offset: u32,
        /// Elements from one row of the expert ids to the next.
        ids_stride: u32,
        /// Slots of the cache.
        slots: u32,
        /// Whose slot a missing expert takes: `CACHE_LRU`, `CACHE_LFU_AGED` or `CACHE_PINNED_LRU`.
        policy: u32,
        /// Experts that keep their slots by `CACHE_PINNED_LRU`.
        pinned: u32,
        /// First word of the slots in the cache's binding.
        slots_at: u32,
        /// First word of the missing experts there.
        fills_at: u32,
        /// Start of the slot numbers in their binding, in elements.
        places_offset: u32,
        /// Elements from one row of the slot numbers to the next.
        places_stride: u32,
        /// Workgroups in x of the dispatches that copy the missing experts.
        fill_blocks: u32,
    }

    /// Uniforms of `expert_fill_1`, `expert_fill_2`, `expert_fill_3`. Of each matrix the first expert of the segment that is read, how
    /// many it has, and of each of its planes: units of 16 bytes of an expert, its start in the segment, its start in the slots.
    ExpertFillParams {
        /// First word of the missing experts in the cache's binding.
        fills_at: u32,
        /// Numbers of an expert's first biases; 0: there are none.
        bias_size_0: u32,
        /// First number of those of all experts in the vectors.
        bias_from_0: u32,
        /// First number of those of the slots in the cache's binding.
        bias_to_0: u32,
        /// The same of second biases.
        bias_size_1: u32,
        /// See `bias_from_0`.
        bias_from_1: u32,
        /// See `bias_to_0`.
        bias_to_1: u32,
        /// The same of third biases.
        bias_size_2: u32,
        /// See `bias_from_0`.
        bias_from_2: u32,
        /// See `bias_to_0`.
        bias_to_2: u32,
        /// First expert of the segment of the first matrix.
        first_first: u32,
        /// Experts of that segment.
        first_experts: u32,
        /// Units of an expert in plane 0.
        first_size_0: u32,
        /// Start of plane 0 in the segment.
        first_from_0: u32,
        /// Start of plane 0 in the slots.
        first_to_0: u32,
        /// Units of an expert in plane 1.
        first_size_1: u32,
        /// Start of plane 1 in the segment.
        first_from_1: u32,
        /// Start of plane 1 in the slots.
        first_to_1: u32,
        /// Units of an expert in plane 2.
        first_size_2: u32,
        /// Start of plane 2 in the segment.
        first_from_2: u32,
        /// Start of plane 2 in the slots.
        first_to_2: u32,
        /// Units of an expert in plane 3.
        first_size_3: u32,
        /// Start of plane 3 in the segment.
        first_from_3: u32,
        /// Start of plane 3 in the slots.
        first_to_3: u32,
        /// First expert of the segment of the second matrix.
        second_first: u32,
        /// Experts of that segment.
        second_experts: u32,
        /// Units of an expert in plane 0.
        second_size_0: u32,
        /// Start of plane 0 in the segment.
        second_from_0: u32,
        /// Start of plane 0 in the slots.
        second_to_0: u32,
        /// Units of an expert in plane 1.
        second_size_1: u32,
        /// Start of plane 1 in the segment.
        second_from_1: u32,
        /// Start of plane 1 in the slots.
        second_to_1: u32,
        /// Units of an expert in plane 2.
        second_size_2: u32,
        /// Start of plane 2 in the segment.
        second_from_2: u32,
        /// Start of plane 2 in the slots.
        second_to_2: u32,
        /// Units of an expert in plane 3.
        second_size_3: u32,
        /// Start of plane 3 in the segment.
        second_from_3: u32,
        /// Start of plane 3 in the slots.
        second_to_3: u32,
        /// First expert of the segment of the third matrix.
        third_first: u32,
        /// Experts of that segment.
        third_experts: u32,
        /// Units of an expert in plane 0.
        third_size_0: u32,
        /// Start of plane 0 in the segment.
        third_from_0: u32,
        /// Start of plane 0 in the slots.
        third_to_0: u32,
        /// Units of an expert in plane 1.
        third_size_1: u32,
        /// Start of plane 1 in the segment.
        third_from_1: u32,
        /// Start of plane 1 in the slots.
        third_to_1: u32,
        /// Units of an expert in plane 2.
        third_size_2: u32,
        /// Start of plane 2 in the segment.
        third_from_2: u32,
        /// Start of plane 2 in the slots.
        third_to_2: u32,
        /// Units of an expert in plane 3.
        third_size_3: u32,
        /// Start of plane 3 in the segment.
        third_from_3: u32,
        /// Start of plane 3 in the slots.
        third_to_3: u32,
    }

    /// Uniforms of `local_ids`.
    LocalIdsParams {
        /// The first expert that is here.
        first: u32,
        /// Experts that are here.
        count: u32,
        /// Experts used by a token (k).
        used: u32,
        /// Start of the ids in their binding, in elements.
        ids_offset: u32,
        /// Elements from one row of the ids to the next.
        ids_stride: u32,
        /// Start of the result in its binding, in elements.
        y_offset: u32,
        /// Elements from one row of the result to the next.
        y_stride: u32,
    }

    /// Uniforms of `expert_sort`.
    ExpertSortParams {
        /// Experts (E), at most 1024.
        experts: u32,
        /// Experts used by a token (k).
        used: u32,
        /// Pairs of a tile at most: the `COLS` of the grouped kernels that follow.
        tile: u32,
        /// Start of the expert ids in its binding, in elements.
        ids_offset: u32,
        /// Elements from one row of the expert ids to the next.
        ids_stride: u32,
        /// Workgroups in x of the first grouped dispatch: `ceil(out / tile[0])`; its arguments are `args[0..3]`.
        blocks_0: u32,
        /// Workgroups in x of the second grouped dispatch, whose arguments are `args[4..7]`.
        blocks_1: u32,
    }

    /// Uniforms of `expert_combine`.
    ExpertCombineParams {
        /// Columns of an expert's result (n).
        cols: u32,
        /// Experts used by a token (k).
        used: u32,
        /// Flag `RESIDUAL`, or 0.
        flags: u32,
        /// Start of the experts' results `[T, k * n]` in its binding, in elements.
        x_offset: u32,
        /// Elements from one row of the experts' results `[T, k * n]` to the next.
        x_stride: u32,
        /// Start of the result in its binding, in elements.
        y_offset: u32,
        /// Elements from one row of the result to the next.
        y_stride: u32,
        /// Start of the residual in its binding, in elements.
        residual_offset: u32,
        /// Elements from one row of the residual to the next.
        residual_stride: u32,
        /// Start of the experts' weights in its binding, in elements.
        weights_offset: u32,
        /// Elements from one row of the experts' weights to the next.
        weights_stride: u32,
        /// Factor on the sum.
        factor: f32,
    }

    /// Uniforms of `elementwise`, for every `OP_` number.
    ElementwiseParams {
        /// 1: the rows are the O outputs (always for `OP_TAKE_OUTPUTS`), 0: the T tokens.
        outputs: u32,
        /// Columns of the result.
        cols: u32,
        /// Start of the first operand in its binding, in elements.
        a_offset: u32,
        /// Elements from one row of the first operand to the next.
        a_stride: u32,
        /// Start of the second operand in its binding, in elements.
        b_offset: u32,
        /// Elements from one row of the second operand to the next.
        b_stride: u32,
        /// Start of the result in its binding, in elements.
        y_offset: u32,
        /// Elements from one row of the result to the next.
        y_stride: u32,
        /// Columns of a, which `OP_SCALE_EXPERT_INPUTS` repeats for each slot.
        inner: u32,
        /// Factor of `OP_SCALE`.
        factor: f32,
    }

    /// Uniforms of `sample_keys`.
    SampleKeysParams {
        /// Logits in a row: the size of the vocabulary (V).
        vocab: u32,
        /// Start of the logits in its binding, in elements.
        x_offset: u32,
        /// Elements from a row of logits to the next.
        x_stride: u32,
    }

    /// Uniforms of `sample_pick`.
    SamplePickParams {
        /// Logits in a row: the size of the vocabulary (V).
        vocab: u32,
        /// Groups of `SAMPLE_GROUP` logits, rounded up.
        groups: u32,
    }

    /// Uniforms of `probe`.
    ProbeParams {
        /// Halves that are converted.
        halves: u32,
    }

    /// Uniforms of `copy`.
    CopyParams {
        /// Groups of 16 bytes.
        groups: u32,
    }
}
