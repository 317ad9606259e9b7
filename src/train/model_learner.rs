//! A model of the engine as a [`Learner`]: its graph with a loss, differentiated, on a backend.

use super::{
    adapters::new_adapters,
    config::{AuxName, BackendConfig, TrainConfig, ZName},
    forecast::Forecast,
    learner::{ExpertLoad, Learner, LossTerm, MicroBatch, Outcome, Parameter, Slot, Visit},
};
use crate::{
    backend::{
        self,
        training::{Feed, Named, Training},
    },
    error::{Error, Result},
    file::Tensor,
    graph::{
        LowRank, Program, TrainProgram, for_training,
        formula::{Balance, Objective, SmallLogits, language_model},
        with_low_rank,
    },
    ir::WeightId,
    model::Definition,
};
use std::collections::{BTreeMap, HashMap, HashSet};

/// See the module's description.
pub struct ModelLearner {
    /// Forward with a loss.
    program: Program,
    parameters: Vec<Parameter>,
    /// The adapters that are trained, where they are.
    adapters: Vec<LowRank>,
    /// Names of the parameters that are trained.
    chosen: HashSet<String>,
    training: Option<Box<dyn Training>>,
    /// For each parameter of the training its place among `parameters`.
    places: Vec<usize>,
    /// Tokens of each expert by layer since the last step.
    loads: BTreeMap<u32, Vec<bool>>,
    weights: HashMap<&'static str, f64>,
    vocab: usize,
    context: usize,
    backend: BackendConfig,
    threads: usize,
}

impl ModelLearner {
    /// A learner of a model as the configuration says: of all its weights, or of adapters.
    ///
    /// # Errors
    /// [`Error::Unsupported`] that names an operation or a form of attention that cannot be trained; [`Error::Invalid`] for a
    /// loss of routers in a model without, and for a target of adapters that matches nothing.
    pub fn new(definition: &Definition, config: &TrainConfig) -> Result<ModelLearner> {
        let mut graph = (*definition.program.graph).clone();
        graph.outputs.retain(|(name, _)| name == "logits");
        let mut base = Program::new(graph, definition.program.weights.to_vec())?;
        let adapters = match &config.lora {
            Some(lora) => new_adapters(&base, lora, config.seed)?,
            None => vec![],
        };
        base = with_low_rank(&base, &adapters)?;
        let objective = objective(config);
        let graph = language_model(for_training(&base.graph, config.sequence_len)?, &objective)?;
        let program = Program::new(graph, base.weights.to_vec())?;
        let read: Vec<bool> = {
            let mut read = vec![false; program.graph.weights.len()];
            let of = program.graph.nodes.iter().flat_map(|n| n.op.weights());
            of.for_each(|w: WeightId| read[w.0 as usize] = true);
            read
        };
        let declared = program.graph.weights.iter().zip(read).filter(|(_, read)| *read).map(|(w, _)| w);
        let trained = declared.filter(|w| config.lora.is_none() || w.name.contains(".lora_"));
        let parameter = |name: &str, shape: &[usize]| match name.contains("_exps.") {
            true => Parameter::of_experts(name, shape),
            false => Parameter::new(name, shape),
        };
        let parameters = trained.map(|w| parameter(&w.name, &w.shape)).collect();
        let vocab = program.graph.weights.first().and_then(|w| w.shape.first().copied()).unwrap_or(0);
        let weights = HashMap::from([("balance", objective.balance_weight), ("z", objective.z_weight)]);
        Ok(ModelLearner {
            program,
            parameters,
            adapters,
            chosen: HashSet::new(),
            training: None,
            places: vec![],
            loads: BTreeMap::new(),
            weights,
            vocab,
            context: definition.decoder.context,
            backend: config.backend,
            threads: config.threads,
        })
    }

    /// Where gradients are computed.
    pub fn describe(&self) -> String {
        self.training.as_ref().map_or_else(String::new, |t| t.describe())
    }

    /// Tokens of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.vocab
    }

    /// What a micro-batch of so many rows takes, beside an optimizer's state of so many bytes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an operation without a gradient.
    pub fn forecast(&self, rows: usize, optimizer: u64) -> Result<Forecast> {
        let program = self.differentiated(&self.chosen)?;
        Ok(Forecast::new(&program, rows, optimizer))
    }

    fn differentiated(&self, chosen: &HashSet<String>) -> Result<TrainProgram> {
        TrainProgram::new(&self.program, &|name| chosen.contains(name), &[])
    }

    fn training(&mut self) -> Result<&mut Box<dyn Training>> {
        self.training.as_mut().ok_or_else(|| Error::Invalid("nothing was chosen to be trained yet".into()))
    }

    /// The weights as they stand: every parameter that is trained, by name.
    ///
    /// # Errors
    /// What the backend says.
    pub fn trained(&mut self) -> Result<HashMap<String, Tensor>> {
        let parameters = self.parameters.clone();
        let mut all = HashMap::new();
        self.each(&mut |i, slot| {
            let p = &parameters[i];
            all.insert(p.name.clone(), Tensor::from_f32(p.shape.clone(), slot.weights.to_vec())?);
            Ok(())
        })?;
        Ok(all)
    }

    /// The adapters as they stand, without their factor; empty where whole weights are trained.
    ///
    /// # Errors
    /// What the backend says.
    pub fn trained_adapters(&mut self) -> Result<Vec<LowRank>> {
        let trained = self.trained()?;
        let find = |name: String, first: &Tensor| {
            let found = trained.iter().find(|(n, _)| **n == name || n.starts_with(&format!("{name}.")));
            found.map_or_else(|| first.clone(), |(_, t)| t.clone())
        };
        let one = |p: &LowRank| LowRank {
            weight: p.weight.clone(),
            a: find(format!("{}.lora_a", p.weight), &p.a),
            b: find(format!("{}.lora_b", p.weight), &p.b),
            scale: 1.0,
        };
        Ok(self.adapters.iter().map(one).collect())
    }

    fn feed(&self, b: &MicroBatch) -> Feed {
        let mut feed = Feed {
            rows: b.rows(),
            tokens: b.ids.clone(),
            seed: b.seed,
            step: b.step as u32,
            micro: b.number,
            ..Feed::default()
        };
        feed.set_ids("targets", b.targets.clone());
        feed.set_ids("starts", b.starts.clone());
        feed.set("weights", b.weights.iter().map(|w| f64::from(*w)).collect());
        feed.set("normaliser", vec![b.scale]);
        feed.set("share", vec![b.share]);
        feed
    }

    /// The results of a micro-batch in the trainer's words.
    fn outcome(&self, results: &[Named], share: f64) -> Outcome {
        let mut outcome = Outcome::default();
        for r in results {
            let value = r.values.first().copied().unwrap_or(f64::NAN);
            match r.name.as_str() {
                "loss.cross_entropy" => {
                    outcome.terms.insert(0, LossTerm { name: "cross_entropy", value, weight: 1.0 });
                }
                "loss.balance" => outcome.terms.push(self.term("balance", value * share)),
                "loss.z" => outcome.terms.push(self.term("z", value * share)),
                name => {
                    let layer = name.strip_prefix("tokens_per_expert_").and_then(|l| l.parse::<u32>().ok());
                    outcome.loads.extend(layer.map(|layer| ExpertLoad {
                        layer,
                        tokens: r.values.iter().map(|n| *n as u64).collect(),
                        dropped: 0,
                    }));
                }
            }
        }
        outcome
    }

    fn term(&self, name: &'static str, value: f64) -> LossTerm {
        LossTerm { name, value, weight: self.weights.get(name).copied().unwrap_or(1.0) }
    }
}

/// The loss that the configuration asks for.
fn objective(config: &TrainConfig) -> Objective {
    let r = &config.router;
    Objective {
        balance: match r.aux {
            AuxName::None => Balance::None,
            AuxName::Switch => Balance::Switch,
            AuxName::Hf => Balance::Layers,
            AuxName::MeanOfLayers => Balance::MeanOfLayers,
            AuxName::Usage => Balance::Usage,
        },
        balance_weight: r.aux_weight,
        z: match r.z {
            ZName::None => SmallLogits::None,
            ZName::Logsumexp => SmallLogits::LogSumExp,
            ZName::MeanSquare => SmallLogits::MeanSquare,
        },
        z_weight: r.z_weight,
    }
}

/// The layer of a parameter.
fn layer(name: &str) -> Option<u32> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

impl Learner for ModelLearner {
    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    fn vocab(&self) -> usize {
        self.vocab
    }

    fn context(&self) -> usize {
        self.context
    }

    fn choose(&mut self, trained: &[bool]) -> Result<()> {
        let chosen = self.parameters.iter().zip(trained).filter(|(_, t)| **t);
        self.chosen = chosen.map(|(p, _)| p.name.clone()).collect();
        let program = self.differentiated(&self.chosen)?;
        let names: HashMap<&str, usize> =
            self.parameters.iter().enumerate().map(|(i, p)| (p.name.as_str(), i)).collect();
        let training = match self.backend {
            BackendConfig::Reference => backend::reference::train(program, Default::default())?,
            BackendConfig::Cpu => {
                let threads = (self.threads > 0).then_some(self.threads);
                backend::cpu::train(program, &backend::cpu::Options { threads, ..Default::default() })?
            }
        };
        self.places = training.parameters().iter().map(|p| names.get(p.name.as_str()).copied().unwrap_or(0)).collect();
        self.training = Some(training);
        Ok(())
    }

    fn accumulate(&mut self, batch: &MicroBatch) -> Result<Outcome> {
        if batch.top_k.is_some() {
            return Err(Error::Unsupported(
                "top_k_schedule for a model whose router has a fixed number of experts".into(),
            ));
        }
        let feed = self.feed(batch);
        let results = self.training()?.micro(&feed)?;
        let outcome = self.outcome(&results, batch.share);
        for l in &outcome.loads {
            let used = self.loads.entry(l.layer).or_insert_with(|| vec![false; l.tokens.len()]);
            used.iter_mut().zip(&l.tokens).for_each(|(u, n)| *u |= *n > 0);
        }
        Ok(outcome)
    }

    fn evaluate(&mut self, batch: &MicroBatch) -> Result<Outcome> {
        let feed = self.feed(batch);
        let results = self.training()?.evaluate(&feed)?;
        Ok(self.outcome(&results, batch.share))
    }

    fn each(&mut self, visit: Visit<'_>) -> Result<()> {
        let (places, loads, parameters) = (&self.places, &self.loads, &self.parameters);
        let Some(training) = self.training.as_mut() else {
            return Err(Error::Invalid("nothing was chosen to be trained yet".into()));
        };
        training.each(&mut |slot| {
            let i = places[slot.index];
            let p = &parameters[i];
            let used = layer(&p.name).and_then(|l| loads.get(&l)).filter(|u| p.slices > 1 && u.len() == p.slices);
            visit(i, Slot { weights: slot.weight, gradients: slot.gradient, used: used.map_or(&[][..], |u| &u[..]) })
        })
    }

    fn clear(&mut self) -> Result<()> {
        self.loads.values_mut().for_each(|u| u.fill(false));
        self.training()?.clear()
    }
}
