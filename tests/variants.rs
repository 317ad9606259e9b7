//! Forms of checkpoints that no golden has: MXFP4 experts and FP8 matrices as Hugging Face stores them, and rotations of long
//! contexts.

use crate::{
    goldens::{folder, forward, golden},
    support::{Target, compare, load},
};
use moeray::{
    file::{
        self, Bytes, Checkpoint,
        synth::{Shape, Synthetic},
    },
    ir::Op,
    model::{self, Definition},
    quant::{self, DType},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::json;
use std::{collections::BTreeMap, path::Path};

pub type Data = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A golden's tensors.
pub fn tensors(name: &str) -> Data {
    let bytes = std::fs::read(folder(name).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(n, t)| (n.to_string(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect()
}

/// A golden's config, edited, as a model with these tensors.
fn built(name: &str, data: &Data, edit: impl FnOnce(&mut serde_json::Value)) -> Definition {
    model::build(&opened(name, data, edit).1, &model::Options::default()).unwrap()
}

/// A folder with these tensors and a golden's config, edited.
pub fn opened(
    name: &str,
    data: &Data,
    edit: impl FnOnce(&mut serde_json::Value),
) -> (tempfile::TempDir, file::Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    let config = std::fs::read(folder(name).join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    edit(&mut config);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    write(&dir.path().join("model.safetensors"), data);
    let ckpt = file::open(dir.path()).unwrap();
    (dir, ckpt)
}

fn write(path: &Path, data: &Data) {
    let views = data.iter().map(|(n, (d, s, b))| (n.as_str(), TensorView::new(*d, s.clone(), b).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

pub fn logits(d: &Definition, target: Target, ids: &[u32]) -> Option<Vec<f32>> {
    Some(forward(&*load(target, &d.program)?, ids, &[ids.len()]).swap_remove(0).f32)
}

/// Experts in MXFP4: blocks and scales apart, two neighbouring weights a byte, rows of gate and up alternating. They give
/// the logits of the same numbers stored as float matrices, transposed.
#[test]
fn mxfp4_blocks_and_scales() {
    let (mut packed, mut floats) = (tensors("gpt_oss"), tensors("gpt_oss"));
    let names: Vec<String> = packed.keys().filter(|n| n.ends_with("_proj") && n.contains("experts")).cloned().collect();
    assert_eq!(names.len(), 6);
    for name in names {
        let (_, shape, bytes) = packed.remove(&name).unwrap();
        let [experts, inp, out] = shape[..] else { panic!("{shape:?}") };
        let number = |i: usize| f32::from_bits(u32::from(u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])) << 16);
        let (mut blocks, mut scales, mut back) = (vec![], vec![], vec![0u8; 4 * experts * inp * out]);
        for e in 0..experts {
            for o in 0..out {
                let row: Vec<f32> = (0..inp).map(|i| number((e * inp + i) * out + o)).collect();
                let mut coded = vec![];
                quant::quantize(DType::MXFP4, &row, &mut coded).unwrap();
                for b in coded.chunks(17) {
                    let nibble = |i: usize| (b[1 + i % 16] >> (4 * (i / 16))) & 15;
                    scales.push(b[0]);
                    blocks.extend((0..16).map(|j| nibble(2 * j) | nibble(2 * j + 1) << 4));
                }
                let mut plain = vec![0.0; inp];
                quant::dequantize(DType::MXFP4, &coded, &mut plain).unwrap();
                for (i, v) in plain.iter().enumerate() {
                    back[4 * ((e * inp + i) * out + o)..][..4].copy_from_slice(&v.to_le_bytes());
                }
            }
        }
        floats.insert(name.clone(), (Dtype::F32, shape.clone(), back));
        packed.insert(format!("{name}_blocks"), (Dtype::U8, vec![experts, out, inp / 32, 16], blocks));
        packed.insert(format!("{name}_scales"), (Dtype::U8, vec![experts, out, inp / 32], scales));
    }
    let ids = golden("gpt_oss").ids;
    let want = logits(&built("gpt_oss", &floats, |_| {}), Target::Reference, &ids).unwrap();
    assert!(compare::check(&golden("gpt_oss").logits, &want, 1e-6).is_err(), "the rounding shows");
    let d = built("gpt_oss", &packed, |_| {});
    for (target, tolerance) in [(Target::Reference, 1e-13), (Target::Cpu, 1e-6), (Target::Wgpu, 1e-9)] {
        let Some(got) = logits(&d, target, &ids) else { continue };
        compare::check(&got, &want, tolerance).unwrap_or_else(|e| panic!("{target:?}: {e}"));
    }
}

/// LongRoPE: contexts up to the one of training take the short factors, longer ones the long factors.
#[test]
fn long_rope_follows_the_context() {
    let data = tensors("phimoe");
    let (short, long) = ([1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0], [1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0]);
    let d = built("phimoe", &data, |c| {
        c["rope_parameters"] = json!({
            "rope_type": "longrope", "rope_theta": 1e6, "short_factor": short, "long_factor": long,
            "original_max_position_embeddings": 20, "short_mscale": 1.1, "long_mscale": 1.25,
        });
    });
    let ids = golden("phimoe").ids;
    for (n, factors, scale) in [(20, short, 1.1), (24, long, 1.25)] {
        // The same from plain frequencies, divided here.
        let mut plain = built("phimoe", &data, |_| {});
        let mut graph = (*plain.program.graph).clone();
        for node in &mut graph.nodes {
            if let Op::Rope(r) = &mut node.op {
                r.inv_freq = r.inv_freq.iter().zip(factors).map(|(f, d)| f / d as f32).collect();
                r.scale = scale;
            }
        }
        plain.program.graph = std::sync::Arc::new(graph);
        let want = logits(&plain, Target::Reference, &ids[..n]).unwrap();
        for target in [Target::Reference, Target::Cpu, Target::Wgpu] {
            let Some(got) = logits(&d, target, &ids[..n]) else { continue };
            compare::check(&got, &want, 1e-10).unwrap_or_else(|e| panic!("{n} positions on {target:?}: {e}"));
        }
    }
}

/// A BF16 matrix as FP8 with a scale for each block, and what it says then as BF16.
fn fp8(bytes: &[u8], [rows, cols]: [usize; 2], [h, w]: [usize; 2]) -> (Vec<u8>, Vec<f32>, Vec<u8>) {
    let x: Vec<f32> = bytes.chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
    let across = cols.div_ceil(w);
    let mut scales = vec![0f32; rows.div_ceil(h) * across];
    let block = |i: usize| i / cols / h * across + i % cols / w;
    x.iter().enumerate().for_each(|(i, v)| scales[block(i)] = scales[block(i)].max(v.abs() / 448.0));
    let table: Vec<(u8, f32)> = (0..=255).map(|b| (b, quant::f8_e4m3(b))).filter(|(_, v)| v.is_finite()).collect();
    let nearest = |v: f32| table.iter().min_by(|a, b| (a.1 - v).abs().total_cmp(&(b.1 - v).abs())).unwrap().0;
    let coded: Vec<u8> = x.iter().enumerate().map(|(i, v)| nearest(v / scales[block(i)])).collect();
    let back = coded.iter().enumerate().map(|(i, b)| half::bf16::from_f32(quant::f8_e4m3(*b) * scales[block(i)]));
    let back = back.flat_map(half::bf16::to_le_bytes).collect();
    (coded, scales, back)
}

type Block = [usize; 2];

/// A golden with the matrices of its layers, but the routers, in FP8; and the same numbers as BF16.
fn in_fp8(name: &str, block: Block) -> (Data, Data) {
    let (mut packed, mut floats) = (tensors(name), tensors(name));
    let is_matrix = |n: &str| n.contains("_proj") || n.contains(".experts.") || n.contains("shared_experts");
    let names: Vec<String> = packed.keys().filter(|n| n.contains(".layers.") && is_matrix(n)).cloned().collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        let (dtype, shape, bytes) = packed.remove(&name).unwrap();
        let [rows, cols] = shape[..] else { panic!("{name}: {shape:?}") };
        assert_eq!(dtype, Dtype::BF16);
        let (coded, scales, back) = fp8(&bytes, [rows, cols], block);
        let table = vec![rows.div_ceil(block[0]), cols.div_ceil(block[1])];
        let scales = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        packed.insert(format!("{name}_scale_inv"), (Dtype::F32, table, scales));
        packed.insert(name.clone(), (Dtype::F8_E4M3, shape.clone(), coded));
        floats.insert(name, (Dtype::BF16, shape, back));
    }
    (packed, floats)
}

/// What a config says of its FP8.
fn says_fp8(c: &mut serde_json::Value, block: Block) {
    c["quantization_config"] =
        json!({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": block});
}

/// FP8 with a scale for each block gives the logits of the same numbers stored as BF16, from the folder and from the GGUF
/// made of it; experts are made when they are read and not before.
#[test]
fn fp8_blocks() {
    for (name, block) in [("deepseek_v3_yarn", [16, 128]), ("minimax_m2", [128, 20])] {
        let (packed, floats) = in_fp8(name, block);
        let ids = golden(name).ids;
        let want = logits(&built(name, &floats, |_| {}), Target::Reference, &ids).unwrap();
        assert!(compare::check(&golden(name).logits, &want, 1e-6).is_err(), "{name}: the rounding shows");
        let d = built(name, &packed, |c| says_fp8(c, block));
        let experts = |(w, _): &(&moeray::ir::WeightDecl, &file::Tensor)| w.name.contains("_exps.");
        let weights = d.program.graph.weights.iter().zip(d.program.weights.iter());
        assert!(weights.filter(experts).all(|(_, t)| !t.is_made() && t.dtype() == DType::BF16), "{name}");
        for (target, tolerance) in [(Target::Reference, 1e-13), (Target::Cpu, 1e-6), (Target::Wgpu, 1e-9)] {
            let Some(got) = logits(&d, target, &ids) else { continue };
            compare::check(&got, &want, tolerance).unwrap_or_else(|e| panic!("{name} on {target:?}: {e}"));
        }
        let (_dir, ckpt) = opened(name, &packed, |c| says_fp8(c, block));
        let gguf = model::to_gguf(&ckpt).unwrap();
        assert!(gguf.tensors().filter(|(n, _)| n.contains("_exps.")).all(|(_, t)| !t.is_made()), "{name}");
        let d = model::build(&gguf, &model::Options::default()).unwrap();
        let got = logits(&d, Target::Reference, &ids).unwrap();
        compare::check(&got, &want, 1e-11).unwrap_or_else(|e| panic!("{name} as GGUF: {e}"));
    }
}

/// Other ways to store weights in fewer bits are refused by name.
#[test]
fn alarm_other_ways_to_store_weights() {
    let (name, block) = ("minimax_m2", [128, 128]);
    let (packed, _) = in_fp8(name, block);
    let refusal = |data: &Data, edit: &dyn Fn(&mut serde_json::Value)| {
        let (_dir, ckpt) = opened(name, data, |c| edit(c));
        model::build(&ckpt, &model::Options::default()).unwrap_err().to_string()
    };
    let scale = "model.layers.1.self_attn.q_proj.weight_scale_inv";
    let mut without = packed.clone();
    without.remove(scale);
    assert!(refusal(&without, &|c| says_fp8(c, block)).contains(scale));
    assert!(refusal(&packed, &|c| says_fp8(c, [16, 16])).contains("blocks of 16 x 16"));
    assert!(refusal(&packed, &|c| says_fp8(c, [0, 16])).contains("weight_block_size"));
    let mut broken = packed.clone();
    broken.get_mut(scale).unwrap().2 = f32::NAN.to_le_bytes().to_vec();
    assert!(refusal(&broken, &|c| says_fp8(c, block)).contains("NaN"));
    let awq = |c: &mut serde_json::Value| c["quantization_config"] = json!({"quant_method": "awq", "bits": 4});
    assert!(refusal(&tensors(name), &awq).contains("`awq`"));
}

/// The factors that llama.cpp's converter puts beside NVFP4 matrices are refused by name, with what would help.
#[test]
fn alarm_factors_beside_nvfp4() {
    let shape = Shape::preset("tiny").unwrap();
    let refusal = |beside: &str, dtype: DType| {
        let synthetic = Synthetic::new(&shape, 1, |_, _| dtype).unwrap();
        let ckpt = synthetic.checkpoint(&mut |_, _| Ok(())).unwrap();
        let mut all: Vec<_> = ckpt.tensors().map(|(name, t)| (name.to_string(), t.clone())).collect();
        let factor = Bytes::from_vec(0.5f32.to_le_bytes().to_vec());
        all.push((beside.into(), file::Tensor::new(DType::F32, vec![1], vec![factor]).unwrap()));
        let ckpt = Checkpoint::from_parts(ckpt.meta().clone(), all).unwrap();
        model::build(&ckpt, &model::Options::default()).unwrap_err().to_string()
    };
    for beside in ["blk.1.ffn_down_exps.scale", "blk.0.attn_q.input_scale"] {
        let e = refusal(beside, DType::NVFP4);
        assert!(e.contains(beside) && e.contains("NVFP4") && e.contains("Q4_K_M"), "{e}");
        assert!(!refusal(beside, DType::Q8_0).contains("NVFP4"));
    }
}
