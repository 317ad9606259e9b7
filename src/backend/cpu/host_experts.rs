//! Experts for a device that leaves them to the processor: regions of a graph, each run by itself on what the device has computed.

use super::{
    Model, Options, prepare,
    run::{State, StepContext},
    sequence::Rows,
};
use crate::{
    backend::{
        OnProgress, Program,
        host::{HostExperts, HostResult, HostRows, HostRunner},
    },
    error::{Error, Result},
    file::Tensor,
    graph::Split,
    ir::{Math, Op, ValueId},
};
use std::sync::Arc;

/// A region of the graph.
#[derive(Clone, Debug)]
struct Region {
    inputs: Vec<ValueId>,
    zeros: ValueId,
    result: ValueId,
    /// Its nodes among those of the fused graph.
    nodes: Vec<usize>,
}

/// The loaded weights of all regions.
struct Loaded(Arc<Model>, Arc<[Region]>);

/// Loads the experts that `split` leaves to the host; the weights are those of the whole graph.
///
/// # Errors
/// As [`super::load`].
pub fn load_experts(
    split: &Split,
    weights: &Arc<Vec<Tensor>>,
    options: &Options,
    progress: OnProgress<'_>,
) -> Result<Arc<dyn HostExperts>> {
    let program = Program { graph: Arc::new(split.host.clone()), weights: weights.clone() };
    let model = prepare(program, options, progress)?;
    let stands_in = |op: &Op| matches!(op, Op::Input { .. } | Op::Math(Math::Ids { .. }));
    let region = |r: &crate::graph::Region| {
        let own = model.graph.nodes.iter().enumerate();
        let own = own.filter(|(_, n)| n.layer == Some(r.layer) && !stands_in(&n.op)).map(|(i, _)| i);
        Region { inputs: r.inputs.clone(), zeros: r.zeros, result: r.result, nodes: own.collect() }
    };
    let regions = split.regions.iter().map(region).collect();
    Ok(Arc::new(Loaded(Arc::new(model), regions)))
}

impl HostExperts for Loaded {
    fn describe(&self) -> String {
        self.0.describe()
    }

    fn weight_bytes(&self) -> u64 {
        self.0.weight_bytes()
    }

    fn runner(&self, rows: usize) -> Result<Box<dyn HostRunner>> {
        let state = State::new(&self.0, rows, 0, vec![]);
        let (model, regions) = (self.0.clone(), self.1.clone());
        Ok(Box::new(Runner { model, regions, state, tokens: vec![0; rows] }))
    }
}

/// The memory of a step.
struct Runner {
    model: Arc<Model>,
    regions: Arc<[Region]>,
    state: State,
    /// As many as rows; nothing here reads ids of tokens.
    tokens: Vec<u32>,
}

impl HostRunner for Runner {
    fn run(&mut self, region: usize, rows: usize, inputs: &[HostRows<'_>], out: HostResult<'_>) -> Result<()> {
        let missing = || Error::Graph(format!("region {region} of the host's experts, {rows} rows: not there"));
        let r = self.regions.get(region).filter(|r| r.inputs.len() == inputs.len()).ok_or_else(missing)?;
        let tokens = self.tokens.get(..rows).ok_or_else(missing)?;
        let step = Rows { tokens, outputs: rows, inputs: &[], trace: false, hidden: &[] };
        let f = StepContext { model: &self.model, step, segments: &[] };
        self.state.begin(f);
        for (v, input) in r.inputs.iter().zip(inputs) {
            self.state.put(f, *v, input.words, input.stride).ok_or_else(missing)?;
        }
        self.state.clear(f, r.zeros);
        for node in &r.nodes {
            self.state.run(f, &self.model.graph.nodes[*node])?;
        }
        self.state.copy_rows(f, r.result, out.words, out.stride).ok_or_else(missing)
    }

    fn bytes(&self) -> u64 {
        self.state.bytes()
    }
}
