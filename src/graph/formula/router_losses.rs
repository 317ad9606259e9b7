//! Losses of routers by the names that configurations have for them. A further loss is a function and a row of [`ROUTER_LOSSES`]: the
//! configuration, its errors and the README's table follow from it.

use super::{
    Builder, Counted, Variance, coefficient_of_variation, gshard_balance, layers_balance, log_sum_exp_z,
    mean_of_layers_balance, mean_square_z, smooth_load, sum_of_rows, switch_balance, usage_balance,
};
use crate::{
    error::{Error, Result},
    graph::RouterNode,
    ir::{Arithmetic, Graph, Math, Node, Op, ValueId},
};

/// What a loss of routers is made of.
#[derive(Clone, Copy, Debug)]
pub struct Routed<'a> {
    /// The routers, one a layer.
    pub routers: &'a [RouterNode],
    /// The rows that count.
    pub rows: Option<Counted>,
    /// What variances are divided by.
    pub variance: Variance,
}

/// Which term of a run's loss a loss of routers can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// What keeps the experts' loads even.
    Balance,
    /// What keeps logits small.
    Z,
}

/// What routers must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Chosen experts with weights: every router has them.
    Weights,
    /// Logits of all experts that one softmax makes probabilities of.
    Logits,
    /// The same with [noise](crate::graph::RouterNoise) on them.
    Noise,
}

/// A loss of routers.
#[derive(Clone, Copy, Debug)]
pub struct RouterLoss {
    /// Which term it can be.
    pub term: Term,
    /// Its name in a configuration.
    pub name: &'static str,
    /// In words.
    pub what: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// Keys of a configuration that ask for it, as TOML.
    pub keys: &'static [&'static str],
    /// What routers must have.
    pub needs: Needs,
    /// The loss that is left of it where there is no noise, as in evaluation: itself, or one that needs none.
    pub without_noise: &'static str,
    /// The functions that build it.
    pub call: &'static str,
    /// Adds it to a graph: a value `[1, 1]`, without weight.
    pub build: fn(&mut Builder, &Routed<'_>) -> Result<ValueId>,
}

impl PartialEq for RouterLoss {
    fn eq(&self, other: &Self) -> bool {
        (self.term, self.name) == (other.term, other.name)
    }
}

impl RouterLoss {
    /// The loss with this name.
    pub fn named(term: Term, name: &str) -> Option<&'static RouterLoss> {
        ROUTER_LOSSES.iter().find(|l| l.term == term && l.name == name)
    }
}

/// All losses of routers.
pub static ROUTER_LOSSES: &[RouterLoss] = &[
    RouterLoss {
        term: Term::Balance,
        name: "switch",
        what: "balance of the two best experts, counted apart (optimum 2), of every layer, averaged",
        source: "Switch Transformer's loss as often copied",
        keys: &["router.aux = \"switch\""],
        needs: Needs::Logits,
        without_noise: "switch",
        call: "`switch_balance`",
        build: |b, r| r.averaged(b, |b, n| switch_balance(b, n.logits, r.rows)),
    },
    RouterLoss {
        term: Term::Balance,
        name: "hf",
        what: "balance over all layers together, without padding",
        source: "Hugging Face transformers",
        keys: &["router.aux = \"hf\""],
        needs: Needs::Logits,
        without_noise: "hf",
        call: "`layers_balance`",
        build: |b, r| layers_balance(b, &r.logits(), r.used(), r.rows),
    },
    RouterLoss {
        term: Term::Balance,
        name: "mean_of_layers",
        what: "balance of each layer, averaged",
        source: "Fedus et al. 2021; MegaBlocks",
        keys: &["router.aux = \"mean_of_layers\""],
        needs: Needs::Logits,
        without_noise: "mean_of_layers",
        call: "`mean_of_layers_balance`",
        build: |b, r| mean_of_layers_balance(b, &r.logits(), r.used(), r.rows),
    },
    RouterLoss {
        term: Term::Balance,
        name: "usage",
        what: "usage of experts (on a softmax over all, as with every expert used, constant and without gradient)",
        source: "notes on mixtures of experts",
        keys: &["router.aux = \"usage\""],
        needs: Needs::Weights,
        without_noise: "usage",
        call: "`usage_balance`",
        build: |b, r| {
            r.averaged(b, |b, n| {
                let gates = gates(b, n)?;
                usage_balance(b, gates, r.rows)
            })
        },
    },
    RouterLoss {
        term: Term::Balance,
        name: "gshard",
        what: "first choices against mean probabilities, times the number of experts",
        source: "DeepSpeed",
        keys: &["router.aux = \"gshard\""],
        needs: Needs::Logits,
        without_noise: "gshard",
        call: "`gshard_balance`",
        build: |b, r| r.averaged(b, |b, n| first_choices(b, n, r.rows, n.router.experts as f64)),
    },
    RouterLoss {
        term: Term::Balance,
        name: "gshard_paper",
        what: "the same, divided by the number of experts",
        source: "GShard (Lepikhin et al. 2020)",
        keys: &["router.aux = \"gshard_paper\""],
        needs: Needs::Logits,
        without_noise: "gshard_paper",
        call: "`gshard_balance`",
        build: |b, r| r.averaged(b, |b, n| first_choices(b, n, r.rows, 1.0 / n.router.experts as f64)),
    },
    RouterLoss {
        term: Term::Balance,
        name: "importance",
        what: "importance, squared coefficient of variation of a population or a sample",
        source: "Shazeer et al. 2017",
        keys: &["router.aux = \"importance\"", "router.cv2 = \"population\""],
        needs: Needs::Weights,
        without_noise: "importance",
        call: "`coefficient_of_variation`",
        build: |b, r| r.averaged(b, |b, n| importance(b, n, r)),
    },
    RouterLoss {
        term: Term::Balance,
        name: "importance_load",
        what: "importance and load, squared coefficient of variation of a population or a sample",
        source: "Shazeer et al. 2017",
        keys: &["router.noise = \"learned\"", "router.aux = \"importance_load\"", "router.cv2 = \"sample\""],
        needs: Needs::Noise,
        without_noise: "importance",
        call: "`coefficient_of_variation`, `smooth_load`",
        build: |b, r| {
            r.averaged(b, |b, n| {
                let (importance, load) = (importance(b, n, r)?, load(b, n, r)?);
                b.plus(importance, load)
            })
        },
    },
    RouterLoss {
        term: Term::Z,
        name: "logsumexp",
        what: "z-loss: square of the logarithm of the sum",
        source: "ST-MoE (Zoph et al. 2022)",
        keys: &["router.z = \"logsumexp\""],
        needs: Needs::Logits,
        without_noise: "logsumexp",
        call: "`log_sum_exp_z`",
        build: |b, r| log_sum_exp_z(b, &r.logits(), r.rows),
    },
    RouterLoss {
        term: Term::Z,
        name: "mean_square",
        what: "mean square of the logits, of every layer, averaged",
        source: "as copied with Switch Transformer's loss",
        keys: &["router.z = \"mean_square\""],
        needs: Needs::Logits,
        without_noise: "mean_square",
        call: "`mean_square_z`",
        build: |b, r| r.averaged(b, |b, n| mean_square_z(b, n.logits, r.rows)),
    },
];

impl Routed<'_> {
    fn logits(&self) -> Vec<ValueId> {
        self.routers.iter().map(|r| r.logits).collect()
    }

    /// Experts that a token uses.
    fn used(&self) -> usize {
        self.routers.first().map_or(1, |r| r.router.used)
    }

    /// The mean over layers of a loss of each.
    fn averaged(&self, b: &mut Builder, one: impl Fn(&mut Builder, &RouterNode) -> Result<ValueId>) -> Result<ValueId> {
        let mut terms = vec![];
        for r in self.routers {
            terms.push((1.0 / self.routers.len() as f64, one(b, r)?));
        }
        b.weighted_sum(&terms)
    }
}

fn first_choices(b: &mut Builder, n: &RouterNode, rows: Option<Counted>, factor: f64) -> Result<ValueId> {
    let probs = b.softmax(n.logits)?;
    gshard_balance(b, probs, factor, rows)
}

/// What is added to the square of a mean that is divided by, as copies of the loss of importance have it.
const LEAST: f64 = 1e-10;

/// The sparse gates `[T, E]` of a router.
fn gates(b: &mut Builder, n: &RouterNode) -> Result<ValueId> {
    b.math(Math::ScatterSlots { experts: n.router.experts }, &[n.weights, n.ids])
}

fn importance(b: &mut Builder, n: &RouterNode, r: &Routed<'_>) -> Result<ValueId> {
    let gates = gates(b, n)?;
    let sums = sum_of_rows(b, gates, r.rows)?;
    coefficient_of_variation(b, sums, r.variance, LEAST)
}

fn load(b: &mut Builder, n: &RouterNode, r: &Routed<'_>) -> Result<ValueId> {
    let (clean, std) = noise_of(b.graph(), n.logits)?;
    let load = smooth_load(b, [clean, n.logits, std], n.router.used, r.rows)?;
    coefficient_of_variation(b, load, r.variance, LEAST)
}

/// The clean logits and the noise's deviation, of logits that [`crate::graph::with_router_noise`] made.
fn noise_of(graph: &Graph, logits: ValueId) -> Result<(ValueId, ValueId)> {
    let made = |v: ValueId, op: Arithmetic| -> Option<&Node> {
        graph.nodes.iter().find(|n| n.outputs.contains(&v) && n.op == Op::Math(Math::Binary(op)))
    };
    let parts = made(logits, Arithmetic::Add).and_then(|sum| {
        let product = made(sum.inputs[1], Arithmetic::Mul)?;
        let drawn = graph.nodes.iter().find(|n| n.outputs.contains(&product.inputs[0]))?;
        matches!(drawn.op, Op::Math(Math::Noise { .. })).then_some((sum.inputs[0], product.inputs[1]))
    });
    parts.ok_or_else(|| Error::Invalid("a loss of load needs noise on the routers' logits".into()))
}
