//! Lowering of rotation, cache writes and attention.

use super::{
    Buffer, BufferView, Cost, Count, Depth, Grid, Pieces,
    lower::Lower,
    nodes::{self, NormSpan},
};
use crate::{
    error::{Error, Result},
    ir::{Attention, CacheDecl, CacheId, Norm, Rope, RopePairs, Rows, ValueId},
    kernels::{Reduction, Variant, catalogue, numbers, params},
};

impl Lower<'_> {
    /// A cache whose sizes the kernels take.
    fn cache_decl(&self, c: CacheId) -> Result<CacheDecl> {
        let d = self.g.caches[c.0 as usize].clone();
        if d.k_dim.is_multiple_of(4) && d.v_dim.is_multiple_of(4) {
            return Ok(d);
        }
        let (k, v) = (d.k_dim, d.v_dim);
        Err(Error::Unsupported(format!("heads of {k} and {v} columns on the GPU: multiples of 4 are needed")))
    }

    /// Numbers of the heads, in every row.
    pub fn head_ids(&mut self, heads: usize, out: ValueId) -> Result<()> {
        let y = self.fresh(out)?;
        let p = params::HeadIdsParams { heads: heads as u32, y_offset: y.offset, y_stride: y.stride };
        let variant = Variant::new(&catalogue::HEAD_IDS);
        let bindings = vec![self.write("y", y.buffer)?];
        let grid = self.grid(&variant, heads, Count::Tokens, 1)?;
        self.push(variant, &p, bindings, grid, Cost::default(), self.row_cost(Count::Tokens, heads));
        Ok(())
    }

    /// The columns of two values side by side, head by head.
    pub fn join_heads(&mut self, heads: usize, ins: &[ValueId], out: ValueId) -> Result<()> {
        let (a, b, rows) = (self.view(ins[0])?, self.view(ins[1])?, self.rows(out)?);
        let (y, cols) = (self.fresh(out)?, self.cols(out));
        let p = params::JoinHeadsParams {
            outputs: u32::from(rows == Rows::Outputs),
            heads: heads as u32,
            a_cols: (self.cols(ins[0]) / heads) as u32,
            b_cols: (self.cols(ins[1]) / heads) as u32,
            a_offset: a.offset,
            a_stride: a.stride,
            b_offset: b.offset,
            b_stride: b.stride,
            y_offset: y.offset,
            y_stride: y.stride,
        };
        let variant = Variant::new(&catalogue::JOIN_HEADS);
        let bindings = vec![self.read("a", a.buffer)?, self.read("b", b.buffer)?, self.write("y", y.buffer)?];
        let grid = self.grid(&variant, cols, rows.into(), 1)?;
        let cost = self.row_cost(rows.into(), cols);
        self.push(variant, &p, bindings, grid, cost, cost);
        Ok(())
    }

    pub fn rotate(&mut self, r: &Rope, x: ValueId, out: ValueId) -> Result<()> {
        self.tokens_only(x)?;
        let cols = self.cols(x);
        let (x, y) = (self.view(x)?, self.fresh(out)?);
        let p = params::RopeParams {
            heads: (cols / r.head_dim) as u32,
            head_dim: r.head_dim as u32,
            dims: r.dims as u32,
            halves: u32::from(r.pairs == RopePairs::Halves),
            x_offset: x.offset,
            x_stride: x.stride,
            y_offset: y.offset,
            y_stride: y.stride,
        };
        if !r.head_dim.is_multiple_of(2) {
            return Err(Error::Unsupported(format!("heads of {} columns on the GPU", r.head_dim)));
        }
        let variant = Variant::new(&catalogue::ROPE).with("BATCH", self.batch());
        let bindings = vec![self.row_places()?, self.read("x", x.buffer)?, self.rope(r)?, self.write("y", y.buffer)?];
        let grid = self.grid(&variant, cols, Count::Tokens, 1)?;
        let cost = self.row_cost(Count::Tokens, cols);
        self.push(variant, &p, bindings, grid, cost.and(self.row_cost(Count::Tokens, r.dims)), cost);
        Ok(())
    }

    pub fn kv_store(&mut self, cache: CacheId, ins: &[ValueId]) -> Result<()> {
        self.tokens_only(ins[0])?;
        let k = self.view(ins[0])?;
        // Only keys are stored where values are part of them.
        let v = ins.get(1).map_or(Ok(k), |v| self.view(*v))?;
        let d = self.cache_decl(cache)?;
        let p = params::KvStoreParams {
            kv_heads: d.kv_heads as u32,
            k_dim: d.k_dim as u32,
            v_dim: d.stored_v_dim() as u32,
            ctx: self.target.options.ctx as u32,
            k_offset: k.offset,
            k_stride: k.stride,
            v_offset: v.offset,
            v_stride: v.stride,
            ..params::KvStoreParams::default()
        };
        let cols = d.kv_heads * (d.k_dim + d.stored_v_dim());
        for (number, part) in self.cache_parts(cache) {
            let variant = Variant::new(&catalogue::KV_STORE).kv(self.kv()).with("BATCH", self.batch());
            let p = params::KvStoreParams { first_unit: part.first, units: part.units, ..p };
            let [keys, values] = self.cache(cache, number, true)?;
            let bindings = vec![self.row_places()?, self.read("k", k.buffer)?, self.read("v", v.buffer)?, keys, values];
            let grid = self.grid(&variant, 2 * d.kv_heads, Count::Tokens, 1)?;
            // Each part takes its share; figures are those of the first.
            let (reads, writes) = match number {
                0 => (self.row_cost(Count::Tokens, cols), self.cache_cost(&d)),
                _ => Default::default(),
            };
            self.push(variant, &p, bindings, grid, reads, writes);
        }
        Ok(())
    }

    /// Bytes of keys and values for each token.
    fn cache_cost(&self, d: &CacheDecl) -> Cost {
        let row = self.kv().gpu_row_bytes(d.k_dim) + self.kv().gpu_row_bytes(d.stored_v_dim());
        Cost { token: (d.kv_heads * row) as u64, ..Cost::default() }
    }

    /// Norms and rotation of q and k, which lie side by side with v; k and v go to the cache.
    pub fn rope_store(
        &mut self,
        (norms, qk_norm_after_rope): (&[Option<Norm>; 2], bool),
        r: &Rope,
        cache: CacheId,
        ins: &[ValueId],
        out: ValueId,
    ) -> Result<()> {
        self.tokens_only(ins[0])?;
        let d = self.cache_decl(cache)?;
        let [q, k, v] = [self.view(ins[0])?, self.view(ins[1])?, self.view(ins[2])?];
        if [k, v].iter().any(|p| p.buffer != q.buffer || p.stride != q.stride) {
            return Err(Error::Graph(format!("the operands of rope_store lie apart: {q:?}, {k:?}, {v:?}")));
        }
        let y = self.fresh(out)?;
        let q_cols = self.cols(ins[0]);
        let kinds = [self.norm_kind(&norms[0], r, ins[0])?, self.norm_kind(&norms[1], r, ins[1])?];
        let p = params::RopeStoreParams {
            heads: (q_cols / r.head_dim) as u32,
            kv_heads: d.kv_heads as u32,
            head_dim: r.head_dim as u32,
            v_dim: d.v_dim as u32,
            ctx: self.target.options.ctx as u32,
            dims: r.dims as u32,
            halves: u32::from(r.pairs == RopePairs::Halves),
            q_norm_kind: kinds[0],
            k_norm_kind: kinds[1],
            qk_norm_after_rope: u32::from(qk_norm_after_rope),
            q_offset: q.offset,
            k_offset: k.offset,
            v_offset: v.offset,
            stride: q.stride,
            y_offset: y.offset,
            y_stride: y.stride,
            q_eps: norms[0].map_or(0.0, |n| n.eps),
            k_eps: norms[1].map_or(0.0, |n| n.eps),
            ..params::RopeStoreParams::default()
        };
        let kv_cols = d.kv_heads * (d.k_dim + d.v_dim);
        for (number, part) in self.cache_parts(cache) {
            let variant = Variant::new(&catalogue::ROPE_STORE).kv(self.kv()).with("BATCH", self.batch());
            let p = params::RopeStoreParams { first_unit: part.first, units: part.units, ..p };
            let [keys, values] = self.cache(cache, number, true)?;
            let bindings = vec![
                self.row_places()?,
                self.read("qkv", q.buffer)?,
                self.weight_vector("q_norm", norms[0].map(|n| n.weight))?,
                self.weight_vector("k_norm", norms[1].map(|n| n.weight))?,
                self.rope(r)?,
                self.write("y", y.buffer)?,
                keys,
                values,
            ];
            let grid = self.grid(&variant, q_cols / r.head_dim + 2 * d.kv_heads, Count::Tokens, 1)?;
            let (reads, writes) = match number {
                0 => (
                    self.row_cost(Count::Tokens, q_cols + kv_cols + r.dims),
                    self.row_cost(Count::Tokens, q_cols).and(self.cache_cost(&d)),
                ),
                _ => Default::default(),
            };
            self.push(variant, &p, bindings, grid, reads, writes);
        }
        Ok(())
    }

    /// The number that `rope_store` has for what a norm is over.
    fn norm_kind(&self, norm: &Option<Norm>, r: &Rope, x: ValueId) -> Result<u32> {
        let Some(norm) = norm else { return Ok(numbers::NORM_NONE) };
        match nodes::norm_span(self.g, norm, r.head_dim, self.cols(x)) {
            Some(NormSpan::Head) => Ok(numbers::NORM_EACH_HEAD),
            Some(NormSpan::Row) => Ok(numbers::NORM_WHOLE_ROW),
            None => {
                let name = &self.g.weight(norm.weight).name;
                Err(Error::Graph(format!("{name} is over neither a head of {} nor a row", r.head_dim)))
            }
        }
    }

    /// Positions that a query sees at most, where that is fewer than all. A chunk of positions bounds them as a window of its
    /// length does.
    fn window(&self, a: &Attention) -> Option<usize> {
        a.window.or(a.attention_chunk).filter(|w| *w < self.target.options.ctx)
    }

    /// How the positions of an attention are shared out: not at all by a processor that emulates a GPU, nor where so few can be seen
    /// that joining the pieces costs more.
    fn pieces(&self, a: &Attention, d: &CacheDecl, rows: u32) -> Pieces {
        let window = self.window(a);
        let seen = window.map_or(self.target.options.ctx, |w| w + self.tokens - 1);
        let alone = self.target.reduction == Reduction::Invocation || seen <= numbers::PIECE_ALONE as usize;
        Pieces {
            kv_heads: d.kv_heads as u32,
            group: (a.heads / d.kv_heads.max(1)).max(1) as u32,
            rows,
            by_token: self.batch() == 1,
            most: if alone { 1 } else { numbers::MOST_PIECES },
            window: window.unwrap_or(0) as u32,
        }
    }

    /// Room for what the pieces of an attention leave: for the number of tokens that needs most.
    fn partials(&mut self, a: &Attention, d: &CacheDecl, pieces: &Pieces) -> BufferView {
        let rows = |tokens: usize| match pieces.most_of(tokens as u32) as usize {
            1 => 0,
            most => tokens * most,
        };
        let rows = (1..=self.tokens).map(rows).max().unwrap_or(0);
        self.transient_bytes(4 * (rows * a.heads * (d.v_dim + 4)) as u64, false, 0)
    }

    pub fn attend(&mut self, a: &Attention, q: ValueId, out: ValueId) -> Result<()> {
        self.tokens_only(q)?;
        let d = self.cache_decl(a.cache)?;
        let (q_place, y) = (self.view(q)?, self.fresh(out)?);
        let group = (a.heads / d.kv_heads.max(1)).max(1);
        let variant = catalogue::attend_variant(d.k_dim, d.v_dim, group, self.kv(), self.target.reduction)
            .with("V_IN_K", u32::from(d.v_in_k))
            .with("BATCH", self.batch());
        let pieces = self.pieces(a, &d, variant.get("ROWS")?);
        let partials = self.partials(a, &d, &pieces);
        let p = params::AttendParams {
            heads: a.heads as u32,
            kv_heads: pieces.kv_heads,
            ctx: self.target.options.ctx as u32,
            window: pieces.window,
            attention_chunks: u32::from(a.attention_chunk.is_some()),
            sinks_on: u32::from(a.sinks.is_some()),
            most_pieces: pieces.most,
            tile_rows: pieces.rows,
            q_offset: q_place.offset,
            q_stride: q_place.stride,
            y_offset: y.offset,
            y_stride: y.stride,
            scale: a.scale,
            ..params::AttendParams::default()
        };
        let mut grid = self.grid(&variant, d.kv_heads, Count::Tokens, group)?;
        if let Grid::Direct { per, tile, z, .. } = &mut grid {
            *z = Depth::Pieces(pieces);
            if pieces.by_token {
                // No workgroup takes rows of two tokens.
                (*per, *tile) = (per.div_ceil((*tile).max(1)), 1);
            }
        }
        let (parts, row) = (self.cache_parts(a.cache), self.row_cost(Count::Tokens, a.heads * d.v_dim));
        let units: u64 = parts.iter().map(|p| u64::from(p.1.units)).sum();
        for (number, part) in parts {
            let p = params::AttendParams { first_unit: part.first, units: part.units, ..p };
            let [k, v] = self.cache(a.cache, number, false)?;
            let bindings = vec![
                self.row_places()?,
                self.read("q", q_place.buffer)?,
                k,
                v,
                self.weight_vector("sinks", a.sinks)?,
                self.write("y", y.buffer)?,
                self.write("partials", partials.buffer)?,
            ];
            let position = Cost {
                position: self.cache_cost(&d).token * u64::from(part.units) / units.max(1),
                heads: group as u64,
                window: u64::from(pieces.window),
                ..Cost::default()
            };
            let (queries, written) = match number {
                0 => (self.row_cost(Count::Tokens, a.heads * d.k_dim), row),
                _ => Default::default(),
            };
            self.push(variant.clone(), &p, bindings, grid, queries.and(position), written);
        }
        if pieces.most > 1 && (1..=self.tokens).any(|t| pieces.most_of(t as u32) > 1) {
            self.attend_reduce(a, &d, pieces, partials.buffer, y)?;
        }
        Ok(())
    }

    fn attend_reduce(
        &mut self,
        a: &Attention,
        d: &CacheDecl,
        pieces: Pieces,
        partials: Buffer,
        y: BufferView,
    ) -> Result<()> {
        let p = params::AttendReduceParams {
            heads: a.heads as u32,
            kv_heads: pieces.kv_heads,
            v_dim: d.v_dim as u32,
            sinks_on: u32::from(a.sinks.is_some()),
            attention_chunks: u32::from(a.attention_chunk.is_some()),
            most_pieces: pieces.most,
            tile_rows: pieces.rows,
            y_offset: y.offset,
            y_stride: y.stride,
            window: pieces.window,
        };
        let variant = Variant::new(&catalogue::ATTEND_REDUCE).with("BATCH", self.batch());
        let bindings = vec![
            self.row_places()?,
            self.read("partials", partials)?,
            self.weight_vector("sinks", a.sinks)?,
            self.write("y", y.buffer)?,
        ];
        let mut grid = self.grid(&variant, a.heads, Count::Tokens, 1)?;
        if let Grid::Direct { z, .. } = &mut grid {
            *z = Depth::IfSeveral(pieces);
        }
        let row = self.row_cost(Count::Tokens, a.heads * d.v_dim);
        self.push(variant, &p, bindings, grid, row, row);
        Ok(())
    }
}
