//! Sizes of what outlives a step: caches, tables of rotations, inputs.

use super::{
    CacheBytes, CachePart, Caps, ExpertCache, InputBuffer, Options, RopeTable,
    limits::{fits, padded},
};
use crate::{
    error::{Error, Result},
    ir::{CacheDecl, Graph, Op, Rope},
};

/// u32 words of a sequence's [`crate::kernels::params::Span`] in [`super::Buffer::Spans`].
pub const SPAN_WORDS: usize = crate::kernels::numbers::SPAN_WORDS as usize;

/// Bytes of [`super::Buffer::Spans`]: a span for each sequence, then the rows of a step of so many.
pub(super) fn span_bytes(sequences: usize, rows: usize) -> u64 {
    4 * (SPAN_WORDS as u64 * sequences as u64 + rows as u64)
}

/// The buffers that all schedules of a plan use.
#[derive(Clone, Debug)]
pub(super) struct Resident {
    /// Tables of the rotations, each once, in node order.
    pub ropes: Vec<RopeTable>,
    /// The rotations of the graph that the tables are of, before the context chose among their forms.
    rotations: Vec<Rope>,
    /// Bytes of the KV caches.
    pub caches: Vec<CacheBytes>,
    /// Bytes of the recurrent states.
    pub states: Vec<u64>,
    /// The caller's inputs.
    pub inputs: Vec<InputBuffer>,
    /// Elements of the longest row that the host computes.
    pub host_stride: usize,
    /// Slots of experts.
    pub expert_caches: Vec<ExpertCache>,
}

impl Resident {
    /// What a graph needs; `states` are the bytes of its recurrent states.
    pub fn new(g: &Graph, states: Vec<u64>, expert_caches: Vec<ExpertCache>, caps: &Caps, o: &Options) -> Result<Self> {
        let (caches, rotations) = (caches(g, caps, o)?, rotations(g));
        let ropes = rotations.iter().map(|r| rope_table(r, caps, o)).collect::<Result<_>>()?;
        let (inputs, host_stride) = (inputs(g), host_stride(g));
        Ok(Resident { ropes, rotations, caches, states, inputs, host_stride, expert_caches })
    }

    /// The number of a rotation's table.
    pub fn rope(&self, r: &Rope) -> Result<u32> {
        let i = self.rotations.iter().position(|x| x == r);
        i.map(|i| i as u32).ok_or_else(|| Error::Graph(format!("a rotation of {} columns has no table", r.dims)))
    }
}

fn rotations(g: &Graph) -> Vec<Rope> {
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

fn rope_table(rope: &Rope, caps: &Caps, o: &Options) -> Result<RopeTable> {
    let bytes = (o.ctx as u64).saturating_mul(rope.dims as u64 / 2 * 8);
    let bytes = fits(caps, bytes, "the table of rotations", "ask for a shorter context")?;
    Ok(RopeTable { rope: rope.for_context(o.ctx), bytes })
}

fn caches(g: &Graph, caps: &Caps, o: &Options) -> Result<Vec<CacheBytes>> {
    let limit = caps.max_binding.min(caps.max_buffer);
    let cache = |(i, d): (usize, &CacheDecl)| {
        // A head of one sequence is not cut.
        let unit = |dim: usize| {
            let bytes = (o.ctx as u64).saturating_mul(o.kv.gpu_row_bytes(dim) as u64);
            let help = "ask for a shorter context or a smaller cache (f16, q8_0)";
            fits(caps, bytes, &format!("a head of the KV cache of layer {i}"), help)
        };
        let (k, v) = (unit(d.k_dim)?, unit(d.stored_v_dim())?);
        let units = o.sequences.unwrap_or(1) as u64 * d.kv_heads as u64;
        let each = (limit / k.max(v)).clamp(1, units.max(1));
        let part = |first: u64| {
            let n = each.min(units - first);
            CachePart { first: first as u32, units: n as u32, keys: n * k, values: n * v }
        };
        let parts = (0..units).step_by(each as usize).map(part).collect();
        Ok(CacheBytes { keys: units * k, values: units * v, parts })
    };
    g.caches.iter().enumerate().map(cache).collect()
}

fn host_stride(g: &Graph) -> usize {
    let row = |op: &Op| match op {
        Op::HostExperts { cols, .. } => Some(padded(*cols)),
        _ => None,
    };
    g.nodes.iter().filter_map(|n| row(&n.op)).max().unwrap_or(0)
}

fn inputs(g: &Graph) -> Vec<InputBuffer> {
    let input = |op: &Op| match op {
        Op::Input { name, cols } => Some(InputBuffer { name: name.clone(), cols: *cols, stride: padded(*cols) }),
        _ => None,
    };
    g.nodes.iter().filter_map(|n| input(&n.op)).collect()
}
