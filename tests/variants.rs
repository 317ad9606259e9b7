//! Forms of checkpoints that no golden has: MXFP4 experts as Hugging Face stores them, and rotations of long contexts.

use crate::{
    goldens::{folder, forward, golden},
    support::{Target, compare, load},
};
use moeray::{
    file,
    ir::Op,
    model::{self, Definition},
    quant::{self, DType},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::json;
use std::{collections::BTreeMap, path::Path};

type Data = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A golden's tensors.
fn tensors(name: &str) -> Data {
    let bytes = std::fs::read(folder(name).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(n, t)| (n.to_string(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect()
}

/// A folder with these tensors and a golden's config, edited.
fn built(name: &str, data: &Data, edit: impl FnOnce(&mut serde_json::Value)) -> Definition {
    let dir = tempfile::tempdir().unwrap();
    let config = std::fs::read(folder(name).join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    edit(&mut config);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    write(&dir.path().join("model.safetensors"), data);
    model::build(&file::open(dir.path()).unwrap(), &model::Options::default()).unwrap()
}

fn write(path: &Path, data: &Data) {
    let views = data.iter().map(|(n, (d, s, b))| (n.as_str(), TensorView::new(*d, s.clone(), b).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn logits(d: &Definition, target: Target, ids: &[u32]) -> Option<Vec<f32>> {
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
