//! Dense models into Mixture-of-Experts models (Komatsuzaki et al. 2023, *Sparse Upcycling*).
//!
//! Every expert is the dense feed-forward network, and routers are new. Where the chosen experts' weights sum to 1 the new model
//! computes what the dense one does, until training tells the experts apart.

use super::{
    data::{normal, short},
    places::apart,
    whole::write_model,
};
use crate::{
    backend::{
        self,
        runner::{Row, RunnerOptions, Step, Token},
    },
    error::{Error, Result},
    file::{Bytes, Checkpoint, Metadata, Tensor, TensorSpec, Value},
    graph::Program,
    ir::{Op, ValueId},
    memory,
    model::{self, Definition},
    quant,
};
use std::path::Path;

/// How routers begin.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Gate {
    /// Normal numbers of the standard deviation 1 / √hidden: logits of a normalised row have one of about 1.
    #[default]
    Random,
    /// For every expert texts as token ids: its row of each router is the mean of what the feed-forward network of that layer
    /// gets for them, normalised (mergekit's `hidden`).
    Hidden(Vec<Vec<Vec<u32>>>),
}

/// What to make of a dense model.
#[derive(Clone, Debug, PartialEq)]
pub struct UpcycleOptions {
    /// Experts of each layer, E.
    pub experts: usize,
    /// Experts that a token uses, k.
    pub used: usize,
    /// How routers begin.
    pub gate: Gate,
    /// Noise on every expert but the first, as a part of the standard deviation of each matrix.
    pub noise: f32,
    /// The seed of routers and noise.
    pub seed: u64,
}

impl Default for UpcycleOptions {
    fn default() -> Self {
        UpcycleOptions { experts: 8, used: 2, gate: Gate::Random, noise: 0.0, seed: 0 }
    }
}

/// The roles of a dense network, whose experts are called the same with `_exps`.
const ROLES: [&str; 3] = ["ffn_gate", "ffn_up", "ffn_down"];

/// The model as a checkpoint under GGUF names. Without noise nothing is copied: experts share the dense network's bytes.
///
/// # Errors
/// [`Error::Invalid`] for impossible numbers; [`Error::Unsupported`] for an architecture without a form with experts, a model that
/// has experts already, and noise on quantised weights.
pub fn upcycle(dense: &Checkpoint, options: &UpcycleOptions) -> Result<Checkpoint> {
    check(options)?;
    let gguf = model::to_gguf(dense)?;
    let definition = model::build(&gguf, &model::Options::default())?;
    if definition.arch != "llama" {
        return Err(Error::Unsupported(format!(
            "upcycling of the architecture `{}`: those of Llama's shape (`llama`, `mistral`) have a form with experts",
            definition.arch
        )));
    }
    if definition.decoder.moe().is_some() {
        return Err(Error::Unsupported("upcycling of a model that has experts already".into()));
    }
    let hidden = definition.decoder.hidden;
    check_size(&definition, &gguf, options)?;
    let routers = routers(&definition, options, hidden)?;
    let mut meta: Metadata = gguf.meta().clone();
    meta.set("llama.expert_count", Value::U32(options.experts as u32));
    meta.set("llama.expert_used_count", Value::U32(options.used as u32));
    let mut tensors = vec![];
    for (number, (name, t)) in gguf.tensors().enumerate() {
        let role = name.strip_prefix("blk.").and_then(|r| r.split_once('.')).and_then(|(layer, rest)| {
            let role = ROLES.iter().find(|r| rest.strip_prefix(**r) == Some(".weight"))?;
            Some((layer.parse::<usize>().ok()?, *role))
        });
        let Some((layer, role)) = role else {
            if ROLES.iter().any(|r| name.contains(&format!(".{r}."))) {
                return Err(Error::Unsupported(format!(
                    "upcycling of a model with `{name}`: experts of this form have no such part"
                )));
            }
            tensors.push((name.to_owned(), t.clone()));
            continue;
        };
        let numbered = (number as u32).wrapping_mul(4096);
        tensors.push((name.replace(role, &format!("{role}_exps")), copies(name, t, options, numbered)?));
        if role == "ffn_gate" {
            let router =
                routers.get(layer).cloned().ok_or_else(|| Error::Model(format!("there is no layer {layer}")))?;
            let router = Tensor::from_f32(vec![options.experts, hidden], router)?;
            tensors.push((name.replace(role, "ffn_gate_inp"), router));
        }
    }
    let made = Checkpoint::from_parts(meta, tensors)?;
    model::readable(&made)?;
    Ok(made)
}

impl UpcycleOptions {
    /// Makes experts of a dense model's feed-forward networks and writes the model as GGUF. What cannot be made leaves nothing behind.
    ///
    /// # Errors
    /// As [`upcycle`]; [`Error::Invalid`] for the dense model's own path; [`Error::Write`].
    pub fn write(&self, dense: &Checkpoint, path: &Path) -> Result<Vec<TensorSpec>> {
        if let Some(read) = dense.path() {
            apart(path, read)?;
        }
        let made = upcycle(dense, self)?;
        write_model(path, &made)
    }
}

fn check(o: &UpcycleOptions) -> Result<()> {
    let bad = |what: String| Err(Error::Invalid(what));
    if o.experts < 2 || o.experts > 1024 {
        return bad(format!("{} experts; 2 to 1024 are expected", o.experts));
    }
    if o.used == 0 || o.used > o.experts {
        return bad(format!("{} of {} experts used; 1 to {} are expected", o.used, o.experts, o.experts));
    }
    if !(o.noise >= 0.0 && o.noise.is_finite()) {
        return bad(format!("noise is {}; a number from 0 is expected", o.noise));
    }
    match &o.gate {
        Gate::Hidden(prompts) if prompts.len() != o.experts => {
            bad(format!("prompts for {} experts, and there are {}", prompts.len(), o.experts))
        }
        Gate::Hidden(prompts) => match prompts.iter().position(|p| p.is_empty() || p.iter().any(Vec::is_empty)) {
            Some(e) => bad(format!("expert {e} has no prompt, or one without tokens")),
            None => Ok(()),
        },
        Gate::Random => Ok(()),
    }
}

/// Refuses prompts that the model cannot take, and experts that memory has no room for.
fn check_size(d: &Definition, gguf: &Checkpoint, o: &UpcycleOptions) -> Result<()> {
    let (context, vocab) = (d.decoder.context, d.decoder.vocab);
    if let Gate::Hidden(prompts) = &o.gate {
        for (e, ids) in prompts.iter().enumerate().flat_map(|(e, texts)| texts.iter().map(move |ids| (e, ids))) {
            if ids.len() > context {
                return Err(Error::Invalid(format!(
                    "a prompt of expert {e} has {} tokens, and the model takes {context}",
                    ids.len()
                )));
            }
            if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
                return Err(Error::Invalid(format!("a prompt of expert {e} has the token {id}; there are {vocab}")));
            }
        }
    }
    // Without noise experts share the dense network's bytes.
    if o.noise == 0.0 {
        return Ok(());
    }
    let dense = |name: &str| ROLES.iter().any(|r| name.ends_with(&format!(".{r}.weight")));
    let bytes: usize = gguf.tensors().filter(|(name, _)| dense(name)).map(|(_, t)| t.byte_len()).sum();
    let needed = (bytes as u64).saturating_mul(o.experts as u64);
    match memory::total() {
        Some(all) if needed > all => Err(Error::Invalid(format!(
            "{} experts with noise are {needed} bytes, and this machine has {all}: fewer experts help, or none of the noise",
            o.experts
        ))),
        Some(_) | None => Ok(()),
    }
}

/// The matrix once for every expert.
fn copies(name: &str, t: &Tensor, o: &UpcycleOptions, stream: u32) -> Result<Tensor> {
    let &[out, inp] = t.shape() else {
        return Err(Error::Model(format!("`{name}` {:?} is no matrix", t.shape())));
    };
    let mut parts = t.parts().to_vec();
    if o.noise == 0.0 {
        for _ in 1..o.experts {
            parts.extend_from_slice(t.parts());
        }
        return Tensor::new(t.dtype(), vec![o.experts, out, inp], parts);
    }
    if !t.dtype().is_float() {
        return Err(Error::Unsupported(format!(
            "noise on `{name}`, which is {}: take the model's F16, BF16 or F32 file, and quantise the result",
            t.dtype()
        )));
    }
    let mut numbers = vec![0.0f32; out * inp];
    for (r, row) in numbers.chunks_exact_mut(inp).enumerate() {
        quant::dequantize(t.dtype(), t.row(r), row)?;
    }
    let mean = numbers.iter().map(|x| f64::from(*x)).sum::<f64>() / numbers.len() as f64;
    let variance = numbers.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / numbers.len() as f64;
    let scale = o.noise * variance.sqrt() as f32;
    let whole: Vec<u8> = t.parts().iter().flat_map(|p| p.iter().copied()).collect();
    parts = vec![Bytes::from_vec(whole)];
    for e in 1..o.experts {
        let noisy = |(i, x): (usize, &f32)| x + scale * normal(short(o.seed), stream.wrapping_add(e as u32), i as u32);
        let noisy: Vec<f32> = numbers.iter().enumerate().map(noisy).collect();
        parts.push(Bytes::from_vec(quant::quantize_rows(t.dtype(), out, inp, &noisy, 1)?));
    }
    Tensor::new(t.dtype(), vec![o.experts, out, inp], parts)
}

/// The router of every layer, `[experts, hidden]`.
fn routers(d: &Definition, o: &UpcycleOptions, hidden: usize) -> Result<Vec<Vec<f32>>> {
    let layers = d.decoder.layers.len();
    match &o.gate {
        Gate::Random => {
            let scale = 1.0 / (hidden as f32).sqrt();
            let one = |layer: usize| {
                let number = |i: usize| normal(short(o.seed), u32::MAX - layer as u32, i as u32) * scale;
                (0..o.experts * hidden).map(number).collect()
            };
            Ok((0..layers).map(one).collect())
        }
        Gate::Hidden(prompts) => hidden_routers(d, prompts, hidden),
    }
}

/// Routers of what the feed-forward networks get for each expert's prompts.
fn hidden_routers(d: &Definition, prompts: &[Vec<Vec<u32>>], hidden: usize) -> Result<Vec<Vec<f32>>> {
    let layers = d.decoder.layers.len();
    let mut graph = (*d.program.graph).clone();
    let first = graph.outputs.len();
    for layer in 0..layers {
        let name = format!("blk.{layer}.ffn_gate.weight");
        let input = graph.nodes.iter().find_map(|n| match &n.op {
            Op::Linear(l) if graph.weight(l.weight).name == name => n.inputs.first().copied(),
            _ => None,
        });
        let input: ValueId =
            input.ok_or_else(|| Error::Unsupported(format!("prompts for a layer without `{name}`")))?;
        graph.outputs.push((format!("ffn_input_{layer}"), input));
    }
    let program = Program::new(graph, d.program.weights.to_vec())?;
    let longest = prompts.iter().flatten().map(Vec::len).max().unwrap_or(1);
    let loaded = backend::cpu::load(program, &backend::cpu::Options::default(), &mut |_| Ok(()))?;
    let options = RunnerOptions { ctx: longest, ubatch: longest, sequences: 1, kv: quant::KvType::F32 };
    let mut routers = vec![vec![0.0f32; prompts.len() * hidden]; layers];
    for (e, texts) in prompts.iter().enumerate() {
        let mut means = vec![vec![0.0f64; hidden]; layers];
        for ids in texts {
            let mut runner = loaded.runner(options)?;
            let row = |(position, id): (usize, &u32)| Row {
                token: Token::Id(*id),
                sequence: 0,
                position,
                logits: position + 1 == ids.len(),
                hidden: false,
                choose: None,
            };
            let rows: Vec<Row> = ids.iter().enumerate().map(row).collect();
            let results = runner.step(&Step { rows: &rows, masks: &[], inputs: &[], trace: true })?;
            for (mean, output) in means.iter_mut().zip(results.outputs.get(first..).unwrap_or_default()) {
                for row in output.f32.chunks_exact(hidden) {
                    mean.iter_mut().zip(row).for_each(|(m, x)| *m += f64::from(*x) / output.rows as f64);
                }
            }
        }
        for (router, mean) in routers.iter_mut().zip(means) {
            let norm = mean.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
            let row = &mut router[e * hidden..(e + 1) * hidden];
            row.iter_mut().zip(mean).for_each(|(w, x)| *w = (x / norm) as f32);
        }
    }
    Ok(routers)
}
