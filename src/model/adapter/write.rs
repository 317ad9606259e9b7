//! Adapters to files.

use super::{
    fused, padded,
    peft::{CONFIG, ROOT, TENSORS, modules},
};
use crate::{
    error::{Error, Result},
    file::{Checkpoint, Format, Metadata, Tensor, TensorSpec, Value, write_gguf, write_whole},
    graph::LowRank,
    model::{
        architecture::Architecture,
        build::{Definition, find},
        params::Params,
        tensors::{by_halves, numbers, row},
    },
    quant::DType,
};
use safetensors::tensor::TensorView;
use serde_json::json;
use std::{collections::BTreeMap, path::Path};

/// How PEFT's folder has the experts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdapterForm {
    /// One pair for the parameter of all experts, as transformers 5 has them in memory.
    #[default]
    Fused,
    /// One pair an expert, as checkpoints have them.
    PerExpert,
}

/// Writes llama.cpp's LoRA GGUF for models of the architecture `arch`. `pairs` are without their factor, which is `alpha` / r; rows
/// are in GGUF's order.
///
/// # Errors
/// As [`write_gguf`].
pub fn write_adapter_gguf(path: &Path, arch: &str, alpha: f32, pairs: &[LowRank]) -> Result<()> {
    let mut meta = Metadata::new();
    meta.set("general.architecture", Value::string(arch));
    meta.set("general.type", Value::string("adapter"));
    meta.set("adapter.type", Value::string("lora"));
    meta.set("adapter.lora.alpha", Value::F32(alpha));
    let all: Vec<(String, &Tensor)> = pairs
        .iter()
        .flat_map(|p| [(format!("{}.lora_a", p.weight), &p.a), (format!("{}.lora_b", p.weight), &p.b)])
        .collect();
    let spec =
        |(name, t): &(String, &Tensor)| TensorSpec { name: name.clone(), dtype: DType::F32, shape: t.shape().to_vec() };
    let specs: Vec<TensorSpec> = all.iter().map(spec).collect();
    write_gguf(path, &meta, &specs, &mut |i, sink| {
        let bytes: Vec<u8> = numbers(all[i].1)?.iter().flat_map(|x| x.to_le_bytes()).collect();
        sink.write(&bytes)
    })
}

/// Writes a PEFT folder for the model `d`, built from `ckpt`. `pairs` are without their factor, which is `alpha` / r; they have one
/// rank, and rows as `ckpt` has them.
///
/// # Errors
/// [`Error::Write`]; [`Error::Unsupported`] for a weight that has no name of its own outside GGUF; [`Error::Invalid`] for several
/// ranks.
pub fn write_adapter_peft(
    folder: &Path,
    d: &Definition,
    ckpt: &Checkpoint,
    alpha: f32,
    pairs: &[LowRank],
    form: AdapterForm,
) -> Result<()> {
    let r = pairs.first().map_or(0, LowRank::rank);
    if r == 0 || pairs.iter().any(|p| p.rank() != r) {
        return Err(Error::Invalid("a PEFT folder has pairs of one rank".into()));
    }
    let family = find(&Params::new(ckpt)?)?;
    let gguf = ckpt.format() == Format::Gguf && family.gguf.rows.interleaved_qk;
    let head = d.decoder.layers.iter().find_map(|l| l.rope()).map(|r| r.head_dim).filter(|_| gguf);
    // Gate and up are one parameter in memory, whose rank is that of both; so that alpha / r is one number all have that rank.
    let fused = form == AdapterForm::Fused && pairs.iter().any(|p| p.weight.contains("_exps."));
    let times = if fused { 2 } else { 1 };
    let mut out = Peft { wrapped: form == AdapterForm::Fused && d.decoder.moe().is_some(), ..Peft::default() };
    for p in pairs {
        out.linear(&padded(p, times * r)?, family, head, form)?;
    }
    if fused {
        for i in 0..d.decoder.layers.len() {
            out.fused(i, pairs, family)?;
        }
    }
    save(folder, &out.config(alpha * times as f32, times * r), &out.all)
}

/// The last parts of names that PEFT takes for experts' (and routers') of earlier checkpoints, and renames, in models with experts: as
/// parameters (`target_parameters`) they are what they are called.
const RENAMED: &[&str] = &["gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"];

/// A folder under way.
#[derive(Default)]
struct Peft {
    all: BTreeMap<String, Tensor>,
    modules: Vec<String>,
    parameters: Vec<String>,
    /// Whether matrices of names that would be renamed are said as parameters.
    wrapped: bool,
}

impl Peft {
    fn add(&mut self, module: &str, a: Tensor, b: Tensor) {
        self.all.insert(format!("{ROOT}{module}.lora_A.weight"), a);
        self.all.insert(format!("{ROOT}{module}.lora_B.weight"), b);
    }

    /// A matrix of its own, or of experts one an expert. `head` is the width of heads whose rows are in GGUF's order.
    fn linear(&mut self, p: &LowRank, family: &Architecture, head: Option<usize>, form: AdapterForm) -> Result<()> {
        let names = family.names.candidates(&p.weight);
        let name = names.first().and_then(|n| n.strip_suffix(".weight"));
        let module = name.ok_or_else(|| Error::Unsupported(format!("an adapter of `{}` as PEFT's", p.weight)))?;
        if !p.weight.contains("_exps.") {
            let qk = p.weight.contains(".attn_q.") || p.weight.contains(".attn_k.");
            let b = match head.filter(|_| qk) {
                Some(head) => by_halves(&p.b, head)?,
                None => p.b.clone(),
            };
            self.add(module, p.a.clone(), b);
            if self.wrapped && module.rsplit('.').next().is_some_and(|last| RENAMED.contains(&last)) {
                self.parameters.push(format!("{module}.weight"));
            } else {
                self.modules.push(module.to_owned());
            }
        } else if form == AdapterForm::PerExpert {
            for e in 0..p.a.shape().first().copied().unwrap_or(0) {
                let module = module.replace("{}", &e.to_string());
                self.add(&module, slice(&p.a, e)?, slice(&p.b, e)?);
                self.modules.push(module);
            }
        }
        Ok(())
    }

    /// The parameters of a layer's experts: twice the rank, since gate and up are one.
    fn fused(&mut self, layer: usize, pairs: &[LowRank], family: &Architecture) -> Result<()> {
        let of = |role: &str| pairs.iter().find(|p| p.weight == format!("blk.{layer}.ffn_{role}_exps.weight"));
        let layout = family.names.experts;
        let name = format!("blk.{layer}.ffn_down_exps.weight");
        // As transformers 5 calls them in memory, whatever the checkpoint does.
        let all = modules(family, &name);
        let found = ["mlp.experts", "experts"].iter().find_map(|end| all.iter().find(|m| m.ends_with(end)));
        let Some(module) = found.cloned() else { return Ok(()) };
        let mut made = vec![];
        let halves = [of("gate"), of("up")];
        if let Some(some) = halves.into_iter().flatten().next() {
            let out = some.b.shape().get(1).copied().unwrap_or(0);
            let zero = LowRank { b: zeros(&some.b)?, ..some.clone() };
            let part = |n: usize, p: Option<&LowRank>| {
                let (first, step) = fused::half(n, out, layout);
                (p.cloned().unwrap_or_else(|| zero.clone()), first, step)
            };
            let parts = [part(0, halves[0]), part(1, halves[1])];
            let parts: Vec<_> = parts.iter().map(|(p, first, step)| (p, *first, *step)).collect();
            made.push(("gate_up_proj", fused::theirs(&parts, 2 * out)?));
        }
        if let Some(p) = of("down") {
            let zero = LowRank { b: zeros(&p.b)?, ..p.clone() };
            let outs = p.b.shape().get(1).copied().unwrap_or(0);
            made.push(("down_proj", fused::theirs(&[(p, 0, 1), (&zero, 0, 1)], outs)?));
        }
        // Of two parameters of one module the first lies within the second.
        let deep = made.len() == 2;
        for (n, (parameter, [a, b])) in made.into_iter().enumerate() {
            let place = if deep && n == 0 { format!("{module}.base_layer") } else { module.clone() };
            self.add(&place, a, b);
            self.parameters.push(format!("{module}.{parameter}"));
        }
        Ok(())
    }

    /// `adapter_config.json` of pairs of rank `r`.
    fn config(&self, alpha: f32, r: usize) -> serde_json::Value {
        json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": true, "bias": "none", "r": r,
            "lora_alpha": f64::from(alpha), "lora_dropout": 0.0, "use_rslora": false, "use_dora": false,
            "fan_in_fan_out": false, "target_modules": self.modules, "target_parameters": self.parameters,
            "rank_pattern": {}, "alpha_pattern": {}, "base_model_name_or_path": null,
            // Whose order of experts' parameters it is.
            "peft_version": "0.20.0",
        })
    }
}

fn save(folder: &Path, config: &serde_json::Value, all: &BTreeMap<String, Tensor>) -> Result<()> {
    let io = |source| Error::Write { path: folder.to_owned(), source };
    let there = folder.exists();
    std::fs::create_dir_all(folder).map_err(io)?;
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = all
        .iter()
        .map(|(n, t)| Ok((n.clone(), t.shape().to_vec(), numbers(t)?.iter().flat_map(|x| x.to_le_bytes()).collect())))
        .collect::<Result<_>>()?;
    let views = bytes.iter().map(|(n, s, b)| {
        TensorView::new(safetensors::Dtype::F32, s.clone(), b).map(|v| (n.as_str(), v)).map_err(std::io::Error::other)
    });
    let views = views.collect::<std::io::Result<Vec<_>>>().map_err(io)?;
    let format = Some([("format".to_owned(), "pt".to_owned())].into());
    let data = safetensors::serialize(views, format).map_err(|e| io(std::io::Error::other(e)))?;
    let text = serde_json::to_vec_pretty(config).map_err(|e| io(e.into()))?;
    let files = [(TENSORS, data), (CONFIG, text)];
    let written = files.iter().try_for_each(|(name, data)| write_whole(&folder.join(name), data));
    // A folder that is no adapter's yet is nobody's.
    written.inspect_err(|_| {
        if !there {
            drop(std::fs::remove_dir_all(folder))
        }
    })
}

fn zeros(t: &Tensor) -> Result<Tensor> {
    Tensor::from_f32(t.shape().to_vec(), vec![0.0; t.rows() * t.cols()])
}

/// The matrix of one expert.
fn slice(t: &Tensor, e: usize) -> Result<Tensor> {
    let shape = t.shape().get(1..).unwrap_or_default().to_vec();
    let rows = t.rows() / t.shape().first().copied().unwrap_or(1).max(1);
    let parts = (e * rows..(e + 1) * rows).map(|r| row(t, r)).collect::<Option<Vec<_>>>();
    Tensor::new(t.dtype(), shape, parts.ok_or_else(|| Error::Model("an adapter of fewer experts".into()))?)
}
