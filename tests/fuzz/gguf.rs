//! GGUF: values of its metadata, its tensors, its bytes.

use super::values;
use crate::{
    export::{bytes_of, tensors as list},
    goldens::folder,
    support::{
        one::{OneSequence, Step, one},
        rng::Rng,
    },
};
use moeray::{
    backend::reference,
    file::{self, Bytes, Checkpoint, Metadata, Tensor, Value},
    model,
    quant::{DType, KvType},
};
use std::sync::OnceLock;

/// A golden as GGUF.
struct Base {
    meta: Metadata,
    tensors: Vec<(String, Tensor)>,
    bytes: Vec<u8>,
    /// Where the data of the tensors begin.
    head: usize,
}

/// Every golden that GGUF can say.
fn bases() -> &'static [Base] {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    BASES.get_or_init(|| {
        let folders = std::fs::read_dir(folder("")).unwrap().map(|e| e.unwrap().path());
        let mut folders: Vec<_> = folders.filter(|p| p.join("config.json").is_file()).collect();
        folders.sort();
        let base = |path: &std::path::PathBuf| {
            let gguf = model::to_gguf(&file::open(path).unwrap()).ok()?;
            let (meta, tensors) = (gguf.meta().clone(), list(&gguf));
            let bytes = bytes_of(&meta, &tensors);
            let first = file::open_bytes(Bytes::from_vec(bytes.clone())).unwrap();
            let head = first.infos().iter().map(|t| t.offset).min().unwrap() as usize;
            Some(Base { meta, tensors, bytes, head })
        };
        folders.iter().filter_map(base).collect()
    })
}

/// Builds a model of what was read, loads it where it can be built, and runs a token.
pub fn used(ckpt: &Checkpoint) -> moeray::Result<()> {
    let d = model::build(ckpt, &model::Options::default())?;
    let _ = (format!("{:?}", d.decoder), model::layers(&d.program.graph));
    let loaded = reference::load(d.program)?;
    let mut runner = loaded.runner(one(4, 2, KvType::F32))?;
    let mut out = vec![];
    runner.run(Step { tokens: &[1, 2], past: 0, outputs: 1, inputs: &[] }, &mut out)?;
    runner.run(Step { tokens: &[3], past: 2, outputs: 1, inputs: &[] }, &mut out)
}

fn size_of(tensors: &[(String, Tensor)]) -> usize {
    tensors.iter().map(|(_, t)| t.byte_len()).sum()
}

/// Other values under a few keys, keys that are gone, keys that were not there.
pub fn values(rng: &mut Rng) -> usize {
    let base = &bases()[rng.below(bases().len())];
    let mut entries: Vec<(String, Value)> = base.meta.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
    let arch = base.meta.str("general.architecture").unwrap();
    const MORE: [&str; 14] = [
        "nextn_predict_layers",
        "expert_gating_func",
        "expert_weights_norm",
        "expert_weights_scale",
        "expert_group_count",
        "expert_group_used_count",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "attention.sliding_window",
        "attention.clamp_kqv",
        "attention.scale",
        "rope.scaling.yarn_log_multiplier",
        "expert_shared_count",
    ];
    for _ in 0..1 + rng.below(3) {
        let i = rng.below(entries.len());
        match rng.below(8) {
            0 => drop(entries.remove(i)),
            1 => {
                let key = format!("{arch}.{}", MORE[rng.below(MORE.len())]);
                entries.retain(|(k, _)| *k != key);
                entries.push((key, values::value(rng)));
            }
            _ => entries[i].1 = values::value(rng),
        }
    }
    let meta = Metadata::from_entries(entries).unwrap();
    // An error is an answer.
    let _ = used(&Checkpoint::from_parts(meta, base.tensors.clone()).unwrap());
    size_of(&base.tensors)
}

/// Tensors that are gone, called otherwise, of another shape or another type.
pub fn tensors(rng: &mut Rng) -> usize {
    let base = &bases()[rng.below(bases().len())];
    let mut all = base.tensors.clone();
    for _ in 0..1 + rng.below(2) {
        let (i, j) = (rng.below(all.len()), rng.below(all.len()));
        match rng.below(5) {
            0 => drop(all.remove(i)),
            1 => {
                let (a, b) = (all[i].0.clone(), all[j].0.clone());
                (all[i].0, all[j].0) = (b, a);
            }
            2 => all[i].0 = values::spliced(rng, &all[i].0),
            3 => all[i].1 = all[j].1.clone(),
            _ => all[i].1 = other(rng, &all[i].1),
        }
    }
    if let Ok(ckpt) = Checkpoint::from_parts(base.meta.clone(), all) {
        let _ = used(&ckpt);
    }
    size_of(&base.tensors)
}

/// A tensor of another shape with as many weights, or with other numbers in it.
fn other(rng: &mut Rng, t: &Tensor) -> Tensor {
    let weights = t.rows() * t.cols();
    let divisor = (1..=weights.min(64)).rev().find(|n| weights.is_multiple_of(*n) && rng.below(2) == 0).unwrap_or(1);
    let shape = match rng.below(3) {
        0 => vec![weights / divisor, divisor],
        1 => vec![divisor, weights / divisor],
        _ => vec![weights],
    };
    match rng.below(3) {
        0 => Tensor::from_f32(t.shape().to_vec(), vec![values::float(rng) as f32; weights]).unwrap(),
        1 => {
            let n = DType::ALL[rng.below(DType::ALL.len())];
            let blocks = n.row_bytes(t.cols()).map(|b| vec![rng.below(256) as u8; b * t.rows()]);
            let made = blocks.and_then(|b| Tensor::new(n, t.shape().to_vec(), vec![Bytes::from_vec(b)]).ok());
            made.unwrap_or_else(|| t.clone())
        }
        _ => t.reshaped(shape).unwrap_or_else(|_| t.clone()),
    }
}

/// Damaged bytes, mostly of the head.
pub fn bytes(rng: &mut Rng) -> usize {
    let base = &bases()[rng.below(bases().len())];
    let mut bytes = base.bytes.clone();
    let head = if rng.below(8) == 0 { bytes.len() } else { base.head };
    values::damaged(rng, &mut bytes, head);
    let size = bytes.len();
    if let Ok(ckpt) = file::open_bytes(Bytes::from_vec(bytes)) {
        let _ = used(&ckpt);
    }
    size
}
