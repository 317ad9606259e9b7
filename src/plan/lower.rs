//! Lowering: from nodes to steps, one to one. This file has the context; the ops are in `simple.rs`,
//! `product.rs`, `attention.rs`, `routing.rs`, `experts.rs` and `recurrent.rs`.

mod bind;

use super::{
    Binding, Buffer, BufferView, CANARY_BYTES, Cost, Count, Depth, Grid, HostCall, OutputView, READBACK, Schedule,
    Step, TransientBuffer,
    limits::{fits, padded},
    memory,
    nodes::{KernelGraph, KernelNode, KernelOp, Pack},
    phase,
    sizes::Resident,
    target::Target,
    weights::Weights,
};
use crate::{
    error::{Error, Result},
    ir::{Graph, RESIDUAL, Rows, Type, ValueId},
    kernels::Variant,
    quant::KvType,
};
use std::collections::BTreeMap;

/// Tokens of a step beyond which nothing gains: larger micro-batches are run in pieces.
const MOST_TOKENS: usize = 2048;

/// Makes one schedule. Where a buffer would not fit the device, fewer tokens or outputs are taken at a time.
pub(super) fn schedule(g: &Graph, w: &Weights, resident: &Resident, target: Target<'_>) -> Result<Schedule> {
    let (caps, o) = (target.caps, target.options);
    let nodes = phase::for_phase(g, w, &resident.expert_caches, &target)?;
    let mut tokens = o.ubatch.clamp(1, MOST_TOKENS);
    let mut outputs = tokens.min(most_outputs(g));
    loop {
        let mut l = Lower::new(g, w, &nodes, resident, target, [tokens, outputs]);
        l.run()?;
        let limit = caps.max_binding.min(caps.max_buffer).saturating_sub(if o.canaries { CANARY_BYTES } else { 0 });
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
        Type::F32(Rows::Tokens | Rows::Fixed(_), _) | Type::U32(Rows::Tokens | Rows::Fixed(_), _) => 0,
        Type::Cache(_) | Type::Grad(_) => 0,
    };
    let bytes: u64 = g.outputs.iter().map(|(_, v)| row(v)).sum();
    (READBACK / bytes.max(1)).clamp(1, MOST_TOKENS as u64) as usize
}

/// The tables of an `expert_sort`.
#[derive(Clone, Copy)]
pub(super) struct SortTables {
    pub pairs: BufferView,
    pub tiles: BufferView,
    /// Arguments of the dispatches, 16 bytes each.
    pub args: BufferView,
}

/// The state of lowering one schedule. Until [`memory::assign`], the number in [`Buffer::Scratch`] is a transient's.
pub(super) struct Lower<'a> {
    pub g: &'a Graph,
    pub w: &'a Weights,
    pub nodes: &'a KernelGraph,
    pub target: Target<'a>,
    pub tokens: usize,
    outputs: usize,
    resident: &'a Resident,
    /// Where the values lie.
    views: Vec<Option<BufferView>>,
    /// Where the packs lie.
    packs: Vec<Option<BufferView>>,
    transients: Vec<TransientBuffer>,
    steps: Vec<Step>,
    host_calls: Vec<HostCall>,
    /// The tables of the sorts, by their number.
    pub sorts: BTreeMap<u32, SortTables>,
    /// Values that are slots of experts, and of which cache.
    pub slots: BTreeMap<ValueId, u32>,
    /// Of each cache that has chosen its experts, the workgroups that fill its slots.
    pub fills: BTreeMap<u32, BufferView>,
    op: &'static str,
    layer: Option<u32>,
    /// Most bytes that a transient has for each token, and for each output.
    token_bytes: u64,
    output_bytes: u64,
}

impl<'a> Lower<'a> {
    fn new(
        g: &'a Graph,
        w: &'a Weights,
        nodes: &'a KernelGraph,
        resident: &'a Resident,
        target: Target<'a>,
        [tokens, outputs]: [usize; 2],
    ) -> Self {
        Lower {
            g,
            w,
            nodes,
            target,
            tokens,
            outputs,
            resident,
            views: vec![None; nodes.values.len()],
            packs: vec![None; nodes.packs.len()],
            transients: vec![],
            steps: vec![],
            host_calls: vec![],
            sorts: BTreeMap::new(),
            slots: BTreeMap::new(),
            fills: BTreeMap::new(),
            op: "",
            layer: None,
            token_bytes: 0,
            output_bytes: 0,
        }
    }

    fn run(&mut self) -> Result<()> {
        for node in &self.nodes.nodes {
            (self.op, self.layer) = (node.part_of, node.layer);
            self.node(node)?;
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
            let (name, residual, view) = (name.clone(), name == RESIDUAL, self.view(*v)?);
            outputs.push(OutputView { name, rows, cols, ids, residual, view, transient: None });
        }
        let (max_tokens, max_outputs, canaries) = (self.tokens, self.outputs, self.target.options.canaries);
        let (nodes, steps, mut host_calls, transients) =
            (self.nodes.clone(), self.steps, self.host_calls, self.transients);
        for call in &mut host_calls {
            let reads = |s: &Step| s.bindings.iter().any(|b| b.buffer == Buffer::Host(call.region));
            call.needed = steps.iter().position(reads).unwrap_or(steps.len());
        }
        let scratch = vec![];
        let mut s = Schedule { max_tokens, max_outputs, nodes, steps, host_calls, scratch, transients, outputs };
        memory::assign(&mut s, !canaries);
        Ok(s)
    }

    /// One node: its dispatch, or one for each segment of its matrices.
    fn node(&mut self, n: &KernelNode) -> Result<()> {
        let (ins, outs) = (&n.inputs[..], &n.outputs[..]);
        match &n.op {
            KernelOp::Tokens => {
                self.set(outs[0], BufferView { buffer: Buffer::Tokens, offset: 0, stride: 1 });
                Ok(())
            }
            KernelOp::Input(i) => {
                let stride = padded(self.cols(outs[0])) as u32;
                self.set(outs[0], BufferView { buffer: Buffer::Input(*i), offset: 0, stride });
                Ok(())
            }
            KernelOp::Embed { table, scale } => self.embed(ins[0], *table, *scale, outs[0]),
            KernelOp::Norm(norm) => self.norm(norm, ins[0], outs[0]),
            KernelOp::Elementwise(e) => self.elementwise(*e, ins, outs[0]),
            KernelOp::ScaleExpertInputs => self.scale_expert_inputs(ins, outs),
            KernelOp::HeadIds { heads } => self.head_ids(*heads, outs[0]),
            KernelOp::LocalIds { first, count } => self.local_ids(*first, *count, ins[0], outs[0]),
            KernelOp::JoinHeads { heads } => self.join_heads(*heads, ins, outs[0]),
            KernelOp::Rope(r) => self.rotate(r, ins[0], outs[0]),
            KernelOp::KvStore { cache } => self.kv_store(*cache, ins),
            KernelOp::RopeStore { norms, rope, qk_norm_after_rope, cache } => {
                self.rope_store((norms, *qk_norm_after_rope), rope, *cache, ins, outs[0])
            }
            KernelOp::Attend(a) => self.attend(a, ins[0], outs[0]),
            KernelOp::ShortConv(c) => self.short_conv(c, ins[0], outs[0]),
            KernelOp::DeltaNet(d) => self.delta_net(d, ins, outs[0]),
            KernelOp::Linear { parts, norm, keep_normed, epilogue } => {
                self.linear(parts, (norm.as_ref(), *keep_normed), *epilogue, ins, outs)
            }
            KernelOp::LinearPair { parts, norm } => self.linear_pair(parts, norm.as_ref(), ins[0], outs),
            KernelOp::LinearGlu { gate, up, act, norm } => {
                self.linear_glu([*gate, *up], *act, norm.as_ref(), ins[0], outs[0])
            }
            KernelOp::Router(r) => self.router(r, ins[0], outs, None),
            KernelOp::RouterCached { router, cache, beside } => {
                self.router(router, ins[0], outs, Some((*cache, *beside)))
            }
            KernelOp::ExpertPlaces { cache } => self.expert_places(*cache, ins[0], outs[0]),
            KernelOp::ExpertFill { cache } => self.expert_fill(*cache),
            KernelOp::ExpertSort { sort, experts, tile, blocks } => {
                self.expert_sort(*sort, *experts, *tile, blocks, ins[0])
            }
            KernelOp::ExpertLinear { linear, act, route } => self.expert_linear(linear, *act, *route, ins, outs[0]),
            KernelOp::ExpertGlu { gate, up, act, route, shared, choose } => {
                self.expert_glu([gate, up], *act, *route, (*shared, choose.as_ref()), ins, outs)
            }
            KernelOp::ExpertDown { linear, factor, shared } => self.expert_down(linear, *factor, *shared, ins, outs[0]),
            KernelOp::ExpertCombine { residual } => self.combine(*residual, ins, outs[0]),
            KernelOp::HostExperts { region } => self.host_experts(*region, ins, outs[0]),
        }
    }

    pub fn set(&mut self, v: ValueId, p: BufferView) {
        self.views[v.0 as usize] = Some(p);
    }

    /// Where a value lies.
    pub fn view(&self, v: ValueId) -> Result<BufferView> {
        self.views[v.0 as usize].ok_or_else(|| Error::Graph(format!("%{} is used before it is made", v.0)))
    }

    /// Columns of a value; 0 for a cache.
    pub fn cols(&self, v: ValueId) -> usize {
        self.nodes.cols(v)
    }

    /// What a value's rows follow.
    pub fn rows(&self, v: ValueId) -> Result<Rows> {
        self.nodes.dims(v).map(|d| d.0)
    }

    /// As [`Lower::rows`], where only T will do.
    pub fn tokens_only(&self, v: ValueId) -> Result<()> {
        match self.rows(v)? {
            Rows::Tokens => Ok(()),
            Rows::Outputs => Err(Error::Unsupported(format!("{} of output rows on the GPU", self.op))),
            Rows::Fixed(_) => Err(Error::Unsupported(format!("{} of a fixed number of rows on the GPU", self.op))),
        }
    }

    /// Scratch of `per` elements for each row.
    pub fn transient(&mut self, count: Count, per: usize) -> BufferView {
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
            Count::Fixed(n) => n as usize,
        };
        self.transient_bytes(rows as u64 * row, false, per as u32)
    }

    pub fn transient_bytes(&mut self, bytes: u64, indirect: bool, stride: u32) -> BufferView {
        let canary = if self.target.options.canaries { CANARY_BYTES } else { 0 };
        let id = self.transients.len() as u32;
        self.transients.push(TransientBuffer { bytes: bytes.max(16) + canary, scratch: 0, indirect, output: false });
        BufferView { buffer: Buffer::Scratch(id), offset: 0, stride }
    }

    /// Scratch for a value: of its own, or its columns of the pack that it is in.
    pub fn fresh(&mut self, v: ValueId) -> Result<BufferView> {
        let place = match self.nodes.packed(v) {
            None => self.transient(self.rows(v)?.into(), self.cols(v)),
            Some((pack, offset)) => {
                let place = match self.packs[pack as usize] {
                    Some(place) => place,
                    None => {
                        let Pack { rows, cols, .. } = self.nodes.packs[pack as usize];
                        self.transient(rows.into(), cols)
                    }
                };
                self.packs[pack as usize] = Some(place);
                BufferView { offset, ..place }
            }
        };
        self.set(v, place);
        Ok(place)
    }

    pub fn kv(&self) -> KvType {
        self.target.options.kv
    }

    /// Adds a call of the host behind the steps so far.
    pub fn call_host(&mut self, call: HostCall) {
        self.token_bytes = self.token_bytes.max(4 * self.resident.host_stride as u64);
        let (layer, before) = (self.layer, self.steps.len());
        self.host_calls.push(HostCall { layer, before, needed: before, ..call });
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
        let flushes_halves = self.target.caps.features.flushes_halves && !variant.formats.is_empty();
        let variant = Variant { flushes_halves, ..variant };
        self.steps.push(Step { op, layer, variant, bindings, params, grid, reads, writes });
    }

    /// The grid of a kernel over `items` and `per` rows for each of `count`.
    ///
    /// # Errors
    /// As [`Variant::tile`].
    pub fn grid(&self, v: &Variant, items: usize, count: Count, per: usize) -> Result<Grid> {
        let [item_tile, tile] = v.tile()?;
        let x = (items as u64).div_ceil(u64::from(item_tile.max(1))) as u32;
        Ok(Grid::Direct { x, count, per: per as u32, tile, z: Depth::One })
    }

    /// `elements` of 4 bytes for each row.
    pub fn row_cost(&self, count: Count, elements: usize) -> Cost {
        let bytes = 4 * elements as u64;
        match count {
            Count::Tokens => Cost { token: bytes, ..Cost::default() },
            Count::Outputs => Cost { output: bytes, ..Cost::default() },
            Count::One => Cost { fixed: bytes, ..Cost::default() },
            Count::Fixed(n) => Cost { fixed: u64::from(n) * bytes, ..Cost::default() },
        }
    }
}
