//! Low-rank adapters (LoRA) from files, for a model that is read: llama.cpp's GGUF, and PEFT's folders.
//!
//! - GGUF (`convert_lora_to_gguf.py`): `general.type` = `adapter`, `adapter.lora.alpha`, and for every weight that it changes
//!   `<name>.lora_a` `[r, in]` and `<name>.lora_b` `[out, r]`; of experts `[E, r, in]` and `[E, out, r]`. Rows are in GGUF's order.
//! - PEFT: `adapter_config.json` and `adapter_model.safetensors`, under the checkpoint's own names; of experts one pair an expert,
//!   or pairs of whole parameters (`target_parameters`, see `fused`).

mod fused;
mod gguf;
mod merge;
mod peft;
mod write;

use super::{
    build::{Definition, find},
    params::Params,
};
use crate::{
    error::{Error, Result},
    file::{self, Checkpoint, Format, Tensor},
    graph::{LowRank, with_low_rank},
    model::tensors::numbers,
};
pub use merge::merged;
use std::path::Path;
pub use write::{AdapterForm, write_adapter_gguf, write_adapter_peft};

/// An adapter and how strongly it counts.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterFile {
    /// A GGUF file, or PEFT's folder.
    pub path: std::path::PathBuf,
    /// Factor on what it adds; 1 as it was trained.
    pub scale: f32,
}

impl AdapterFile {
    /// Whether its names and rows are GGUF's.
    ///
    /// # Errors
    /// [`Error::Io`] where it is not there.
    pub fn is_gguf(&self) -> Result<bool> {
        let io = |source| Error::Io { path: self.path.clone(), source };
        Ok(!std::fs::metadata(&self.path).map_err(io)?.is_dir())
    }
}

/// The definition with adapters; `ckpt` is what it was built from.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`] for files that are no adapters; [`Error::Unsupported`] for kinds that are not known here;
/// [`Error::Model`] where one belongs to another model. Each names the file.
pub fn adapted(definition: Definition, ckpt: &Checkpoint, files: &[AdapterFile]) -> Result<Definition> {
    let mut all = vec![];
    for f in files {
        for pair in read(&definition, ckpt, f).map_err(|e| named(&f.path, e))? {
            all.push(filled(pair)?);
        }
    }
    let program = with_low_rank(&definition.program, &all).map_err(|e| match files {
        [one] => named(&one.path, e),
        _ => e,
    })?;
    Ok(Definition { program, ..definition })
}

/// The pairs of one file, its factors in B.
///
/// # Errors
/// As [`adapted`].
pub fn read(definition: &Definition, ckpt: &Checkpoint, f: &AdapterFile) -> Result<Vec<LowRank>> {
    let pairs = match f.is_gguf()? {
        true if ckpt.format() != Format::Gguf => {
            return Err(Error::Unsupported("a GGUF adapter has GGUF's order of rows, and the model is none".into()));
        }
        true => gguf::read(&file::open(&f.path)?, definition, f.scale)?,
        false => {
            let form = find(&Params::new(ckpt)?)?.gguf;
            let pairs = peft::read(&f.path, definition, f.scale)?;
            match ckpt.format() {
                Format::Gguf => peft::as_gguf_rows(pairs, form, &definition.decoder)?,
                Format::SafeTensors => pairs,
            }
        }
    };
    if pairs.is_empty() {
        return Err(Error::Model("the adapter changes nothing".into()));
    }
    Ok(pairs)
}

fn named(path: &Path, e: Error) -> Error {
    let path = path.display();
    match e {
        Error::Model(what) => Error::Model(format!("{path}: {what}")),
        Error::Unsupported(what) => Error::Unsupported(format!("{path}: {what}")),
        other => other,
    }
}

/// The tensor times a factor, f32.
fn scaled(t: &Tensor, factor: f32) -> Result<Tensor> {
    let numbers = numbers(t)?.into_iter().map(|x| x * factor).collect::<Vec<f32>>();
    if numbers.iter().any(|x| !x.is_finite()) {
        return Err(Error::Model("the adapter has numbers that are none (NaN or infinite)".into()));
    }
    Tensor::from_f32(t.shape().to_vec(), numbers)
}

/// The pair with a rank that is a multiple of four: GPUs read rows of float matrices in fours.
fn filled(p: LowRank) -> Result<LowRank> {
    match p.a.shape().len() {
        0 | 1 => Ok(p),
        _ => padded(&p, p.rank().next_multiple_of(4)),
    }
}

/// The same pair with zeros up to a rank.
fn padded(p: &LowRank, rank: usize) -> Result<LowRank> {
    let r = p.rank();
    let (lead, inp) = (&p.a.shape()[..p.a.shape().len() - 2], p.a.cols());
    if r == rank {
        return Ok(p.clone());
    }
    let (mut a, mut b) = (vec![], vec![]);
    for rows in numbers(&p.a)?.chunks((r * inp).max(1)) {
        a.extend_from_slice(rows);
        a.resize(a.len() + (rank - r) * inp, 0.0);
    }
    for row in numbers(&p.b)?.chunks(r.max(1)) {
        b.extend_from_slice(row);
        b.resize(b.len() + rank - r, 0.0);
    }
    let outs = p.b.shape()[p.b.shape().len() - 2];
    Ok(LowRank {
        a: Tensor::from_f32([lead, &[rank, inp]].concat(), a)?,
        b: Tensor::from_f32([lead, &[outs, rank]].concat(), b)?,
        ..p.clone()
    })
}
