//! Adapters as PEFT has them: `adapter_config.json` and `adapter_model.safetensors`.

use super::{
    fused::{self, Pair, Part},
    scaled,
};
use crate::{
    error::{Error, Result},
    file::{self, Tensor},
    graph::LowRank,
    model::{
        architecture::Architecture, build::Definition, decoder::Decoder, families::REGISTRY, gguf::GgufForm,
        tensors::interleaved,
    },
};
use serde_json::Value as Json;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// The files of a folder.
pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const TENSORS: &str = "adapter_model.safetensors";
/// Before every name.
pub(super) const ROOT: &str = "base_model.model.";

/// Settings that change what an adapter computes and that are not known here; what they are where they change nothing.
const UNKNOWN: &[(&str, &[Json])] = &[
    ("use_dora", &[Json::Bool(false)]),
    ("fan_in_fan_out", &[Json::Bool(false)]),
    ("modules_to_save", &[]),
    ("layer_replication", &[]),
    ("trainable_token_indices", &[]),
    ("lora_bias", &[Json::Bool(false)]),
    ("alora_invocation_tokens", &[]),
];

/// What the configuration says.
struct Settings {
    r: f64,
    alpha: f64,
    root: bool,
    /// By the ends of modules' names, in the order of the file.
    ranks: Vec<(String, f64)>,
    alphas: Vec<(String, f64)>,
    /// The first two numbers of the version that wrote it; files of before 0.18 do not say.
    version: Option<[u32; 2]>,
}

impl Settings {
    fn read(path: &Path) -> Result<Settings> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let bad = |what: String| Error::format(path.display().to_string(), what);
        let text = std::fs::read(path).map_err(io)?;
        let json: Json = serde_json::from_slice(&text).map_err(|e| bad(format!("is no valid JSON: {e}")))?;
        if json.get("peft_type").and_then(Json::as_str) != Some("LORA") {
            return Err(Error::Unsupported(format!("peft_type {}", json.get("peft_type").unwrap_or(&Json::Null))));
        }
        for (key, harmless) in UNKNOWN {
            let value = json.get(*key).unwrap_or(&Json::Null);
            let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
            if !empty && !harmless.contains(value) {
                return Err(Error::Unsupported(format!("an adapter with {key} = {value}")));
            }
        }
        match json.get("bias").and_then(Json::as_str) {
            None | Some("none") => {}
            Some(other) => return Err(Error::Unsupported(format!("an adapter with bias = {other:?}"))),
        }
        // Others change the base model too, so that the pairs are of another one: the file's keys, and what PEFT says of them.
        match json.get("init_lora_weights") {
            None | Some(Json::Null | Json::Bool(_)) => {}
            Some(Json::String(s)) if ["gaussian", "eva", "orthogonal"].contains(&s.as_str()) => {}
            Some(other) => return Err(Error::Unsupported(format!("an adapter with init_lora_weights = {other}"))),
        }
        let number =
            |key: &str| json.get(key).and_then(Json::as_f64).ok_or_else(|| bad(format!("has no number `{key}`")));
        // Patterns are regular expressions of the ends of names; plain names are what is written in practice.
        let plain = |k: &str| k.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
        let pattern = |key: &str| {
            let all = json.get(key).and_then(Json::as_object).into_iter().flatten();
            all.map(|(k, v)| match v.as_f64().filter(|_| plain(k.strip_prefix('^').unwrap_or(k))) {
                Some(n) => Ok((k.clone(), n)),
                None => Err(Error::Unsupported(format!("an adapter with {key} {k:?} = {v}"))),
            })
            .collect::<Result<Vec<_>>>()
        };
        Ok(Settings {
            r: number("r")?,
            alpha: number("lora_alpha")?,
            root: json.get("use_rslora") == Some(&Json::Bool(true)),
            ranks: pattern("rank_pattern")?,
            alphas: pattern("alpha_pattern")?,
            version: json.get("peft_version").and_then(Json::as_str).and_then(version),
        })
    }

    /// The factor of a module: alpha / r, or alpha / √r.
    fn factor(&self, module: &str) -> f32 {
        let of = |all: &[(String, f64)], usual: f64| {
            let found = all.iter().find(|(k, _)| match k.strip_prefix('^') {
                Some(whole) => module == whole,
                None => module.strip_suffix(k.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
            });
            found.map_or(usual, |(_, v)| *v)
        };
        let (r, alpha) = (of(&self.ranks, self.r).max(1.0), of(&self.alphas, self.alpha));
        (alpha / if self.root { r.sqrt() } else { r }) as f32
    }
}

/// `0.21.2` and `0.21.3.dev0@main` as 0 and 21.
fn version(text: &str) -> Option<[u32; 2]> {
    let mut numbers = text.split('.').map(|n| n.parse::<u32>().ok());
    Some([numbers.next()??, numbers.next()??])
}

/// The tensors of a folder, by module and by A or B.
struct Folder {
    all: BTreeMap<String, [Option<Tensor>; 2]>,
    used: BTreeSet<String>,
}

impl Folder {
    fn read(path: &Path) -> Result<Folder> {
        let mut all: BTreeMap<String, [Option<Tensor>; 2]> = BTreeMap::new();
        for (name, tensor) in file::open_tensors(path)? {
            let bare = name.strip_prefix(ROOT).unwrap_or(&name);
            let split = ["A", "B"].iter().enumerate().find_map(|(i, part)| {
                let (module, rest) = bare.split_once(&format!(".lora_{part}."))?;
                // `.weight`, or the adapter's name before it.
                (rest == "weight" || rest.ends_with(".weight")).then(|| (module.to_owned(), i))
            });
            let Some((module, i)) = split else {
                return Err(Error::Unsupported(format!("tensor `{name}`, which is no pair of low rank")));
            };
            all.entry(module).or_default()[i] = Some(tensor);
        }
        if let Some((module, _)) = all.iter().find(|(_, p)| p.iter().any(Option::is_none)) {
            return Err(Error::Model(format!("of `{module}` there is only one matrix of two")));
        }
        Ok(Folder { all, used: BTreeSet::new() })
    }

    fn take(&mut self, module: &str) -> Option<(Tensor, Tensor)> {
        let [a, b] = self.all.get(module)?;
        let pair = (a.clone()?, b.clone()?);
        self.used.insert(module.to_owned());
        Some(pair)
    }
}

/// The pairs of a folder, with `scale` and the factors of its configuration in B, rows in the checkpoint's own order.
pub(super) fn read(folder: &Path, d: &Definition, scale: f32) -> Result<Vec<LowRank>> {
    let settings = Settings::read(&folder.join(CONFIG))?;
    let mut tensors = Folder::read(&folder.join(TENSORS))?;
    // A GGUF's architecture may stand for several families: the one whose names the adapter has.
    let mut left = None;
    for family in REGISTRY.iter().filter(|a| a.hf == d.arch || a.gguf.arch == d.arch) {
        tensors.used.clear();
        let mut pairs = vec![];
        for decl in &d.program.graph.weights {
            pairs.extend(pair(family, &decl.name, &decl.shape, &settings, &mut tensors, scale)?);
        }
        pairs.extend(fused_experts(family, d, &settings, &mut tensors, scale)?);
        match tensors.all.keys().find(|m| !tensors.used.contains(*m)) {
            None => return Ok(pairs),
            Some(module) => left = Some(module.clone()),
        }
    }
    let left = left.unwrap_or_default();
    Err(Error::Model(format!("the adapter changes `{left}`, which this model has not")))
}

/// The pair of one weight, of experts made of one pair each.
fn pair(
    family: &Architecture,
    weight: &str,
    shape: &[usize],
    settings: &Settings,
    tensors: &mut Folder,
    scale: f32,
) -> Result<Option<LowRank>> {
    for name in family.names.candidates(weight) {
        let Some(module) = name.strip_suffix(".weight") else { continue };
        if !module.contains("{}") {
            if let Some((a, b)) = tensors.take(module) {
                let b = scaled(&b, scale * settings.factor(module))?;
                return Ok(Some(LowRank { weight: weight.into(), a: scaled(&a, 1.0)?, b, scale: 1.0 }));
            }
            continue;
        }
        let &[experts, ..] = shape else { continue };
        let (mut all_a, mut all_b, mut some) = (vec![], vec![], None);
        for e in 0..experts {
            let module = module.replace("{}", &e.to_string());
            if let Some((a, b)) = tensors.take(&module) {
                let b = scaled(&b, scale * settings.factor(&module))?;
                some = Some((a.shape().to_vec(), b.shape().to_vec()));
                all_a.push((e, scaled(&a, 1.0)?));
                all_b.push((e, b));
            }
        }
        if let Some((a, b)) = some {
            // Experts without a pair have one of zeros.
            let stack = |all: &[(usize, Tensor)], one: &[usize]| {
                let mut x = vec![0.0; experts * one.iter().product::<usize>()];
                let each = x.len() / experts;
                for (e, t) in all {
                    if t.shape() != one {
                        let (s, n) = (t.shape(), &module);
                        return Err(Error::Model(format!("the pairs of `{n}` have several ranks ({one:?}, {s:?})")));
                    }
                    x[e * each..(e + 1) * each].copy_from_slice(&crate::model::tensors::numbers(t)?);
                }
                Tensor::from_f32([&[experts], one].concat(), x)
            };
            return Ok(Some(LowRank {
                weight: weight.into(),
                a: stack(&all_a, &a)?,
                b: stack(&all_b, &b)?,
                scale: 1.0,
            }));
        }
    }
    Ok(None)
}

/// The pairs of parameters that hold all experts.
fn fused_experts(
    family: &Architecture,
    d: &Definition,
    settings: &Settings,
    tensors: &mut Folder,
    scale: f32,
) -> Result<Vec<LowRank>> {
    let layout = family.names.experts;
    let shape = |i: usize, role: &str| {
        let name = format!("blk.{i}.ffn_{role}_exps.weight");
        let w = d.program.graph.weights.iter().find(|w| w.name == name)?;
        Some((name, <[usize; 3]>::try_from(w.shape.as_slice()).ok()?))
    };
    let mut pairs = vec![];
    for i in 0..d.decoder.layers.len() {
        let (Some((gate, g)), Some((up, u)), Some((down, w))) = (shape(i, "gate"), shape(i, "up"), shape(i, "down"))
        else {
            continue;
        };
        for module in modules(family, &down) {
            for nested in [module.clone(), format!("{module}.base_layer")] {
                let Some((a, b)) = tensors.take(&nested) else { continue };
                let p = Pair { a: &a, b: &b };
                let factor = scale * settings.factor(&module);
                let both = [a.shape().last().copied(), b.shape().first().copied()];
                // Whether it is a pair of so many outputs and inputs, and if so, whether they are flipped.
                let is = |out: usize, inp: usize| match [both == [Some(inp), Some(out)], both == [Some(out), Some(inp)]]
                {
                    [true, true] => Some(fused::flipped(layout, settings.version)),
                    [true, false] => Some(false),
                    [false, true] => Some(true),
                    [false, false] => None,
                };
                let part = |weight, shape, (first, step)| Part { weight, shape, first, step };
                if let Some(flipped) = is(2 * g[1], g[2]) {
                    for (n, (name, s)) in [(&gate, g), (&up, u)].into_iter().enumerate() {
                        let part = part(name.as_str(), s, fused::half(n, s[1], layout));
                        pairs.push(fused::ours(&p, &part, flipped, factor)?);
                    }
                } else if let Some(flipped) = is(w[1], w[2]) {
                    pairs.push(fused::ours(&p, &part(down.as_str(), w, (0, 1)), flipped, factor)?);
                } else {
                    let (a, b) = (a.shape(), b.shape());
                    return Err(Error::Model(format!(
                        "the pair of `{nested}` {a:?}, {b:?} fits no matrix of its experts"
                    )));
                }
            }
        }
    }
    Ok(pairs)
}

/// What the module of a layer's experts may be called: what stands before the number or the last part of the down matrices' names.
pub(super) fn modules(family: &Architecture, down: &str) -> BTreeSet<String> {
    let names = family.names.candidates(down);
    let module = |name: &String| match name.split_once(".{}") {
        Some((before, _)) => Some(before.to_owned()),
        None => name.strip_suffix(".weight").unwrap_or(name).rsplit_once('.').map(|(before, _)| before.to_owned()),
    };
    names.iter().filter_map(module).collect()
}

/// Rows of queries' and keys' B as GGUF has them.
pub(super) fn as_gguf_rows(pairs: Vec<LowRank>, form: &GgufForm, d: &Decoder) -> Result<Vec<LowRank>> {
    let moved = |p: LowRank| {
        let layer = p.weight.strip_prefix("blk.").and_then(|r| r.split('.').next()?.parse::<usize>().ok());
        let rope = layer.and_then(|i| d.layers.get(i)?.rope());
        let qk = p.weight.contains(".attn_q.") || p.weight.contains(".attn_k.");
        match rope.filter(|_| qk && form.rows.interleaved_qk) {
            Some(rope) => Ok(LowRank { b: interleaved(&p.b, rope.head_dim)?, ..p }),
            None => Ok(p),
        }
    };
    pairs.into_iter().map(moved).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::Settings;
    use serde_json::{Value, json};

    fn settings(more: &Value) -> crate::Result<Settings> {
        let mut config = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), config.to_string()).unwrap();
        Settings::read(file.path())
    }

    /// PEFT's rule: `re.match(rf"(.*\.)?({key})$", module)`, the first key that matches; alpha / r, or alpha / √r with rslora.
    #[test]
    fn factors_follow_patterns() {
        let more = json!({
            "rank_pattern": {"q_proj": 16, "^model.layers.0.mlp.up_proj": 2},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 32, "q_proj": 64},
        });
        let s = settings(&more).unwrap();
        let factor = |m: &str| s.factor(&format!("model.layers.{m}"));
        assert_eq!(factor("0.self_attn.k_proj"), 8.0 / 4.0);
        assert_eq!(factor("0.self_attn.q_proj"), 64.0 / 16.0);
        assert_eq!(factor("1.self_attn.q_proj"), 32.0 / 16.0);
        assert_eq!(factor("0.mlp.up_proj"), 8.0 / 2.0);
        assert_eq!(factor("1.mlp.up_proj"), 8.0 / 4.0);
        assert_eq!(factor("0.self_attn.xq_proj"), 8.0 / 4.0);
        let s = settings(&json!({"use_rslora": true, "rank_pattern": {"q_proj": 16}})).unwrap();
        assert_eq!([s.factor("q_proj"), s.factor("k_proj")], [8.0 / 4.0, 8.0 / 2.0]);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for more in [
            json!({"rank_pattern": {".*q_proj": 16}}),
            json!({"alpha_pattern": {"q_proj": "16"}}),
            json!({"init_lora_weights": "pissa_niter_16"}),
        ] {
            let e = settings(&more).err().unwrap().to_string();
            assert!(e.contains(more.as_object().unwrap().keys().next().unwrap()), "{e}");
        }
        assert!(settings(&json!({"init_lora_weights": "gaussian", "rank_pattern": {}})).is_ok());
    }
}
