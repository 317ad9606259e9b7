//! Checkpoints of random weights in the shapes of well-known models, for measuring speed without a download.
//!
//! The weights are made directly in the wanted quantised types, so nothing larger than the model itself is ever in
//! memory; the text that such a model writes is noise. Equal shape, types and seed give equal bytes on every machine.

mod presets;
mod shape;

pub use presets::PRESETS;
pub use shape::Shape;

use super::{
    bytes::Bytes,
    checkpoint::Checkpoint,
    gguf_write::{TensorSpec, write_gguf},
    metadata::Metadata,
    random::{Maker, STD},
    tensor::Tensor,
};
use crate::{
    error::{Error, Result},
    quant::DType,
};
use std::path::Path;

/// How the values of a tensor are made.
#[derive(Clone, Copy, PartialEq)]
enum Content {
    /// Norm weights.
    Ones,
    /// Biases.
    Zeros,
    /// Normally distributed weights of this standard deviation.
    Random(f32),
}

/// A random model, described but not made yet.
pub struct Synthetic {
    meta: Metadata,
    specs: Vec<TensorSpec>,
    contents: Vec<Content>,
    bytes: u64,
    seed: u64,
}

/// Called with bytes made and bytes in all; an error ends the work and is passed on.
pub type Report<'a> = &'a mut (dyn FnMut(u64, u64) -> Result<()> + Send);

impl Synthetic {
    /// Describes a model of `shape`. `dtype` gives the type of each matrix by name and shape (see [`Shape::tensors`]);
    /// norms, biases and routers are F32, as in real files.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a row is no whole number of blocks of the type, a size overflows or the vocabulary is
    /// too small for a tokenizer.
    pub fn new(shape: &Shape, seed: u64, mut dtype: impl FnMut(&str, &[usize]) -> DType) -> Result<Self> {
        let meta = shape.metadata()?;
        let (mut specs, mut contents, mut bytes) = (Vec::new(), Vec::new(), 0u64);
        for (name, dims) in shape.tensors() {
            let content = match () {
                () if name.contains("norm") => Content::Ones,
                () if name.ends_with(".bias") => Content::Zeros,
                () if name.contains("ffn_gate_inp") => Content::Random(2.5 * STD),
                () => Content::Random(STD),
            };
            let plain = dims.len() == 1 || name.contains("ffn_gate_inp") || name.ends_with(".bias");
            let dtype = if plain { DType::F32 } else { dtype(&name, &dims) };
            let spec = TensorSpec { name, dtype, shape: dims };
            let size = spec.byte_len().ok_or_else(|| {
                let block = dtype.layout().block;
                Error::Invalid(format!(
                    "{}: `{}` {:?} cannot be {dtype}, which takes rows of whole blocks of {block}",
                    shape.name, spec.name, spec.shape
                ))
            })?;
            bytes += size as u64;
            specs.push(spec);
            contents.push(content);
        }
        Ok(Synthetic { meta, specs, contents, bytes, seed })
    }

    /// The size of all tensors, in bytes: the memory that [`Synthetic::checkpoint`] takes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its tensors.
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// Makes the model in memory, on all cores.
    ///
    /// # Errors
    /// [`Error::Invalid`] where memory is short; what `report` returns.
    pub fn checkpoint(&self, report: Report<'_>) -> Result<Checkpoint> {
        let mut made = 0;
        let mut tensors = Vec::with_capacity(self.specs.len());
        for (i, spec) in self.specs.iter().enumerate() {
            let bytes = self.make(i, &mut made, report)?;
            tensors.push((spec.name.clone(), Tensor::new(spec.dtype, spec.shape.clone(), vec![bytes])?));
        }
        Checkpoint::from_parts(self.meta.clone(), tensors)
    }

    /// Writes the same model as a GGUF file, for other engines to be measured on; one tensor is in memory at a time.
    ///
    /// # Errors
    /// As [`Synthetic::checkpoint`] and [`write_gguf`].
    pub fn write(&self, path: &Path, report: Report<'_>) -> Result<()> {
        let mut made = 0;
        write_gguf(path, &self.meta, &self.specs, &mut |i, sink| sink.write(&self.make(i, &mut made, report)?))
    }

    /// The bytes of tensor `i`; `made` counts the bytes of all tensors so far.
    fn make(&self, i: usize, made: &mut u64, report: Report<'_>) -> Result<Bytes> {
        let spec = &self.specs[i];
        let len = spec.byte_len().unwrap_or(0);
        let short =
            |e| Error::Invalid(format!("no memory for the {len} bytes of `{}`: {e}; ask for fewer layers", spec.name));
        let mut map = memmap2::MmapMut::map_anon(len).map_err(short)?;
        let std = match self.contents[i] {
            Content::Random(std) => std,
            Content::Zeros => 0.0,
            Content::Ones => {
                map.chunks_exact_mut(4).for_each(|v| v.copy_from_slice(&1f32.to_le_bytes()));
                0.0
            }
        };
        if std > 0.0 {
            let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(len / (1 << 20) + 1);
            // The names make the seeds, so a layer keeps its weights when the number of layers changes.
            let seed = spec.name.bytes().fold(self.seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
            Maker::new(spec.dtype, std).fill(seed, &mut map, threads, &mut |n| {
                *made += n;
                report(*made, self.bytes)
            })?;
        } else {
            *made += len as u64;
            report(*made, self.bytes)?;
        }
        Ok(Bytes::from_anonymous(map))
    }
}
