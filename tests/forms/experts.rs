//! Experts of Hugging Face files: a tensor each, gates and ups of all in one, transposed, apart, and under the names that the
//! modules have in memory.

use super::{build, goldens, same_as_golden};
use crate::variants::{Data, opened, tensors};
use safetensors::Dtype;
use std::collections::BTreeMap;

/// A row-major matrix of BF16 or F32.
#[derive(Clone)]
struct Matrix {
    rows: usize,
    cols: usize,
    dtype: Dtype,
    bytes: Vec<u8>,
}

impl Matrix {
    fn size(&self) -> usize {
        self.bytes.len() / (self.rows * self.cols)
    }

    fn transposed(&self) -> Matrix {
        let n = self.size();
        let at = |r: usize, c: usize| &self.bytes[(r * self.cols + c) * n..][..n];
        let bytes = (0..self.cols).flat_map(|c| (0..self.rows).flat_map(move |r| at(r, c).to_vec())).collect();
        Matrix { rows: self.cols, cols: self.rows, bytes, ..*self }
    }

    /// Every `step`-th row from `first` on.
    fn every(&self, first: usize, step: usize, rows: usize) -> Matrix {
        let n = self.size() * self.cols;
        let bytes = (0..rows).flat_map(|r| self.bytes[(first + step * r) * n..][..n].to_vec()).collect();
        Matrix { rows, bytes, ..*self }
    }

    /// The rows of both: one behind the other, or alternating.
    fn joined(&self, other: &Matrix, alternate: bool) -> Matrix {
        let n = self.size() * self.cols;
        let pairs = self.bytes.chunks(n).zip(other.bytes.chunks(n));
        let bytes = match alternate {
            true => pairs.flat_map(|(a, b)| [a, b].concat()).collect(),
            false => [&self.bytes[..], &other.bytes[..]].concat(),
        };
        Matrix { rows: self.rows + other.rows, bytes, ..*self }
    }
}

/// The gate, up and down matrices of an expert.
type Expert = [Matrix; 3];

/// The experts of a layer, and what stands before their names: `model.layers.1.mlp.experts`.
type Layers = BTreeMap<String, Vec<Expert>>;

/// Takes the experts out of a golden, however it has them.
fn taken(name: &str, data: &mut Data) -> Layers {
    let mut layers = Layers::new();
    let interleaved = name == "gpt_oss";
    let transposed = interleaved || name.starts_with("llama4");
    let is_down = |n: &str| ["down_proj", "w2", "output_linear"].iter().any(|s| n.contains(s));
    let names: Vec<String> = data.keys().cloned().collect();
    for n in names.iter().filter(|n| is_down(n) && !n.ends_with("_bias") && !n.contains("shared")) {
        let together = ["experts.down_proj", "output_linear.weight"].iter().find(|e| n.ends_with(*e));
        if let Some(ending) = together {
            let merged = match *ending {
                "experts.down_proj" => n.replace("down_proj", "gate_up_proj"),
                _ => n.replace("output_linear", "input_linear"),
            };
            let prefix = format!("{}experts", n.strip_suffix(ending).unwrap());
            let all = split(data.remove(&merged).unwrap(), transposed).into_iter();
            let experts = all.zip(split(data.remove(n).unwrap(), transposed)).map(|(pair, down)| {
                let (rows, step) = (pair.rows / 2, if interleaved { 2 } else { 1 });
                [pair.every(0, step, rows), pair.every(if interleaved { 1 } else { rows }, step, rows), down]
            });
            layers.insert(prefix, experts.collect());
        } else if let Some((prefix, _)) = n.split_once("experts.0.") {
            let leaves = if n.contains(".w2.") { ["w1", "w3", "w2"] } else { ["gate_proj", "up_proj", "down_proj"] };
            let one = |e: usize, leaf: &str| format!("{prefix}experts.{e}.{leaf}.weight");
            let count = (0..).take_while(|e| names.contains(&one(*e, leaves[0]))).count();
            let mut take = |e: usize, leaf: &str| split(data.remove(&one(e, leaf)).unwrap(), false).remove(0);
            let experts = (0..count).map(|e| leaves.map(|leaf| take(e, leaf)));
            layers.insert(format!("{prefix}experts"), experts.collect());
        }
    }
    assert!(!layers.is_empty(), "{name}");
    layers
}

/// The matrices of a tensor `[E, rows, cols]` or `[rows, cols]`.
fn split((dtype, shape, bytes): (Dtype, Vec<usize>, Vec<u8>), transposed: bool) -> Vec<Matrix> {
    let [rows, cols] = shape[shape.len() - 2..] else { panic!("{shape:?}") };
    let count = shape.iter().product::<usize>() / (rows * cols);
    let whole = bytes.chunks(bytes.len() / count).map(|b| Matrix { rows, cols, dtype, bytes: b.to_vec() });
    whole.map(|m| if transposed { m.transposed() } else { m }).collect()
}

/// Ways to store the experts of a layer.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// A tensor a role and expert.
    Each,
    /// The same, gate and up in one.
    EachMerged,
    /// Two tensors a layer, as transformers 5 has them in memory.
    Merged,
    /// The same transposed, as GPT-OSS and Llama 4 have them.
    Transposed,
    /// Three tensors a layer.
    Apart,
}

const FORMS: [Form; 5] = [Form::Each, Form::EachMerged, Form::Merged, Form::Transposed, Form::Apart];

/// Puts experts into a file in a form.
fn put(data: &mut Data, name: &str, prefix: &str, experts: &[Expert], form: Form) {
    let mut add = |name: String, all: &[Matrix]| {
        let m = &all[0];
        let mut shape = vec![m.rows, m.cols];
        if !name.ends_with(".weight") {
            shape.insert(0, all.len());
        }
        data.insert(name, (m.dtype, shape, all.iter().flat_map(|m| m.bytes.clone()).collect()));
    };
    let role = |i: usize| experts.iter().map(|e| e[i].clone()).collect::<Vec<_>>();
    let pairs: Vec<Matrix> = experts.iter().map(|e| e[0].joined(&e[1], name == "gpt_oss")).collect();
    let flipped = |all: &[Matrix]| all.iter().map(Matrix::transposed).collect::<Vec<_>>();
    // What the published files call them.
    let short = ["mixtral", "phimoe", "minimax_m2", "lfm2_moe", "mini_mixtral"].contains(&name);
    let leaves = if short { ["w1", "w3", "w2"] } else { ["gate_proj", "up_proj", "down_proj"] };
    match form {
        Form::Each => {
            for (e, expert) in experts.iter().enumerate() {
                leaves
                    .iter()
                    .zip(expert)
                    .for_each(|(l, m)| add(format!("{prefix}.{e}.{l}.weight"), std::slice::from_ref(m)));
            }
        }
        Form::EachMerged => {
            for (e, (expert, pair)) in experts.iter().zip(&pairs).enumerate() {
                add(format!("{prefix}.{e}.gate_up_proj.weight"), std::slice::from_ref(pair));
                add(format!("{prefix}.{e}.{}.weight", leaves[2]), &[expert[2].clone()]);
            }
        }
        Form::Merged => {
            add(format!("{prefix}.gate_up_proj"), &pairs);
            add(format!("{prefix}.down_proj"), &role(2));
        }
        Form::Transposed => {
            add(format!("{prefix}.gate_up_proj"), &flipped(&pairs));
            add(format!("{prefix}.down_proj"), &flipped(&role(2)));
        }
        // Square matrices do not tell that they are transposed: these are as the family has them.
        Form::Apart if name == "gpt_oss" => {
            leaves.iter().enumerate().for_each(|(i, l)| add(format!("{prefix}.{l}"), &flipped(&role(i))))
        }
        Form::Apart => leaves.iter().enumerate().for_each(|(i, l)| add(format!("{prefix}.{l}"), &role(i))),
    }
}

/// A golden with its experts in a form, under the names of its own module.
fn rewritten(name: &str, form: Form) -> Data {
    let mut data = tensors(name);
    for (prefix, experts) in taken(name, &mut data) {
        put(&mut data, name, &prefix, &experts, form);
    }
    data
}

#[test]
fn experts_in_every_form() {
    for name in &goldens() {
        for form in FORMS {
            same_as_golden(name, &format!("{form:?}"), &rewritten(name, form));
        }
    }
}

/// What transformers 5.24 renames in memory beside the experts (`conversion_mapping.py`), as pairs of a published and the module's
/// part of a name.
const IN_MEMORY: &[(&str, &[(&str, &str)])] = &[
    ("mixtral", &[(".block_sparse_moe.", ".mlp.")]),
    ("minimax_m2", &[(".block_sparse_moe.", ".mlp.")]),
    ("phimoe", &[(".block_sparse_moe.gate.", ".mlp.router."), (".block_sparse_moe.", ".mlp.")]),
    ("granitemoe", &[("block_sparse_moe.router.layer.", "block_sparse_moe.router.")]),
    ("granitemoeshared", &[("block_sparse_moe.router.layer.", "block_sparse_moe.router.")]),
    ("ernie4_5_moe", &[("mlp.moe_statics.", "mlp.gate.moe_statics.")]),
];

#[test]
fn names_of_modules_in_memory() {
    for name in goldens().iter().filter(|n| !["bailing_moe_v2", "mini_mixtral"].contains(&n.as_str())) {
        let pairs = IN_MEMORY.iter().find(|(n, _)| n == name).map_or(&[][..], |(_, p)| *p);
        let own = name == "gpt_oss" || name.starts_with("llama4");
        let form = if own { Form::Transposed } else { Form::Merged };
        let renamed = |n: &str| pairs.iter().fold(n.to_string(), |n, (from, to)| n.replace(from, to));
        let data = rewritten(name, form).into_iter().map(|(n, t)| (renamed(&n), t)).collect();
        same_as_golden(name, "in memory", &data);
    }
}

/// The places where models have their text model, and the body alone, without its output matrix.
#[test]
fn text_models_one_level_down() {
    for (name, [body, beside]) in [
        ("mixtral", ["model.language_model.", ""]),
        ("qwen3_5_moe", ["language_model.model.", "language_model."]),
        ("deepseek_v3", ["thinker.model.", "thinker."]),
        ("glm4_moe", ["", ""]),
    ] {
        let place = |n: String| match n.strip_prefix("model.") {
            Some(rest) => format!("{body}{rest}"),
            None => format!("{beside}{n}"),
        };
        same_as_golden(name, body, &tensors(name).into_iter().map(|(n, t)| (place(n), t)).collect());
    }
}

/// An expert in F32 among others in BF16, or the other way, holds the same numbers.
#[test]
fn experts_of_different_types() {
    let wide = |m: &Matrix| Matrix {
        dtype: Dtype::F32,
        bytes: m.bytes.chunks(2).flat_map(|b| [0, 0, b[0], b[1]]).collect(),
        ..*m
    };
    for name in ["qwen3_moe", "mixtral", "deepseek_v3", "lfm2_moe"] {
        let mut data = tensors(name);
        for (prefix, mut experts) in taken(name, &mut data) {
            experts[0][2] = wide(&experts[0][2]);
            experts[3] = experts[3].each_ref().map(wide);
            put(&mut data, name, &prefix, &experts, Form::Each);
        }
        same_as_golden(name, "two types", &data);
    }
}

/// Matrices of experts that fit neither way, and one expert that is not there, are named.
#[test]
fn alarm_experts_that_do_not_fit() {
    let refusal = |data: &Data| {
        let (_dir, ckpt) = opened("qwen3_moe", data, |_| {});
        build(&ckpt).unwrap_err().to_string()
    };
    let mut data = rewritten("qwen3_moe", Form::Merged);
    let name = data.keys().find(|n| n.ends_with("experts.gate_up_proj")).unwrap().clone();
    let t = data.get_mut(&name).unwrap();
    t.1.swap(0, 1);
    assert!(refusal(&data).contains(&name), "{}", refusal(&data));
    let mut data = rewritten("qwen3_moe", Form::Each);
    let name = data.keys().find(|n| n.contains("experts.5.up_proj")).unwrap().clone();
    data.remove(&name);
    assert!(refusal(&data).contains(&name), "{}", refusal(&data));
}
