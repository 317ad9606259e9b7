//! Lowering: from nodes to steps. This file has the context and the simple ops; see `matrix.rs`, `attention.rs` and
//! `experts.rs` for the others.

use super::{
    Access, Binding, Buffer, CacheBytes, Caps, Content, Cost, Count, GUARD, Grid, InputPlace, Options, OutputPlace,
    Phase, Place, READBACK, RopeTable, Schedule, Step, VectorPart, Weights, ZERO_BYTES, memory,
};
use crate::{
    error::{Error, Result},
    ir::{Activation, CacheId, Graph, Norm, NormKind, Op, Rope, Rows, Type, ValueId, WeightId},
    kernels::{Kernel, Style, Tiles, Variant, catalogue, numbers as n, params},
    quant::{DType, KvType},
};

/// Tokens of a step beyond which nothing gains: longer chunks are run in pieces.
const MOST_TOKENS: usize = 2048;

/// Columns rounded up to what every kernel can read as `vec4`.
pub(super) fn padded(cols: usize) -> usize {
    cols.next_multiple_of(4)
}

/// Rotations of a graph, each once, in node order.
fn ropes(g: &Graph) -> Vec<Rope> {
    let mut out: Vec<Rope> = Vec::new();
    for n in &g.nodes {
        if let Op::Rope(r) | Op::RopeStore { rope: r, .. } = &n.op
            && !out.contains(r)
        {
            out.push(r.clone());
        }
    }
    out
}

/// Checks that a buffer fits.
pub(super) fn fits(caps: &Caps, bytes: u64, what: &str, help: &str) -> Result<u64> {
    let limit = caps.max_binding.min(caps.max_buffer);
    if bytes > limit {
        return Err(Error::Device(format!("{what} takes {bytes} bytes, the device binds {limit} at a time; {help}")));
    }
    Ok(bytes.max(16))
}

pub(super) fn rope_tables(g: &Graph, caps: &Caps, o: &Options) -> Result<Vec<RopeTable>> {
    let table = |rope: Rope| {
        let bytes = (o.ctx * rope.dims / 2 * 8) as u64;
        let bytes = fits(caps, bytes, "the table of rotations", "ask for a shorter context (--ctx)")?;
        Ok(RopeTable { rope: rope.for_context(o.ctx), bytes })
    };
    ropes(g).into_iter().map(table).collect()
}

pub(super) fn caches(g: &Graph, caps: &Caps, o: &Options) -> Result<Vec<CacheBytes>> {
    let side = |heads: usize, dim: usize, i: usize| {
        let bytes = [o.sequences.unwrap_or(1), heads, o.ctx, o.kv.gpu_row_bytes(dim)]
            .iter()
            .try_fold(1u64, |a, b| a.checked_mul(*b as u64));
        let help = "ask for a shorter context (--ctx) or a smaller cache (--kv f16, --kv q8_0)";
        fits(caps, bytes.unwrap_or(u64::MAX), &format!("the KV cache of layer {i}"), help)
    };
    let cache = |(i, d): (usize, &crate::ir::CacheDecl)| {
        Ok(CacheBytes { keys: side(d.kv_heads, d.k_dim, i)?, values: side(d.kv_heads, d.stored_v_dim(), i)? })
    };
    g.caches.iter().enumerate().map(cache).collect()
}

pub(super) fn inputs(g: &Graph) -> Vec<InputPlace> {
    let input = |op: &Op| match op {
        Op::Input { name, cols } => Some(InputPlace { name: name.clone(), cols: *cols, stride: padded(*cols) }),
        _ => None,
    };
    g.nodes.iter().filter_map(|n| input(&n.op)).collect()
}

/// Makes one schedule. Where a buffer would not fit the device, fewer tokens or outputs are taken at a time.
pub(super) fn schedule(g: &Graph, w: &Weights, caps: &Caps, o: &Options, phase: Phase) -> Result<Schedule> {
    let mut tokens = o.chunk.clamp(1, MOST_TOKENS);
    let mut outputs = tokens.min(most_outputs(g));
    loop {
        let mut l = Lower::new(g, w, caps, o, phase, tokens, outputs);
        l.run()?;
        let limit = caps.max_binding.min(caps.max_buffer).saturating_sub(if o.guard { GUARD } else { 0 });
        let (t, o) = ((limit / l.token_bytes.max(1)) as usize, (limit / l.output_bytes.max(1)) as usize);
        if t >= tokens && o >= outputs {
            return l.finish();
        }
        if t == 0 || o == 0 {
            let bytes = l.token_bytes.max(l.output_bytes);
            let what = "activations of a single token";
            fits(caps, bytes, what, "use a device with larger bindings, or the cpu backend")?;
        }
        (tokens, outputs) = (tokens.min(t), outputs.min(o).min(t));
    }
}

/// Outputs whose results are read back at once.
fn most_outputs(g: &Graph) -> usize {
    let row = |v: &ValueId| match g.ty(*v) {
        Type::F32(Rows::Outputs, c) | Type::U32(Rows::Outputs, c) => 4 * padded(c) as u64,
        _ => 0,
    };
    let bytes: u64 = g.outputs.iter().map(|(_, v)| row(v)).sum();
    (READBACK / bytes.max(1)).clamp(1, MOST_TOKENS as u64) as usize
}

/// The state of lowering one schedule. Until [`memory::assign`], the number in [`Buffer::Scratch`] is a content's.
pub(super) struct Lower<'a> {
    pub g: &'a Graph,
    pub w: &'a Weights,
    pub caps: &'a Caps,
    pub options: &'a Options,
    pub decode: bool,
    phase: Phase,
    pub style: Style,
    pub tokens: usize,
    pub outputs: usize,
    places: Vec<Option<Place>>,
    pub contents: Vec<Content>,
    steps: Vec<Step>,
    ropes: Vec<Rope>,
    pub sorts: Vec<super::experts::Sort>,
    /// Choices of experts that the first products with them make.
    pub choices: Vec<super::experts::Choice>,
    /// Shared experts that ride with the routed ones.
    pub shared: Vec<super::shared::Shared>,
    /// Norms that are computed inside the products that use them; their values' places are those of the norms' inputs.
    pub folded: Vec<(ValueId, Norm)>,
    op: &'static str,
    layer: Option<u32>,
    inputs: u32,
    /// Most bytes that a content has for each token, and for each output.
    token_bytes: u64,
    output_bytes: u64,
}

impl<'a> Lower<'a> {
    fn new(
        g: &'a Graph,
        w: &'a Weights,
        caps: &'a Caps,
        options: &'a Options,
        phase: Phase,
        tokens: usize,
        outputs: usize,
    ) -> Self {
        let decode = phase == Phase::Decode;
        Lower {
            g,
            w,
            caps,
            options,
            decode,
            phase,
            style: options.style.unwrap_or_else(|| caps.style()),
            tokens,
            outputs,
            places: vec![None; g.values.len()],
            contents: vec![],
            steps: vec![],
            ropes: ropes(g),
            sorts: vec![],
            choices: vec![],
            shared: if decode { super::shared::find(g, w) } else { vec![] },
            folded: vec![],
            op: "",
            layer: None,
            inputs: 0,
            token_bytes: 0,
            output_bytes: 0,
        }
    }

    fn run(&mut self) -> Result<()> {
        for (i, node) in self.g.nodes.iter().enumerate() {
            (self.op, self.layer) = (node.op.name(), node.layer);
            self.node(i)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<Schedule> {
        let mut outputs = Vec::with_capacity(self.g.outputs.len());
        for (name, v) in &self.g.outputs {
            let ty = self.g.ty(*v);
            let Some((rows, cols)) = ty.dims() else {
                return Err(Error::Graph(format!("output {name} is a cache")));
            };
            let ids = matches!(ty, Type::U32(..));
            outputs.push(OutputPlace { name: name.clone(), rows, cols, ids, place: self.place(*v)?, content: None });
        }
        let (max_tokens, max_outputs) = (self.tokens, self.outputs);
        let mut s =
            Schedule { max_tokens, max_outputs, steps: self.steps, scratch: vec![], contents: self.contents, outputs };
        memory::assign(&mut s, !self.options.guard);
        Ok(s)
    }

    fn node(&mut self, i: usize) -> Result<()> {
        let n = &self.g.nodes[i];
        let (ins, outs) = (&n.inputs[..], &n.outputs[..]);
        match &n.op {
            Op::Tokens => self.set(outs[0], Place { buffer: Buffer::Tokens, offset: 0, stride: 1 }),
            Op::Input { cols, .. } => {
                let place = Place { buffer: Buffer::Input(self.inputs), offset: 0, stride: padded(*cols) as u32 };
                self.inputs += 1;
                self.set(outs[0], place);
            }
            Op::Embed { table, scale } => self.embed(ins[0], *table, *scale, outs[0])?,
            Op::RmsNorm(norm) if self.only_for_glu(norm, outs[0]) => {
                let x = self.place(ins[0])?;
                self.folded.push((outs[0], *norm));
                self.set(outs[0], x);
            }
            Op::RmsNorm(norm) => {
                let (x, y, rows) = (self.place(ins[0])?, self.fresh(outs[0])?, self.rows(ins[0])?);
                self.rms_norm(norm, x, y, rows, self.g.cols(ins[0]))?;
            }
            Op::Add => self.elementwise(n::OP_ADD, None, ins, outs[0], 0.0)?,
            Op::Scale(f) => self.elementwise(n::OP_SCALE, None, ins, outs[0], *f)?,
            Op::Glu(act) => self.elementwise(n::OP_GLU, Some(*act), ins, outs[0], 0.0)?,
            Op::SigmoidGate => self.elementwise(n::OP_SIGMOID_GATE, None, ins, outs[0], 0.0)?,
            Op::HeadIds { heads } => self.head_ids(*heads, outs[0])?,
            Op::JoinHeads { heads } => self.join_heads(*heads, ins, outs[0])?,
            Op::TakeOutputs => self.elementwise(n::OP_TAKE_OUTPUTS, None, ins, outs[0], 0.0)?,
            Op::Act(act) => self.elementwise(n::OP_ACT, Some(*act), ins, outs[0], 0.0)?,
            Op::WeighInputs => self.weigh_inputs(ins, outs)?,
            // Its place was set by the router that it rides with, which makes its input.
            Op::Linear(_) if super::weights::rides_with_router(self.g, self.w, n) => {}
            // Done with the routed experts.
            Op::LinearGlu { .. } | Op::LinearAdd { .. } if self.shared.iter().any(|s| s.nodes[2..].contains(&i)) => {}
            Op::Linear(_)
            | Op::LinearAdd { .. }
            | Op::LinearAct { .. }
            | Op::NormLinears { .. }
            | Op::LinearGlu { .. } => {
                self.matrix_node(&n.op, ins, outs)?;
            }
            Op::Rope(_) | Op::KvStore { .. } | Op::Attend(_) | Op::RopeStore { .. } => {
                self.attention_node(&n.op, ins, outs)?;
            }
            Op::ShortConv(c) => self.short_conv(c, ins[0], outs[0])?,
            Op::DeltaNet(d) => self.delta_net(d, ins, outs[0])?,
            Op::Router(_)
            | Op::NormRouter { .. }
            | Op::ExpertLinear(_)
            | Op::ExpertAct { .. }
            | Op::ExpertCombine
            | Op::ExpertGlu { .. }
            | Op::ExpertDownAdd { .. } => self.expert_node(n, i)?,
        }
        Ok(())
    }

    /// Whether all that use this normalised value can normalise it themselves (see [`Lower::folds_norm`]).
    fn only_for_glu(&self, norm: &Norm, v: ValueId) -> bool {
        let mut users = self.g.nodes.iter().filter(|n| n.inputs.contains(&v)).peekable();
        let whole_row = self.g.weight(norm.weight).shape.first() == Some(&self.g.cols(v));
        let is_output = self.g.outputs.iter().any(|(_, o)| *o == v);
        self.folds_norm(norm)
            && whole_row
            && !is_output
            && users.peek().is_some()
            && users.all(|n| matches!(n.op, Op::LinearGlu { .. }))
    }

    pub fn set(&mut self, v: ValueId, p: Place) {
        self.places[v.0 as usize] = Some(p);
    }

    /// Where a value lies.
    pub fn place(&self, v: ValueId) -> Result<Place> {
        self.places[v.0 as usize].ok_or_else(|| Error::Graph(format!("%{} is used before it is made", v.0)))
    }

    /// What a value's rows follow.
    pub fn rows(&self, v: ValueId) -> Result<Rows> {
        (self.g.ty(v).dims().map(|d| d.0)).ok_or_else(|| Error::Graph(format!("%{} is a cache", v.0)))
    }

    /// As [`Lower::rows`], where only T will do.
    pub fn tokens_only(&self, v: ValueId) -> Result<()> {
        match self.rows(v)? {
            Rows::Tokens => Ok(()),
            Rows::Outputs => Err(Error::Unsupported(format!("{} of output rows on the GPU", self.op))),
        }
    }

    /// Scratch of `per` elements for each row.
    pub fn content(&mut self, count: Count, per: usize) -> Place {
        let per = padded(per);
        let row = 4 * per as u64;
        let rows = match count {
            Count::Tokens => {
                self.token_bytes = self.token_bytes.max(row);
                self.tokens
            }
            Count::Outputs => {
                self.output_bytes = self.output_bytes.max(row);
                self.outputs
            }
            Count::One => 1,
        };
        self.content_bytes(rows as u64 * row, false, per as u32)
    }

    pub fn content_bytes(&mut self, bytes: u64, indirect: bool, stride: u32) -> Place {
        let guard = if self.options.guard { GUARD } else { 0 };
        let id = self.contents.len() as u32;
        self.contents.push(Content { bytes: bytes.max(16) + guard, scratch: 0, indirect, output: false });
        Place { buffer: Buffer::Scratch(id), offset: 0, stride }
    }

    /// Scratch for a value.
    pub fn fresh(&mut self, v: ValueId) -> Result<Place> {
        let place = self.content(self.rows(v)?.into(), self.g.cols(v));
        self.set(v, place);
        Ok(place)
    }

    pub fn kv(&self) -> KvType {
        self.options.kv
    }

    /// A product of many rows: by tiles where that suits the device, else as [`Lower::matrix_variant`] has it.
    pub fn product_variant(
        &self,
        lanes: &'static Kernel,
        tiles: &'static Kernel,
        cols: usize,
        formats: &[DType],
    ) -> Variant {
        let by_tiles = self.phase == Phase::Many && self.style == Style::Lanes;
        let variant =
            if by_tiles { self.tiled(tiles, formats) } else { self.matrix_variant(lanes, cols, !self.decode) };
        variant.formats(formats)
    }

    fn tiled(&self, kernel: &'static Kernel, formats: &[DType]) -> Variant {
        let extras = &self.caps.extras;
        let wanted = self.options.tiles.unwrap_or(self.caps.tiles).for_formats(formats);
        let tiles = if (wanted.row().runs)(extras) { wanted } else { Tiles::F32 };
        Variant::new(kernel).tiles(tiles, extras.subgroup_size)
    }

    /// Numbers for a matrix kernel with `cols` columns, those that the kernel has.
    pub fn matrix_variant(&self, kernel: &'static Kernel, cols: usize, many: bool) -> Variant {
        let v = self.style.matrix(kernel, cols, many);
        let able = self.style == Style::Lanes && self.caps.extras.subgroup_size.is_some();
        if able && self.options.subgroups.unwrap_or(true) { v.with("SUBGROUPS", 1) } else { v }
    }

    fn buffer_bytes(&self, buffer: Buffer) -> Result<u64> {
        let cache = |c: u32| caches(self.g, self.caps, self.options).map(|l| l[c as usize]);
        Ok(match buffer {
            Buffer::Frame => size_of::<params::Frame>() as u64,
            Buffer::Params => super::PARAMS_STRIDE,
            Buffer::Tokens => 4 * self.tokens as u64,
            Buffer::Rows => 8 * self.tokens as u64,
            Buffer::Zero => ZERO_BYTES,
            Buffer::Vectors => self.w.vector_bytes,
            Buffer::Matrix { matrix, segment } => self.w.matrices[matrix as usize].segments[segment as usize].bytes,
            Buffer::Rope(i) => (self.options.ctx * self.ropes[i as usize].dims * 4).max(16) as u64,
            Buffer::Input(i) => (4 * self.tokens * inputs(self.g)[i as usize].stride) as u64,
            Buffer::Keys(c) => cache(c)?.keys,
            Buffer::Values(c) => cache(c)?.values,
            Buffer::State(s) => super::recurrent::states(self.g, self.caps)?[s as usize],
            Buffer::Scratch(c) => self.contents[c as usize].bytes,
            Buffer::Sampling(part) => return Err(Error::Graph(format!("{part:?} is bound by the model"))),
        })
    }

    pub fn bind(&self, name: &'static str, buffer: Buffer, access: Access) -> Result<Binding> {
        let content = match buffer {
            Buffer::Scratch(c) => Some(c),
            _ => None,
        };
        Ok(Binding { name, buffer, offset: 0, size: self.buffer_bytes(buffer)?, access, content })
    }

    pub fn read(&self, name: &'static str, buffer: Buffer) -> Result<Binding> {
        self.bind(name, buffer, Access::Read)
    }

    pub fn write(&self, name: &'static str, buffer: Buffer) -> Result<Binding> {
        self.bind(name, buffer, Access::ReadWrite)
    }

    /// An operand that may be missing.
    pub fn maybe(&self, name: &'static str, place: Option<Place>) -> Result<Binding> {
        self.read(name, place.map_or(Buffer::Zero, |p| p.buffer))
    }

    /// A vector, which may be missing.
    pub fn vector(&self, name: &'static str, parts: Option<&[VectorPart]>) -> Result<Binding> {
        let Some(parts) = parts else { return self.read(name, Buffer::Zero) };
        let v = self.w.vector(parts)?;
        let size = 4 * v.len as u64;
        Ok(Binding { offset: v.offset, size, ..self.read(name, Buffer::Vectors)? })
    }

    pub fn weight_vector(&self, name: &'static str, w: Option<WeightId>) -> Result<Binding> {
        match w {
            Some(w) => self.vector(name, Some(&[VectorPart::Weight(w)])),
            None => self.vector(name, None),
        }
    }

    /// Where the rows of the step belong: for kernels with `BATCH`.
    pub fn row_places(&self) -> Result<Binding> {
        self.read("rows", if self.options.sequences.is_some() { Buffer::Rows } else { Buffer::Zero })
    }

    /// `BATCH` of those kernels.
    pub fn batch(&self) -> u32 {
        u32::from(self.options.sequences.is_some())
    }

    pub fn rope(&self, r: &Rope) -> Result<Binding> {
        let i = self.ropes.iter().position(|x| x == r).unwrap_or(0);
        self.read("rope_table", Buffer::Rope(i as u32))
    }

    pub fn cache(&self, c: CacheId, write: bool) -> Result<[Binding; 2]> {
        let access = if write { Access::ReadWrite } else { Access::Read };
        // A store writes no values where they are part of keys, and has a buffer of their own to write none to.
        let in_keys = !write && self.g.caches[c.0 as usize].v_in_k;
        let values = if in_keys { Buffer::Keys(c.0) } else { Buffer::Values(c.0) };
        Ok([self.bind("k_cache", Buffer::Keys(c.0), access)?, self.bind("v_cache", values, access)?])
    }

    /// Adds a step.
    pub fn push<P: bytemuck::Pod>(
        &mut self,
        variant: Variant,
        p: &P,
        bindings: Vec<Binding>,
        grid: Grid,
        reads: Cost,
        writes: Cost,
    ) {
        let params = bytemuck::bytes_of(p).to_vec();
        let (op, layer) = (self.op, self.layer);
        self.steps.push(Step { op, layer, variant, bindings, params, grid, reads, writes });
    }

    /// The grid of a kernel over `items` and `per` rows for each of `count`.
    ///
    /// # Errors
    /// As [`Variant::tile`].
    pub fn grid(&self, v: &Variant, items: usize, count: Count, per: usize) -> Result<Grid> {
        let [item_tile, tile] = v.tile()?;
        let x = (items as u64).div_ceil(u64::from(item_tile.max(1))) as u32;
        Ok(Grid::Direct { x, count, per: per as u32, tile, split: 0, most: 0 })
    }

    /// `elements` of 4 bytes for each row.
    pub fn row_cost(&self, count: Count, elements: usize) -> Cost {
        let bytes = 4 * elements as u64;
        match count {
            Count::Tokens => Cost { token: bytes, ..Cost::default() },
            Count::Outputs => Cost { output: bytes, ..Cost::default() },
            Count::One => Cost { fixed: bytes, ..Cost::default() },
        }
    }

    fn embed(&mut self, ids: ValueId, table: WeightId, scale: f32, out: ValueId) -> Result<()> {
        self.tokens_only(ids)?;
        let (ids, y, m) = (self.place(ids)?, self.fresh(out)?, self.w.matrix(&[table])?);
        let matrix = &self.w.matrices[m as usize];
        let tail = u32::from(!matrix.cols.is_multiple_of(32));
        let variant = Variant::new(&catalogue::EMBED).formats(&[matrix.dtype]).with("TAIL", tail);
        for (i, s) in matrix.segments.iter().enumerate() {
            let p = params::EmbedParams {
                row0: s.row0 as u32,
                rows: s.rows as u32,
                groups: matrix.groups(),
                cols: matrix.cols as u32,
                ids_offset: ids.offset,
                ids_stride: ids.stride,
                y_offset: y.offset,
                y_stride: y.stride,
                scale,
            };
            let data = Buffer::Matrix { matrix: m, segment: i as u32 };
            let bindings = vec![self.read("ids", ids.buffer)?, self.read("w_data", data)?, self.write("y", y.buffer)?];
            let grid = self.grid(&variant, matrix.groups() as usize, Count::Tokens, 1)?;
            let row = matrix.dtype.row_bytes(matrix.cols).unwrap_or(0) as u64;
            let reads = Cost { token: 4 + row / matrix.segments.len() as u64, ..Cost::default() };
            self.push(variant.clone(), &p, bindings, grid, reads, self.row_cost(Count::Tokens, matrix.cols));
        }
        Ok(())
    }

    /// Normalises rows, or groups of columns where the weight is shorter than a row.
    pub fn rms_norm(&mut self, norm: &Norm, x: Place, y: Place, rows: Rows, cols: usize) -> Result<()> {
        let n = self.g.weight(norm.weight).shape.iter().product::<usize>().max(1);
        if !n.is_multiple_of(4) {
            let name = &self.g.weight(norm.weight).name;
            return Err(Error::Unsupported(format!(
                "{name}: norms of {n} columns on the GPU; a multiple of 4 is needed"
            )));
        }
        let p = params::RmsNormParams {
            outputs: u32::from(rows == Rows::Outputs),
            cols: n as u32,
            x_offset: x.offset,
            x_stride: x.stride,
            y_offset: y.offset,
            y_stride: y.stride,
            eps: norm.eps,
        };
        let variant = Variant::new(&catalogue::RMS_NORM)
            .with("LAYER", u32::from(norm.kind == NormKind::Layer))
            .with("BIASED", u32::from(norm.bias.is_some()));
        let bindings = vec![
            self.read("x", x.buffer)?,
            self.weight_vector("w", Some(norm.weight))?,
            self.weight_vector("b", norm.bias)?,
            self.write("y", y.buffer)?,
        ];
        let grid = self.grid(&variant, cols / n, rows.into(), 1)?;
        let cost = self.row_cost(rows.into(), cols);
        self.push(variant, &p, bindings, grid, cost.and(self.row_cost(Count::One, n)), cost);
        Ok(())
    }

    /// The inputs of experts times their weights; ones lie behind them in the same rows.
    fn weigh_inputs(&mut self, ins: &[ValueId], outs: &[ValueId]) -> Result<()> {
        let (a, b, rows) = (self.place(ins[0])?, self.place(ins[1])?, self.rows(ins[0])?);
        let (inner, weighed, k) = (self.g.cols(ins[0]), self.g.cols(outs[0]), self.g.cols(outs[1]));
        let y = self.content(rows.into(), weighed + k);
        self.set(outs[0], y);
        self.set(outs[1], Place { offset: y.offset + weighed as u32, ..y });
        let p = params::ElementwiseParams {
            outputs: u32::from(rows == Rows::Outputs),
            cols: (weighed + k) as u32,
            a_offset: a.offset,
            a_stride: a.stride,
            b_offset: b.offset,
            b_stride: b.stride,
            y_offset: y.offset,
            y_stride: y.stride,
            inner: inner as u32,
            factor: 0.0,
        };
        let variant = Variant::new(&catalogue::ELEMENTWISE).with("OP", n::OP_WEIGH_INPUTS);
        let bindings = vec![self.read("a", a.buffer)?, self.read("b", b.buffer)?, self.write("y", y.buffer)?];
        let grid = self.grid(&variant, weighed + k, rows.into(), 1)?;
        let cost = |cols: usize| self.row_cost(rows.into(), cols);
        let (reads, writes) = (cost(inner + k), cost(weighed + k));
        self.push(variant, &p, bindings, grid, reads, writes);
        Ok(())
    }

    fn elementwise(
        &mut self,
        op: u32,
        act: Option<Activation>,
        ins: &[ValueId],
        out: ValueId,
        factor: f32,
    ) -> Result<()> {
        let (a, b) = (self.place(ins[0])?, ins.get(1).map(|v| self.place(*v)).transpose()?);
        let (y, rows, cols) = (self.fresh(out)?, self.rows(out)?, self.g.cols(out));
        let p = params::ElementwiseParams {
            outputs: u32::from(rows == Rows::Outputs),
            cols: cols as u32,
            a_offset: a.offset,
            a_stride: a.stride,
            b_offset: b.map_or(0, |b| b.offset),
            b_stride: b.map_or(0, |b| b.stride),
            y_offset: y.offset,
            y_stride: y.stride,
            inner: 0,
            factor,
        };
        let variant = Variant::new(&catalogue::ELEMENTWISE).with("OP", op);
        let variant = if let Some(act) = act { variant.act(act) } else { variant };
        let bindings = vec![self.read("a", a.buffer)?, self.maybe("b", b)?, self.write("y", y.buffer)?];
        let grid = self.grid(&variant, cols, rows.into(), 1)?;
        let reads = ins.iter().map(|v| self.row_cost(rows.into(), self.g.cols(*v)));
        let reads = reads.fold(Cost::default(), Cost::and);
        self.push(variant, &p, bindings, grid, reads, self.row_cost(rows.into(), cols));
        Ok(())
    }
}
