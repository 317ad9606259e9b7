//! Uniforms of the kernels of rotation, of the cache and of attention.

use super::uniforms;

uniforms! {
    /// Uniforms of `rope`.
    RopeParams {
        /// Heads in a row.
        heads: u32,
        /// Columns of a head, even.
        head_dim: u32,
        /// Columns that rotate, even.
        dims: u32,
        /// 1: columns i and i + dims/2 are a pair; 0: columns 2i and 2i+1.
        halves: u32,
        /// Start of the input in its binding, in elements.
        x_offset: u32,
        /// Elements from one row of the input to the next.
        x_stride: u32,
        /// Start of the result in its binding, in elements.
        y_offset: u32,
        /// Elements from one row of the result to the next.
        y_stride: u32,
    }

    /// Uniforms of `kv_store`.
    KvStoreParams {
        /// Heads of the cache.
        kv_heads: u32,
        /// Columns of a key, a multiple of 4.
        k_dim: u32,
        /// Columns of a value, a multiple of 4.
        v_dim: u32,
        /// Positions that the cache has room for.
        ctx: u32,
        /// The first unit (head of keys of a sequence) that the bound part of the cache holds.
        first_unit: u32,
        /// Units that it holds.
        units: u32,
        /// Start of the keys in its binding, in elements.
        k_offset: u32,
        /// Elements from one row of the keys to the next.
        k_stride: u32,
        /// Start of the values in its binding, in elements.
        v_offset: u32,
        /// Elements from one row of the values to the next.
        v_stride: u32,
    }

    /// Uniforms of `rope_store`.
    RopeStoreParams {
        /// Query heads.
        heads: u32,
        /// Heads of the cache.
        kv_heads: u32,
        /// Columns of a query and of a key, a multiple of 4.
        head_dim: u32,
        /// Columns of a value, a multiple of 4.
        v_dim: u32,
        /// Positions that the cache has room for.
        ctx: u32,
        /// The first unit (head of keys of a sequence) that the bound part of the cache holds.
        first_unit: u32,
        /// Units that it holds.
        units: u32,
        /// Columns that rotate, even.
        dims: u32,
        /// 1: columns i and i + dims/2 are a pair; 0: columns 2i and 2i+1.
        halves: u32,
        /// Norm of q: `NORM_NONE`, `NORM_EACH_HEAD` or `NORM_WHOLE_ROW`.
        q_norm_kind: u32,
        /// Norm of k: `NORM_NONE`, `NORM_EACH_HEAD` or `NORM_WHOLE_ROW`.
        k_norm_kind: u32,
        /// 1: the norms come after the rotation, 0: before it.
        qk_norm_after_rope: u32,
        /// Start of the queries in a row of `qkv` in its binding, in elements.
        q_offset: u32,
        /// Start of the keys in its binding, in elements.
        k_offset: u32,
        /// Start of the values in its binding, in elements.
        v_offset: u32,
        /// Elements from one row of `qkv` to the next.
        stride: u32,
        /// Start of the rotated queries in its binding, in elements.
        y_offset: u32,
        /// Elements from one row of the rotated queries to the next.
        y_stride: u32,
        /// Epsilon of q's norm.
        q_eps: f32,
        /// Epsilon of k's norm.
        k_eps: f32,
    }

    /// Uniforms of `attend`.
    AttendParams {
        /// Query heads.
        heads: u32,
        /// Heads of the cache.
        kv_heads: u32,
        /// Positions that the cache has room for.
        ctx: u32,
        /// The first unit (head of keys of a sequence) that the bound part of the cache holds.
        first_unit: u32,
        /// Units that it holds.
        units: u32,
        /// Positions that a query sees at most; 0: all.
        window: u32,
        /// 1: a query sees only the positions of its own chunk, chunks being `window` positions long.
        attention_chunks: u32,
        /// 1: `sinks` is read, one number a query head; 0: there are none.
        sinks_on: u32,
        /// Pieces that positions are shared out in, at most.
        most_pieces: u32,
        /// Query rows of a workgroup: `ROWS`.
        tile_rows: u32,
        /// Start of the queries in its binding, in elements.
        q_offset: u32,
        /// Elements from one row of the queries to the next.
        q_stride: u32,
        /// Start of the result in its binding, in elements.
        y_offset: u32,
        /// Elements from one row of the result to the next.
        y_stride: u32,
        /// Factor on the dot products.
        scale: f32,
    }

    /// Uniforms of `attend_reduce`.
    AttendReduceParams {
        /// Query heads.
        heads: u32,
        /// Heads of the cache.
        kv_heads: u32,
        /// Columns of a value, a multiple of 4.
        v_dim: u32,
        /// 1: `sinks` is read, one number a query head; 0: there are none.
        sinks_on: u32,
        /// 1: a query sees only the positions of its own chunk, chunks being `window` positions long.
        attention_chunks: u32,
        /// Pieces that positions are shared out in, at most.
        most_pieces: u32,
        /// Query rows of a workgroup of `attend`.
        tile_rows: u32,
        /// Start of the result in its binding, in elements.
        y_offset: u32,
        /// Elements from one row of the result to the next.
        y_stride: u32,
        /// Positions that a query sees at most; 0: all.
        window: u32,
    }

    /// Uniforms of `head_ids`.
    HeadIdsParams {
        /// Heads, each of which gets its number.
        heads: u32,
        /// Start of the ids in its binding, in elements.
        y_offset: u32,
        /// Elements from one row of the ids to the next.
        y_stride: u32,
    }

    /// Uniforms of `join_heads`.
    JoinHeadsParams {
        /// 1: the rows are the O outputs, 0: the T tokens.
        outputs: u32,
        /// Heads in a row.
        heads: u32,
        /// Columns of a head of the first operand.
        a_cols: u32,
        /// Columns of a head of the second operand.
        b_cols: u32,
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
    }
}
