//! A case as its files say it, and the graph that is made of it.

use moeray::{
    backend::Program,
    file::Tensor,
    graph::{Builder, LOSS, TrainProgram},
    ir::{Linear, Math, Op, ValueId, WeightId},
    ops::train::Feed,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value as Json;
use std::{collections::BTreeMap, fs, path::Path};

/// A tensor of a case.
#[derive(Clone, Debug)]
pub struct Stored {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

/// The files of a case.
pub struct Case {
    pub name: String,
    pub record: Json,
    pub tensors: BTreeMap<String, Stored>,
}

fn stored(view: &safetensors::tensor::TensorView<'_>) -> Stored {
    let d = view.data();
    let values = match view.dtype() {
        Dtype::F32 => d.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect(),
        Dtype::F64 => d.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::I64 => d.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect(),
        Dtype::I32 => d.chunks_exact(4).map(|b| f64::from(i32::from_le_bytes(b.try_into().unwrap()))).collect(),
        other => panic!("a tensor of {other:?}"),
    };
    Stored { shape: view.shape().to_vec(), values }
}

impl Case {
    pub fn read(folder: &Path) -> Case {
        let record: Json = serde_json::from_slice(&fs::read(folder.join("case.json")).unwrap()).unwrap();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let data = folder.join("data.safetensors");
        let mut tensors = BTreeMap::new();
        if data.is_file() {
            let bytes = fs::read(data).unwrap();
            let all = SafeTensors::deserialize(&bytes).unwrap();
            tensors = all.tensors().iter().map(|(n, v)| (n.clone(), stored(v))).collect();
        }
        Case { name, record, tensors }
    }

    /// Whether it is a whole training run.
    pub fn is_run(&self) -> bool {
        self.tensors.keys().any(|n| n.starts_with("curve."))
    }

    pub fn tensor(&self, name: &str) -> &Stored {
        self.tensors.get(name).unwrap_or_else(|| panic!("{}: no tensor {name}", self.name))
    }

    /// Whether there is such an input.
    pub fn has(&self, input: &str) -> bool {
        self.tensors.contains_key(&format!("in.{input}"))
    }

    pub fn hyper_opt(&self, key: &str) -> Option<&Json> {
        self.record["hyper"].get(key)
    }

    fn hyper(&self, key: &str) -> &Json {
        self.hyper_opt(key).unwrap_or_else(|| panic!("{}: no {key}", self.name))
    }

    pub fn usize(&self, key: &str) -> usize {
        self.hyper(key).as_u64().unwrap() as usize
    }

    pub fn f64(&self, key: &str) -> f64 {
        self.hyper(key).as_f64().unwrap()
    }

    pub fn text(&self, key: &str) -> &str {
        self.hyper(key).as_str().unwrap()
    }

    /// Names below a prefix, without it.
    pub fn below(&self, prefix: &str) -> Vec<String> {
        self.tensors.keys().filter_map(|n| n.strip_prefix(prefix)).map(String::from).collect()
    }

    /// Loss terms whose own gradients are stored.
    pub fn terms(&self) -> Vec<String> {
        let mut terms: Vec<String> =
            self.below("grad_of.").iter().map(|n| n.split('.').next().unwrap().to_string()).collect();
        terms.dedup();
        terms
    }
}

/// How a weight of the graph is stored in the case: one behind the other, or transposed.
#[derive(Clone, Debug)]
pub struct Source {
    pub names: Vec<String>,
    pub transposed: bool,
}

/// A case's graph.
pub struct Made<'a> {
    pub case: &'a Case,
    pub b: Builder,
    pub feed: Feed,
    pub sources: Vec<Source>,
    tensors: Vec<Tensor>,
    /// Inputs of numbers, by name.
    inputs: Vec<String>,
    pub losses: Vec<(String, ValueId)>,
    /// Outputs that no graph makes.
    pub host: Vec<(String, Vec<f64>)>,
}

/// A case's program, the sources of its weights, its micro-batch, and what the host worked out.
pub type Finished = (Option<TrainProgram>, Vec<Source>, Feed, Vec<(String, Vec<f64>)>);

impl<'a> Made<'a> {
    pub fn new(case: &'a Case) -> Self {
        let feed = Feed { rows: 1, ..Feed::default() };
        Made {
            case,
            b: Builder::new(),
            feed,
            sources: vec![],
            tensors: vec![],
            inputs: vec![],
            losses: vec![],
            host: vec![],
        }
    }

    fn declare(&mut self, source: Source, shape: &[usize], values: Vec<f32>) -> WeightId {
        let w = self.b.weight(source.names.join("+"), shape);
        self.tensors.push(Tensor::from_f32(shape.to_vec(), values).unwrap());
        self.sources.push(source);
        w
    }

    /// A weight as it is stored.
    pub fn weight(&mut self, name: &str) -> WeightId {
        let t = self.case.tensor(name);
        let source = Source { names: vec![name.into()], transposed: false };
        self.declare(source, &t.shape, t.values.iter().map(|v| *v as f32).collect())
    }

    /// A matrix that is stored `[in, out]`.
    pub fn transposed(&mut self, name: &str) -> WeightId {
        let t = self.case.tensor(name);
        let (inp, out) = (t.shape[0], t.shape[1]);
        let values = (0..out * inp).map(|i| t.values[i % inp * out + i / inp] as f32).collect();
        self.declare(Source { names: vec![name.into()], transposed: true }, &[out, inp], values)
    }

    /// Tensors one behind the other; `stack` makes a dimension of their number, else rows add up.
    pub fn joined(&mut self, names: Vec<String>, stack: bool) -> WeightId {
        let all: Vec<&Stored> = names.iter().map(|n| self.case.tensor(n)).collect();
        let mut shape = all[0].shape.clone();
        let count = all.len();
        if stack {
            shape.insert(0, count);
        } else {
            shape[0] *= count;
        }
        let values = all.iter().flat_map(|t| t.values.iter().map(|v| *v as f32)).collect();
        self.declare(Source { names, transposed: false }, &shape, values)
    }

    /// A matrix, and its bias where there is one, by the stem of their names.
    pub fn linear(&mut self, stem: &str) -> Linear {
        let bias = format!("{stem}.bias");
        let has = self.case.tensors.contains_key(&bias);
        Linear { weight: self.weight(&format!("{stem}.weight")), bias: has.then(|| self.weight(&bias)) }
    }

    /// The matrices of experts, and their biases; {} in the stem stands for the expert's number.
    pub fn experts(&mut self, stem: &str, count: usize) -> Linear {
        let numbered = |part: &str| -> Vec<String> {
            (0..count).map(|e| format!("{}.{part}", stem.replace("{}", &e.to_string()))).collect()
        };
        let (weights, biases) = (numbered("weight"), numbered("bias"));
        let has = self.case.tensors.contains_key(&biases[0]);
        Linear { weight: self.joined(weights, true), bias: has.then(|| self.joined(biases, true)) }
    }

    /// A product with a matrix.
    pub fn product(&mut self, stem: &str, x: ValueId) -> ValueId {
        let l = self.linear(stem);
        self.b.one(Op::Linear(l), &[x]).unwrap()
    }

    /// An input of numbers whose last dimension is the columns; it says how many rows there are.
    pub fn input(&mut self, name: &str) -> ValueId {
        let cols = *self.case.tensor(&format!("in.{name}")).shape.last().unwrap();
        self.input_of(name, cols)
    }

    /// An input of numbers with so many columns.
    pub fn input_of(&mut self, name: &str, cols: usize) -> ValueId {
        let t = self.case.tensor(&format!("in.{name}"));
        self.feed.rows = t.values.len() / cols;
        self.feed.set(name, t.values.clone());
        self.inputs.push(name.into());
        self.b.one(Op::Input { name: name.into(), cols }, &[]).unwrap()
    }

    /// An input of ids, a column.
    pub fn ids(&mut self, name: &str, values: Vec<u32>) -> ValueId {
        self.feed.rows = values.len();
        self.feed.set_ids(name, values);
        self.b.math(Math::Ids { name: name.into(), cols: 1 }, &[]).unwrap()
    }

    /// The first rows of sequences of `length` rows.
    pub fn starts(&mut self, length: usize) -> ValueId {
        let starts = (0..self.feed.rows).map(|r| (r - r % length) as u32).collect();
        self.ids("starts", starts)
    }

    pub fn output(&mut self, name: &str, v: ValueId) {
        self.b.output(format!("out.{name}"), v);
    }

    pub fn host_output(&mut self, name: &str, values: Vec<f64>) {
        self.host.push((name.into(), values));
    }

    /// How many choices each expert has.
    pub fn counts(&mut self, ids: ValueId, experts: usize) {
        let hot = self.b.math(Math::MultiHot { experts }, &[ids]).unwrap();
        let counts = self.b.sum_rows(hot).unwrap();
        self.output("tokens_per_expert", counts);
    }

    pub fn loss(&mut self, term: &str, v: ValueId) {
        self.losses.push((term.into(), v));
        self.b.output(format!("loss.{term}"), v);
    }

    /// Where the source has no loss: the sum of all outputs times the coefficients of the case.
    fn upstream(&mut self) {
        let mut terms = vec![];
        for name in self.case.below("up.") {
            let out = self.b.graph().outputs.iter().find(|(n, _)| *n == format!("out.{name}")).unwrap().1;
            let cols = self.b.graph().cols(out);
            let coefficients = format!("up.{name}");
            self.feed.set(&coefficients, self.case.tensor(&coefficients).values.clone());
            let up = self.b.one(Op::Input { name: coefficients, cols }, &[]).unwrap();
            let product = self.b.times(up, out).unwrap();
            terms.push((1.0, self.b.sum_all(product).unwrap()));
        }
        let total = self.b.weighted_sum(&terms).unwrap();
        self.loss("total", total);
    }

    /// The program whose loss is `term`, the sources of its weights, and its micro-batch.
    pub fn finish(mut self, term: &str) -> Finished {
        if self.losses.iter().all(|(n, _)| n != "total") && !self.case.below("up.").is_empty() {
            self.upstream();
        }
        let Some((_, loss)) = self.losses.iter().find(|(n, _)| n == term) else {
            return (None, self.sources, self.feed, self.host);
        };
        self.b.output(LOSS, *loss);
        let wanted: Vec<&str> = self.inputs.iter().map(String::as_str).collect();
        let wanted: Vec<&str> =
            wanted.into_iter().filter(|n| self.case.tensors.contains_key(&format!("grad.{n}"))).collect();
        let program = Program::new(self.b.finish(), self.tensors).unwrap();
        // A run trains all of its weights, a case those whose gradients it has.
        let trains = |name: &str| {
            let first = format!("grad.{}", name.split('+').next().unwrap());
            self.case.is_run() || self.case.tensors.contains_key(&first)
        };
        let any = program.graph.weights.iter().any(|w| trains(&w.name)) || !wanted.is_empty();
        let program = if any { Some(TrainProgram::new(&program, &trains, &wanted).unwrap()) } else { None };
        (program, self.sources, self.feed, self.host)
    }
}
