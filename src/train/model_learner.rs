//! A model of the engine as a [`Learner`]: its graph with a loss, differentiated, on a backend.

mod device;
mod needs;
mod origin;

use super::{
    adapters::new_adapters,
    config::{BackendConfig, RecomputeName, TrainConfig},
    graphs::{Biased, Graphs, Prepared, objective, without_extras},
    learner::{DeviceLearner, ExpertLoad, Learner, LossTerm, MicroBatch, Outcome, Slot, Visit},
    parameter::{Loads, Parameter},
};
use crate::{
    backend::{
        self,
        training::{Feed, Named, ParameterStep, Training},
    },
    error::{Error, Result},
    file::{Checkpoint, Tensor},
    graph::{
        COUNTED, LowRank, Recompute, TrainProgram,
        formula::{DROPPED, TOKENS_PER_EXPERT, bias_update},
    },
    ir::WeightId,
    model::{self, Definition},
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// See the module's description.
pub struct ModelLearner {
    graphs: Graphs,
    /// The graphs that are trained now, and how many experts a token uses in them, where a schedule says so.
    prepared: Prepared,
    used: Option<u32>,
    recompute: Recompute,
    parameters: Vec<Parameter>,
    /// The adapters that are trained, where they are.
    adapters: Vec<LowRank>,
    /// Names of the parameters that are trained.
    chosen: HashSet<String>,
    training: Option<Box<dyn Training>>,
    /// For each parameter of the training its place among `parameters`.
    places: Vec<usize>,
    /// Tokens of each expert by layer since the last step.
    loads: Loads,
    /// For each parameter which of its slices a token used since the last step; empty where all were.
    in_use: Vec<Vec<bool>>,
    /// How the steps look that the backend's device takes, once it has moments.
    begun: Vec<ParameterStep>,
    /// Routers whose selection biases are updated, and by how much.
    biased: Vec<Biased>,
    bias_update: f64,
    weights: HashMap<&'static str, f64>,
    vocab: usize,
    context: usize,
    /// Rows of a micro-batch, of training and of evaluation (0 where there is none).
    rows: [usize; 2],
    backend: BackendConfig,
    #[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "this build has no GPU backend"))]
    device: Option<String>,
    /// The device, once it is opened.
    #[cfg(feature = "gpu")]
    gpu: Option<backend::wgpu::Gpu>,
    threads: usize,
    /// The file that the model is of, under GGUF names, where it is of one.
    base: Option<Checkpoint>,
}

impl ModelLearner {
    /// A learner of the model in a file, under GGUF names; from it what is learnt can be written.
    ///
    /// # Errors
    /// As [`ModelLearner::new`]; errors of building the model.
    pub fn of(base: Checkpoint, config: &TrainConfig) -> Result<ModelLearner> {
        let learner = ModelLearner::new(&model::build(&base, &model::Options::default())?, config)?;
        Ok(ModelLearner { base: Some(base), ..learner })
    }

    /// The file that the model is of, as it was before.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it is of none.
    pub fn base(&self) -> Result<&Checkpoint> {
        self.base.as_ref().ok_or_else(|| Error::Invalid("the model is of no file that could be written anew".into()))
    }

    /// A learner of a model as the configuration says: of all its weights, or of adapters.
    ///
    /// # Errors
    /// [`Error::Unsupported`] that names an operation or a form of attention that cannot be trained; [`Error::Invalid`] for a
    /// loss of routers in a model without, and for a target of adapters that matches nothing.
    pub fn new(definition: &Definition, config: &TrainConfig) -> Result<ModelLearner> {
        let adapters = match &config.lora {
            Some(lora) => new_adapters(&without_extras(definition)?, lora, config.seed)?,
            None => vec![],
        };
        let graphs = Graphs::new(definition, config, &adapters)?;
        let prepared = graphs.prepare(None)?;
        let bias_update = config.router.bias_update;
        let biased = if bias_update > 0.0 { graphs.biased()? } else { vec![] };
        if !biased.is_empty() && config.lora.is_some() {
            return Err(Error::Invalid(
                "router: bias_update changes biases of the model, and [lora] trains adapters alone".into(),
            ));
        }
        let graph = &prepared.program.graph;
        let read: Vec<bool> = {
            let mut read = vec![false; graph.weights.len()];
            let of = graph.nodes.iter().flat_map(|n| n.op.weights());
            of.for_each(|w: WeightId| read[w.0 as usize] = true);
            read
        };
        let declared = graph.weights.iter().zip(read).filter(|(_, read)| *read).map(|(w, _)| w);
        let trained = declared.filter(|w| config.lora.is_none() || w.name.contains(".lora_"));
        let parameters = trained.map(|w| Parameter::named(&w.name, &w.shape)).collect();
        let vocab = definition.decoder.vocab;
        let objective = objective(&config.router);
        let weights = HashMap::from([("balance", objective.balance_weight), ("z", objective.z_weight)]);
        Ok(ModelLearner {
            graphs,
            prepared,
            used: None,
            recompute: match config.recompute {
                RecomputeName::None => Recompute::None,
                RecomputeName::Experts => Recompute::Experts,
                RecomputeName::Layer => Recompute::Layer,
            },
            parameters,
            adapters,
            chosen: HashSet::new(),
            training: None,
            places: vec![],
            loads: Loads::new(),
            in_use: vec![],
            begun: vec![],
            biased,
            bias_update,
            weights,
            vocab,
            context: definition.decoder.context,
            rows: needs::rows(config),
            backend: config.backend,
            device: config.device.clone(),
            #[cfg(feature = "gpu")]
            gpu: None,
            threads: config.threads,
            base: None,
        })
    }

    /// Where gradients are computed.
    pub fn describe(&self) -> String {
        self.training.as_ref().map_or_else(String::new, |t| t.describe())
    }

    fn differentiated(&self, chosen: &HashSet<String>) -> Result<TrainProgram> {
        let mut program = TrainProgram::new(&self.prepared.program, &|name| chosen.contains(name), &[])?;
        if self.recompute != Recompute::None {
            program = program.recomputing(self.recompute)?;
        }
        match &self.prepared.evaluation {
            Some(graph) => program.evaluating(graph.clone()),
            None => Ok(program),
        }
    }

    /// Begins to train the prepared graphs.
    fn start(&mut self) -> Result<Box<dyn Training>> {
        let program = self.differentiated(&self.chosen)?;
        match self.backend {
            BackendConfig::Reference => backend::reference::train(program, Default::default()),
            BackendConfig::Cpu => {
                let threads = (self.threads > 0).then_some(self.threads);
                backend::cpu::train(program, &backend::cpu::Options { threads, ..Default::default() })
            }
            BackendConfig::Wgpu => self.start_on_gpu(program),
        }
    }

    /// Lets go of the first values of what the backend trains now. Of adapters nobody else has them; a model from nothing keeps its
    /// own, for what is written at the end.
    fn release_trained(&mut self, trained: &HashSet<String>) {
        self.graphs.release(trained);
        let program = &mut self.prepared.program;
        let all = program.graph.weights.iter().zip(Arc::make_mut(&mut program.weights));
        all.filter(|(w, _)| trained.contains(&w.name)).for_each(|(_, t)| *t = t.elsewhere());
        for a in &mut self.adapters {
            let pair = [("lora_a", &mut a.a), ("lora_b", &mut a.b)];
            let pair = pair.into_iter().filter(|(end, _)| trained.contains(&format!("{}.{end}", a.weight)));
            pair.for_each(|(_, t)| *t = t.elsewhere());
        }
    }

    /// Goes on with another number of experts a token, on the same weights; between two steps, when all gradients are zero.
    fn use_experts(&mut self, used: Option<u32>) -> Result<()> {
        if self.used == used {
            return Ok(());
        }
        self.prepared = self.graphs.prepare(used)?;
        let mut next = self.start()?;
        let before = self.training()?;
        for i in 0..next.parameters().len() {
            next.write(i, &before.read(i)?)?;
        }
        self.carry_moments(&mut *next)?;
        self.training = Some(next);
        self.used = used;
        Ok(())
    }

    /// How many experts a token uses at the end, where a schedule says so.
    pub fn experts_used(&self) -> Option<u32> {
        self.used
    }

    fn training(&mut self) -> Result<&mut Box<dyn Training>> {
        self.training.as_mut().ok_or_else(|| Error::Invalid("nothing was chosen to be trained yet".into()))
    }

    /// The weights as they stand: every parameter that is trained, by name.
    ///
    /// # Errors
    /// What the backend says.
    pub fn trained(&mut self) -> Result<HashMap<String, Tensor>> {
        // The copies take the place of what steps would need.
        self.training()?.rest();
        let parameters = self.parameters.clone();
        let mut all = HashMap::new();
        self.each(&mut |i, slot| {
            let p = &parameters[i];
            all.insert(p.name.clone(), Tensor::from_f32(p.shape.clone(), slot.weights.to_vec())?);
            Ok(())
        })?;
        Ok(all)
    }

    /// Weights of the graph whose names end so, as they were before the first step.
    pub(super) fn first_weights(&self, end: &str) -> Vec<(String, Tensor)> {
        let p = &self.prepared.program;
        let all = p.graph.weights.iter().zip(p.weights.iter()).filter(|(w, _)| w.name.ends_with(end));
        all.map(|(w, t)| (w.name.clone(), t.clone())).collect()
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
        let counted = |p: &bool| f64::from(u8::from(!p));
        let counted = if b.padding.is_empty() { vec![1.0; b.rows()] } else { b.padding.iter().map(counted).collect() };
        feed.set(COUNTED, counted);
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
                    let layer = |prefix: &str| name.strip_prefix(prefix).and_then(|l| l.parse::<u32>().ok());
                    let tokens = r.values.iter().map(|n| *n as u64).collect();
                    outcome.loads.extend(layer(TOKENS_PER_EXPERT).map(|layer| ExpertLoad {
                        layer,
                        tokens,
                        dropped: 0,
                    }));
                    // It comes behind the tokens of its layer.
                    let load = outcome.loads.last_mut().filter(|l| Some(l.layer) == layer(DROPPED));
                    load.into_iter().for_each(|l| l.dropped = value as u64);
                }
            }
        }
        outcome
    }

    fn term(&self, name: &'static str, value: f64) -> LossTerm {
        LossTerm { name, value, weight: self.weights.get(name).copied().unwrap_or(1.0) }
    }
}

impl Learner for ModelLearner {
    fn origin(&self) -> Option<String> {
        self.base.as_ref().map(origin::of)
    }

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
        if let Some(b) = self.biased.iter().find(|b| !self.chosen.contains(&b.weight)) {
            return Err(Error::Invalid(format!("router: bias_update changes {}, which is frozen", b.weight)));
        }
        self.check_memory()?;
        let training = self.start()?;
        let names: HashMap<&str, usize> =
            self.parameters.iter().enumerate().map(|(i, p)| (p.name.as_str(), i)).collect();
        let place = |name: &str| {
            names
                .get(name)
                .copied()
                .ok_or_else(|| Error::Model(format!("the backend trains {name}, which is no parameter")))
        };
        self.places = training.parameters().iter().map(|p| place(&p.name)).collect::<Result<_>>()?;
        self.release_trained(&training.parameters().iter().map(|p| p.name.clone()).collect());
        self.training = Some(training);
        Ok(())
    }

    fn accumulate(&mut self, batch: &MicroBatch) -> Result<Outcome> {
        self.use_experts(batch.top_k)?;
        let feed = self.feed(batch);
        let results = self.training()?.micro(&feed)?;
        let outcome = self.outcome(&results, batch.share);
        for l in &outcome.loads {
            let all = self.loads.entry(l.layer).or_insert_with(|| vec![0; l.tokens.len()]);
            all.iter_mut().zip(&l.tokens).for_each(|(sum, n)| *sum += n);
        }
        Ok(outcome)
    }

    fn evaluate(&mut self, batch: &MicroBatch) -> Result<Outcome> {
        self.use_experts(batch.top_k)?;
        let feed = self.feed(batch);
        let results = self.training()?.evaluate(&feed)?;
        Ok(self.outcome(&results, batch.share))
    }

    fn each(&mut self, visit: Visit<'_>) -> Result<()> {
        self.note_used();
        let (places, in_use) = (&self.places, &self.in_use);
        let Some(training) = self.training.as_mut() else {
            return Err(Error::Invalid("nothing was chosen to be trained yet".into()));
        };
        training.each(&mut |slot| {
            let i = places[slot.index];
            visit(i, Slot { weights: slot.weight, gradients: slot.gradient, used: &in_use[i] })
        })
    }

    fn device(&mut self) -> Option<&mut dyn DeviceLearner> {
        self.on_device().ok()?;
        Some(self)
    }

    fn stepped(&mut self) -> Result<()> {
        for b in self.biased.clone() {
            let Some(loads) = self.loads.get(&b.layer).map(|n| n.iter().map(|n| *n as f64).collect::<Vec<_>>()) else {
                continue;
            };
            let rate = self.bias_update;
            let training = self.training()?;
            let Some(at) = training.parameters().iter().position(|p| p.name == b.weight) else { continue };
            let mut biases = training.read(at)?;
            bias_update(&mut biases, &loads, rate);
            training.write(at, &biases)?;
        }
        Ok(())
    }

    fn clear(&mut self) -> Result<()> {
        self.loads.values_mut().for_each(|n| n.fill(0));
        self.training()?.clear()
    }
}
