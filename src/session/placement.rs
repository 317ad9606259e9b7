//! Which routed experts the processor computes while a GPU does the rest of a model.

use crate::{
    backend::Program,
    error::{Error, Result},
    graph,
    ir::{Graph, Op, Router},
    routing::{Policy, Slots},
};
use regex::Regex;
use std::{collections::BTreeSet, str::FromStr};

/// Where the routed experts of a model on a GPU are computed. Attention, routers, shared experts, dense layers, keys and values, and
/// the output stay on the GPU. A model on the processor is there as a whole, whatever this says.
#[derive(Clone, Debug, Default)]
pub enum ExpertPlacement {
    /// On the GPU, with the rest.
    #[default]
    Gpu,
    /// By the processor, those of all layers.
    Cpu,
    /// By the processor, those of the first so many layers; dense layers count.
    FirstLayers(usize),
    /// On the GPU those of the last so many layers, by the processor those before.
    LastOnGpu(usize),
    /// As these rules say; a later one goes before an earlier one.
    Rules(Vec<TensorRule>),
    /// By the processor, those of as few layers, the first ones, as it takes for the model and its sessions to fit the GPU's memory.
    Fit(MemoryBudget),
    /// On the GPU, from slots of its memory that hold those of each layer that the last tokens used. All of them are kept in memory of the
    /// host, from where kernels copy to slots what a token needs and does not find; prompts read them there, and steps of several sequences
    /// that can choose more experts than there are slots. The GPU must be able to: others refuse. Slots are a session's or batch's own.
    Slots(SlotOptions),
}

/// Slots of a GPU's memory for experts.
#[derive(Clone, Copy, Debug)]
pub struct SlotOptions {
    /// Slots of each layer; `None`: as many as the budget has room for, or no slots and all experts in the GPU's memory where these fit.
    /// With fewer than a token uses experts nothing would be found again, and all experts are read from memory of the host.
    pub slots: Option<Slots>,
    /// Whose slot a missing expert takes. [`Policy::Belady`] looks ahead, which no device can.
    pub policy: Policy,
    /// What the model and its sessions may take of the GPU's memory; `None`: whatever they do.
    pub budget: Option<MemoryBudget>,
}

/// Memory of a GPU, and what is to fit in it beside the weights.
#[derive(Clone, Copy, Debug)]
pub struct MemoryBudget {
    /// Bytes; `None`: what the driver says is free. A device that shares the processor's memory then gets all experts: there is nothing
    /// to gain from a second place in the same memory.
    pub vram: Option<u64>,
    /// The sessions that will run.
    pub session: super::SessionOptions,
    /// How many of them.
    pub sessions: usize,
}

/// A regular expression of names of weights, as GGUF has them (`blk.3.ffn_gate_exps.weight`), and where those go that it finds.
#[derive(Clone, Debug)]
pub struct TensorRule {
    pattern: Regex,
    cpu: bool,
}

impl FromStr for TensorRule {
    type Err = Error;

    /// `PATTERN=cpu` or `PATTERN=gpu`.
    fn from_str(text: &str) -> Result<TensorRule> {
        let bad = |what: String| Error::Invalid(format!("{text:?}: {what}"));
        let (pattern, place) =
            text.rsplit_once('=').ok_or_else(|| bad("a rule is PATTERN=cpu or PATTERN=gpu".into()))?;
        let cpu = match place.to_ascii_lowercase().as_str() {
            "cpu" => true,
            "gpu" => false,
            other => return Err(bad(format!("{other:?} is no place: a rule is PATTERN=cpu or PATTERN=gpu"))),
        };
        let pattern = Regex::new(pattern).map_err(|e| bad(format!("no regular expression: {e}")))?;
        Ok(TensorRule { pattern, cpu })
    }
}

/// What a placement says of a model, whatever the device is.
#[cfg_attr(
    not(feature = "gpu"),
    expect(dead_code, reason = "what it says wrongly is told without a GPU, too; the rest is for one")
)]
pub(crate) enum Wanted<'a> {
    /// The processor computes the experts of these layers.
    Layers(BTreeSet<u32>),
    /// Those of as many as do not fit: it depends on the device.
    Fit(&'a MemoryBudget),
    /// None: the device has slots for them.
    Slots(&'a SlotOptions),
}

impl ExpertPlacement {
    /// The layers whose experts the processor computes.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a model without routed experts, more layers than there are, a rule that finds nothing, finds what is no
    /// routed expert's, or a part of a layer's experts.
    pub(crate) fn wanted(&self, program: &Program) -> Result<Wanted<'_>> {
        let graph = &program.graph;
        let with_experts: BTreeSet<u32> = graph::expert_weights(graph).into_keys().collect();
        let total = graph.nodes.iter().filter_map(|n| n.layer).max().map_or(0, |l| l as usize + 1);
        let moved = |layers: BTreeSet<u32>| match with_experts.is_empty() {
            true => Err(Error::Invalid("the model has no routed experts that the processor could compute".into())),
            false => Ok(Wanted::Layers(layers)),
        };
        let first = |n: usize| with_experts.iter().copied().filter(|l| (*l as usize) < n).collect();
        match self {
            ExpertPlacement::Gpu => Ok(Wanted::Layers(BTreeSet::new())),
            ExpertPlacement::Cpu => moved(with_experts.clone()),
            ExpertPlacement::FirstLayers(n) if *n > total => {
                Err(Error::Invalid(format!("the experts of the first {n} layers: the model has {total} layers")))
            }
            ExpertPlacement::FirstLayers(n) => moved(first(*n)),
            // More than there are means all of them, in llama.cpp's words too.
            ExpertPlacement::LastOnGpu(n) if *n >= total => Ok(Wanted::Layers(BTreeSet::new())),
            ExpertPlacement::LastOnGpu(n) if with_experts.is_empty() => Err(Error::Invalid(format!(
                "{n} of {total} layers on the GPU: the model has no routed experts, and only these can be left to the processor; it runs on \
                 the GPU as a whole, or on the processor"
            ))),
            ExpertPlacement::LastOnGpu(n) => moved(first(total - n)),
            ExpertPlacement::Rules(rules) => by_rules(program, rules).map(Wanted::Layers),
            ExpertPlacement::Fit(budget) => Ok(Wanted::Fit(budget)),
            ExpertPlacement::Slots(o) => {
                o.number(graph)?;
                o.eviction().map(|_| Wanted::Slots(o))
            }
        }
    }
}

/// The routers of a graph.
pub(super) fn routers(graph: &Graph) -> impl Iterator<Item = &Router> {
    graph.nodes.iter().filter_map(|n| match &n.op {
        Op::Router(r) | Op::NormRouter { router: r, .. } => Some(r),
        _ => None,
    })
}

impl SlotOptions {
    /// The slots of each layer; `None` where the budget says.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a model without routed experts, more slots than a layer has experts, or neither a number nor a budget;
    /// [`Error::Unsupported`] for a percentage of layers with different numbers of experts.
    pub(crate) fn number(&self, graph: &Graph) -> Result<Option<usize>> {
        let experts: BTreeSet<usize> = routers(graph).map(|r| r.experts).collect();
        if experts.is_empty() {
            return Err(Error::Invalid("the model has no routed experts that could have slots".into()));
        }
        let Some(slots) = self.slots else {
            return match self.budget {
                Some(_) => Ok(None),
                None => {
                    Err(Error::Invalid("say how many slots experts have, or how much memory there is for them".into()))
                }
            };
        };
        let numbers: BTreeSet<usize> = experts.iter().map(|e| slots.of(*e)).collect::<Result<_>>()?;
        match (numbers.first(), numbers.len()) {
            (Some(n), 1) => Ok(Some(*n)),
            _ => Err(Error::Unsupported(format!(
                "the layers have different numbers of experts ({experts:?}): say how many slots each has, not a percentage"
            ))),
        }
    }

    /// The policy, as devices know it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for one that looks ahead.
    pub(crate) fn eviction(&self) -> Result<graph::Eviction> {
        match self.policy {
            Policy::Lru => Ok(graph::Eviction::Lru),
            Policy::LfuAged => Ok(graph::Eviction::LfuAged),
            Policy::PinnedLru => Ok(graph::Eviction::PinnedLru),
            Policy::Belady => {
                Err(Error::Invalid("belady looks ahead, which no device can: lru, lfu-aged and pinned+lru work".into()))
            }
        }
    }
}

fn by_rules(program: &Program, rules: &[TensorRule]) -> Result<BTreeSet<u32>> {
    let graph = &program.graph;
    let experts = graph::expert_weights(graph);
    let is_expert = |w: usize| experts.values().flatten().any(|e| e.0 as usize == w);
    for rule in rules {
        let found = || graph.weights.iter().enumerate().filter(|(_, d)| rule.pattern.is_match(&d.name));
        let pattern = rule.pattern.as_str();
        if found().next().is_none() {
            let example = experts.values().flatten().next().map_or("", |w| &graph.weight(*w).name);
            return Err(Error::Invalid(format!(
                "{pattern:?} finds no weight; names are as in {example:?}, and `.` stands for any character"
            )));
        }
        if let Some((_, d)) = found().find(|(i, _)| rule.cpu && !is_expert(*i)) {
            return Err(Error::Invalid(format!(
                "{pattern:?} finds {}, and only the weights of routed experts can be left to the processor",
                d.name
            )));
        }
    }
    let place = |name: &str| rules.iter().rev().find(|r| r.pattern.is_match(name)).is_some_and(|r| r.cpu);
    let mut layers = BTreeSet::new();
    for (layer, weights) in &experts {
        let on_cpu = weights.iter().filter(|w| place(&graph.weight(**w).name)).count();
        if on_cpu == weights.len() {
            layers.insert(*layer);
        } else if on_cpu > 0 {
            let names = |cpu: bool| {
                let mut own = weights.iter().map(|w| graph.weight(*w).name.as_str());
                own.find(|n| place(n) == cpu).unwrap_or_default()
            };
            return Err(Error::Invalid(format!(
                "the experts of a layer are computed in one place: {} would be on the processor, {} on the GPU",
                names(true),
                names(false)
            )));
        }
    }
    Ok(layers)
}
