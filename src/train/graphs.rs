//! The graphs of a run: a model's own with losses, noise, dropout and capacity, as the configuration says.

use super::{
    config::{DropName, NoiseName, RouterConfig, SecondName, TrainConfig, VarianceName},
    data::{normal, short},
};
use crate::{
    error::{Error, Result},
    file::Tensor,
    graph::{
        ExpertDropout, LowRank, Program, RouterCapacity, RouterGroups, RouterNoise, for_training,
        formula::{Objective, RouterLoss, Variance, language_model},
        routers, with_capacity, with_expert_dropout, with_experts_used, with_low_rank, with_router_groups,
        with_router_noise,
    },
    ir::{Graph, Keep},
    model::Definition,
};
use std::collections::{BTreeSet, HashSet};

/// A model on its way to programs of training.
pub(super) struct Graphs {
    /// Rewritten for training, with adapters, without losses.
    graph: Graph,
    weights: Vec<Tensor>,
    router: RouterConfig,
    dropout: ExpertDropout,
}

/// What one number of experts a token makes.
pub(super) struct Prepared {
    /// Forward with a loss.
    pub program: Program,
    /// What evaluation runs, where it is another graph.
    pub evaluation: Option<Graph>,
}

/// A router whose choice is balanced by its selection bias.
#[derive(Clone, Debug)]
pub(super) struct Biased {
    /// The layer, as counts of its tokens are named.
    pub layer: u32,
    /// The bias.
    pub weight: String,
}

impl Graphs {
    pub fn new(definition: &Definition, config: &TrainConfig, adapters: &[LowRank]) -> Result<Graphs> {
        let base = with_low_rank(&without_extras(definition)?, adapters)?;
        let dropout = ExpertDropout { inside: config.expert_dropout, behind: config.expert_output_dropout };
        let (mut graph, mut weights) = (for_training(&base.graph, config.sequence_len)?, base.weights.to_vec());
        if let Some(groups) = groups(&config.router) {
            graph = with_router_groups(&graph, groups).map_err(|e| Error::Invalid(format!("router: {e}")))?;
            let added = graph.weights[weights.len()..].iter().zip(GROUPS_STREAM..);
            let routers = added.map(|(w, stream)| random(w.shape.clone(), config.seed, stream));
            weights.extend(routers.collect::<Result<Vec<_>>>()?);
        }
        if config.lora.is_none() {
            warn_of_equal_weights(&graph);
        }
        let graphs = Graphs { graph, weights, router: config.router, dropout };
        let numbers: BTreeSet<u32> = config.top_k_schedule.iter().map(|[_, used]| *used).collect();
        for used in numbers {
            let schedule = |e: Error| Error::Invalid(format!("top_k_schedule: {e}"));
            graphs.prepare(Some(used)).map_err(schedule)?;
        }
        if config.router.noise == NoiseName::Learned && config.lora.is_some() {
            return Err(Error::Invalid(
                "router: noise = \"learned\" has a matrix of its own, and [lora] trains adapters alone".into(),
            ));
        }
        Ok(graphs)
    }

    /// The graphs in which a token uses so many experts, or as many as the model says.
    pub fn prepare(&self, used: Option<u32>) -> Result<Prepared> {
        let plain = match used {
            Some(used) => with_experts_used(&self.graph, used as usize)?,
            None => self.graph.clone(),
        };
        let (r, objective) = (&self.router, objective(&self.router));
        let noise = noise(r);
        let noisy = match noise {
            Some(noise) => with_router_noise(&plain, noise)?,
            None => plain.clone(),
        };
        let mut graph = noisy.clone();
        let drops = self.dropout != ExpertDropout::default();
        if drops {
            graph = with_expert_dropout(&graph, self.dropout)?;
        }
        let capacity = capacity(r);
        if let Some(capacity) = capacity {
            graph = with_capacity(&graph, capacity)?;
        }
        let evaluation = if r.noise_in_eval { noisy } else { plain };
        let other = drops || capacity.is_some() || (noise.is_some() && !r.noise_in_eval);
        let whole = |graph, objective: &Objective| -> Result<Graph> {
            let mut graph = language_model(graph, objective)?;
            // What no one looks at needs no memory until the end, and no way back from a device.
            graph.outputs.retain(|(name, _)| name != "logits");
            Ok(graph)
        };
        let evaluation = other.then(|| whole(evaluation, &evaluated(objective, r))).transpose()?;
        let graph = whole(graph, &objective)?;
        let mut weights = self.weights.clone();
        for added in &graph.weights[weights.len()..] {
            let numbers = vec![0.0; added.shape.iter().product()];
            weights.push(Tensor::from_f32(added.shape.clone(), numbers)?);
        }
        Ok(Prepared { program: Program::new(graph, weights)?, evaluation })
    }

    /// Lets go of the values of weights with these names.
    pub fn release(&mut self, names: &HashSet<String>) {
        let all = self.graph.weights.iter().zip(&mut self.weights);
        all.filter(|(w, _)| names.contains(&w.name)).for_each(|(_, t)| *t = t.elsewhere());
    }

    /// The routers that [`RouterConfig::bias_update`] is about.
    ///
    /// # Errors
    /// [`Error::Invalid`] where one has no selection bias, or none is there.
    pub fn biased(&self) -> Result<Vec<Biased>> {
        let one = |(i, r): (usize, &crate::graph::RouterNode)| {
            let layer = r.layer.unwrap_or(i as u32);
            let bias = r.router.selection_bias.ok_or_else(|| {
                let what = r.router.variant();
                Error::Invalid(format!(
                    "router: bias_update needs routers with a selection bias, as deepseek_v3 has them; that of layer {layer} has \
                     none ({what})"
                ))
            })?;
            Ok(Biased { layer, weight: self.graph.weight(bias).name.clone() })
        };
        let all = routers(&self.graph);
        if all.is_empty() {
            return Err(Error::Invalid("router: bias_update for a model that has no routers".into()));
        }
        all.iter().enumerate().map(one).collect()
    }
}

/// Random numbers of routers over groups begin at this stream, behind those of adapters.
const GROUPS_STREAM: u32 = 1 << 21;

/// The standard deviation with which a router over groups begins.
const GROUPS_STD: f32 = 0.02;

/// A matrix to begin with: were it zero, the first groups would be chosen by all tokens.
fn random(shape: Vec<usize>, seed: u64, stream: u32) -> Result<Tensor> {
    let n = shape.iter().product::<usize>();
    let numbers = (0..n).map(|i| normal(short(seed), stream, i as u32) * GROUPS_STD);
    Tensor::from_f32(shape, numbers.collect())
}

/// Says of routers that their weights do not depend on their logits: what the experts give has no gradient for them.
fn warn_of_equal_weights(graph: &Graph) {
    let all = routers(graph);
    if let Some(r) = all.iter().find(|r| r.router.weighs_alike()) {
        tracing::warn!(
            "one expert a token has the weight 1, whatever its router says ({}): the router learns from losses of its own ([router] \
             aux, z) alone; a softmax over all experts that is not divided, as in qwen2_moe or router = \"softmax_top_k\" of \
             mini_mixtral, gives it a gradient",
            r.router.variant()
        );
    }
    if let Some(r) = all.iter().find(|r| r.groups_used == Some(1) || r.groups_used == Some(r.router.used)) {
        let which = if r.groups_used == Some(1) { "group" } else { "expert in a group" };
        tracing::warn!(
            "one {which} has the weight 1, whatever its router says: that router learns nothing from what the experts give"
        );
    }
}

/// The model's program with logits as its only result.
pub(super) fn without_extras(definition: &Definition) -> Result<Program> {
    let mut graph = (*definition.program.graph).clone();
    graph.outputs.retain(|(name, _)| name == "logits");
    Program::new(graph, definition.program.weights.to_vec())
}

fn noise(r: &RouterConfig) -> Option<RouterNoise> {
    let (std, learned) = match r.noise {
        NoiseName::None => (0.0, false),
        NoiseName::Normal => (r.noise_std, false),
        NoiseName::Learned => (r.noise_std, true),
    };
    (std > 0.0 || r.jitter > 0.0).then_some(RouterNoise {
        std,
        learned,
        jitter: r.jitter,
        jitter_experts: r.jitter_experts,
    })
}

fn groups(r: &RouterConfig) -> Option<RouterGroups> {
    Some(RouterGroups { groups: r.groups?, used: r.groups_used.unwrap_or(1) })
}

fn capacity(r: &RouterConfig) -> Option<RouterCapacity> {
    Some(RouterCapacity {
        factor: r.capacity_factor?,
        least: r.min_capacity,
        keep: match r.drop {
            DropName::Position => Keep::Position,
            DropName::Probability => Keep::Largest,
        },
        random_second: r.second == SecondName::Random,
        over_kept: r.renormalise_kept,
    })
}

/// The loss that the configuration asks for.
pub(super) fn objective(r: &RouterConfig) -> Objective {
    Objective {
        balance: r.aux,
        balance_weight: r.aux_weight,
        z: r.z,
        z_weight: r.z_weight,
        variance: match r.cv2 {
            VarianceName::Population => Variance::Population,
            VarianceName::Sample => Variance::Sample,
        },
    }
}

/// The same in evaluation, where there may be no noise.
fn evaluated(o: Objective, r: &RouterConfig) -> Objective {
    if r.noise_in_eval {
        return o;
    }
    Objective { balance: o.balance.and_then(|l| RouterLoss::named(l.term, l.without_noise)), ..o }
}
