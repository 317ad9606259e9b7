//! Weights by their canonical (GGUF) names, whatever container and naming they come from.

use super::{
    names::{ExpertLayout, Names, Root, gguf_candidates},
    tensors::{as_f32, fitted, numbers, taps_first},
};
use crate::{
    error::{Error, Result},
    file::{Bytes, Checkpoint, Format, Tensor},
    graph::Builder,
    ir::{Graph, WeightId},
    quant::DType,
};
use std::{collections::HashSet, ops::Range};

/// A graph, its weights, and the parts of the file that were left out.
pub(super) type Built = (Graph, Vec<Tensor>, Vec<String>);

/// Declares weights in a graph and finds their tensors. Every tensor of the file must be used by the end: one that is not
/// would be a part of the model that this architecture does not compute.
pub struct Loader<'a> {
    /// The graph under construction.
    pub b: Builder,
    ckpt: &'a Checkpoint,
    names: &'a Names,
    weights: Vec<Tensor>,
    used: HashSet<String>,
    /// Weights that were left aside, and why.
    left: Vec<String>,
    root: Root,
}

impl<'a> Loader<'a> {
    /// A loader from `ckpt`, whose tensors are called as `names` says where it is not GGUF, and of which some were `read`
    /// already, as hyperparameters.
    pub fn new(ckpt: &'a Checkpoint, names: &'a Names, read: Vec<String>) -> Self {
        let usual = names.candidates("token_embd.weight").into_iter().next().unwrap_or_default();
        let begins = |prefix: &str| ckpt.infos().iter().any(|t| t.name.starts_with(prefix));
        Loader {
            b: Builder::new(),
            ckpt,
            names,
            weights: vec![],
            left: vec![],
            used: read.into_iter().collect(),
            root: Root::of(&usual, |n| ckpt.info(n).is_some(), begins),
        }
    }

    /// The names that a canonical weight may have in this file, the usual one first: `blk.3.attn_q.weight` →
    /// `model.layers.3.self_attn.q_proj.weight`. `{}` stands for the number of an expert.
    pub(super) fn candidates(&self, canonical: &str) -> Vec<String> {
        match self.is_gguf() {
            true => gguf_candidates(canonical),
            false => self.names.candidates(canonical).into_iter().map(|n| self.root.place(n)).collect(),
        }
    }

    /// The file's name of a canonical weight: the first of its names that the file has, or the usual one where it has none.
    pub(super) fn file_name(&self, canonical: &str) -> String {
        let mut all = self.candidates(canonical);
        let at = all.iter().position(|n| self.holds(n) || self.holds_each(n)).unwrap_or(0);
        all.swap_remove(at)
    }

    /// Leaves a weight of the file aside, and says so among the parts that are left out.
    pub fn ignore(&mut self, canonical: &str, why: &str) {
        let name = self.file_name(canonical);
        if self.holds(&name) {
            self.left.push(format!("{name} ({why})"));
            self.used.insert(name);
        }
    }

    /// Whether the file has this weight.
    pub fn has(&self, canonical: &str) -> bool {
        self.ckpt.info(&self.file_name(canonical)).is_some()
    }

    /// Whether the file has a tensor of this name, the file's own.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.ckpt.info(name).is_some()
    }

    /// Whether the file has the first of the tensors that a name with braces stands for.
    pub(super) fn holds_each(&self, name: &str) -> bool {
        name.contains("{}") && self.holds(&name.replace("{}", "0"))
    }

    /// The shape of a tensor of the file, by the file's name.
    pub(super) fn shape_of(&self, name: &str) -> Option<&[usize]> {
        self.ckpt.info(name).map(|t| t.shape.as_slice())
    }

    /// How the file stores experts that lie in one tensor, where its shape does not tell.
    pub(super) fn expert_layout(&self) -> ExpertLayout {
        if self.is_gguf() { ExpertLayout::Rows } else { self.names.experts }
    }

    /// The bytes of a tensor whose type is none of weights.
    pub(super) fn take_raw(&mut self, name: &str) -> Result<Bytes> {
        self.used.insert(name.to_string());
        let raw = self.ckpt.info(name).and_then(|t| t.raw.clone());
        raw.ok_or_else(|| Error::Model(format!("tensor `{name}` is missing from the file, or not of bytes")))
    }

    pub(super) fn take(&mut self, name: &str) -> Result<Tensor> {
        self.used.insert(name.to_string());
        if let Some((t, scales)) = super::stored::fp8(self.ckpt, name)? {
            self.used.insert(scales);
            return Ok(t);
        }
        self.ckpt.require(name).cloned()
    }

    pub(super) fn declare(&mut self, canonical: &str, shape: &[usize], tensor: Tensor) -> Result<WeightId> {
        let tensor = fitted(tensor, shape);
        if tensor.shape() != shape {
            let file = self.file_name(canonical);
            return Err(Error::Model(format!("tensor `{file}` has shape {:?}, expected {shape:?}", tensor.shape())));
        }
        check_finite(canonical, &tensor)?;
        self.weights.push(tensor);
        Ok(self.b.weight(canonical, shape))
    }

    /// A matrix `[out, in]`, in the type it has.
    ///
    /// # Errors
    /// [`Error::Model`] where it is missing or has another shape.
    pub fn matrix(&mut self, canonical: &str, out: usize, inp: usize) -> Result<WeightId> {
        let t = match self.half(canonical, out)? {
            Some(t) => t,
            None => self.take(&self.file_name(canonical))?,
        };
        self.declare(canonical, &[out, inp], t)
    }

    /// The gate or up rows of a dense unit whose two matrices lie in one tensor, gates first (`…ffn_gate_up…`); `None` for
    /// other matrices.
    fn half(&mut self, canonical: &str, out: usize) -> Result<Option<Tensor>> {
        let halves = [("ffn_gate", 0), ("ffn_up", out)];
        let Some((role, first)) = halves.into_iter().find(|(role, _)| canonical.contains(role)) else {
            return Ok(None);
        };
        let merged = self.file_name(&canonical.replace(role, "ffn_gate_up"));
        if self.holds(&self.file_name(canonical)) || !self.holds(&merged) {
            return Ok(None);
        }
        let t = self.take(&merged)?;
        let wrong = || Error::Model(format!("tensor `{merged}` has shape {:?}, expected twice {out} rows", t.shape()));
        let [rows, cols] = t.shape() else { return Err(wrong()) };
        if Some(*rows) != out.checked_mul(2) || t.parts().len() != 1 {
            return Err(wrong());
        }
        let part = t.parts()[0].slice(first * t.row_bytes()..(first + out) * t.row_bytes()).ok_or_else(wrong)?;
        Tensor::new(t.dtype(), vec![out, *cols], vec![part]).map(Some)
    }

    /// The embedding table: as [`Loader::matrix`], and where `rows` is 0 it has as many rows as it has.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn table(&mut self, canonical: &str, rows: usize, cols: usize) -> Result<WeightId> {
        let name = self.file_name(canonical);
        let stored = self.shape_of(&name).and_then(|s| s.first().copied());
        match stored {
            Some(n) if rows == 0 => self.matrix(canonical, n, cols),
            Some(n) if rows != n && self.shape_of(&name) == Some(&[n, cols]) => {
                Err(Error::Model(format!("vocab_size is {rows}, and `{name}` has {n} rows")))
            }
            _ => self.matrix(canonical, rows, cols),
        }
    }

    /// A small matrix as f32 whatever its type: routers, whose choices must not depend on a backend's rounding.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn matrix_f32(&mut self, canonical: &str, out: usize, inp: usize) -> Result<WeightId> {
        let t = as_f32(&self.take(&self.file_name(canonical))?)?;
        self.declare(canonical, &[out, inp], t)
    }

    /// A vector `[n]` as f32.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn vector(&mut self, canonical: &str, n: usize) -> Result<WeightId> {
        let t = as_f32(&self.take(&self.file_name(canonical))?)?;
        self.declare(canonical, &[n], t)
    }

    /// A vector `[n]` as f32, each number through `f`.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn vector_of(&mut self, canonical: &str, n: usize, f: impl Fn(f32) -> f32) -> Result<WeightId> {
        let t = self.take(&self.file_name(canonical))?;
        let values = numbers(&t)?.into_iter().map(f).collect();
        self.declare(canonical, &[n], Tensor::from_f32(t.shape().to_vec(), values)?)
    }

    /// A vector of ones that no file has: of norms without weights.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn ones(&mut self, canonical: &str, n: usize) -> Result<WeightId> {
        self.declare(canonical, &[n], Tensor::from_f32(vec![n], vec![1.0; n])?)
    }

    /// The taps of a convolution of each channel by itself, in the file `[channels, taps]` (or `[channels, 1, taps]`), as
    /// `[taps · channels]` f32, tap by tap.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn conv(&mut self, canonical: &str, channels: usize, taps: usize) -> Result<WeightId> {
        let name = self.file_name(canonical);
        let t = fitted(self.take(&name)?, &[channels, taps]);
        if t.shape() != [channels, taps] {
            let shape = t.shape();
            return Err(Error::Model(format!("tensor `{name}` has shape {shape:?}, expected [{channels}, {taps}]")));
        }
        self.declare(canonical, &[taps * channels], taps_first(&t, channels, taps)?)
    }

    /// Some rows of a matrix of shape `shape`, as a matrix of its own with the name `part`; nothing is copied.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn rows(
        &mut self,
        canonical: &str,
        shape: [usize; 2],
        part: &str,
        rows: impl Iterator<Item = Range<usize>>,
    ) -> Result<WeightId> {
        let name = self.file_name(canonical);
        let t = fitted(self.take(&name)?, &shape);
        if t.shape() != shape {
            return Err(Error::Model(format!("tensor `{name}` has shape {:?}, expected {shape:?}", t.shape())));
        }
        let rows: Vec<Range<usize>> = rows.collect();
        let count = rows.iter().map(|r| r.len()).sum();
        // The parts of a tensor are of one length.
        let each = rows.iter().fold(t.rows_per_part(), |g, r| gcd(gcd(g, r.start), gcd(g, r.end))).max(1);
        let bytes = t.row_bytes();
        let piece = |r: usize| {
            let within = r % t.rows_per_part();
            t.parts().get(r / t.rows_per_part())?.slice(within * bytes..(within + each) * bytes)
        };
        let starts = rows.iter().flat_map(|r| r.clone().step_by(each));
        let parts = starts.map(piece).collect::<Option<Vec<_>>>();
        let parts = parts.ok_or_else(|| Error::Model(format!("tensor `{name}` has fewer rows than {shape:?}")))?;
        let tensor = Tensor::new(t.dtype(), vec![count, shape[1]], parts)?;
        self.declare(part, &[count, shape[1]], tensor)
    }

    /// Whether the names in the file are GGUF's.
    pub fn is_gguf(&self) -> bool {
        self.ckpt.format() == Format::Gguf
    }

    /// The numbers of a small vector that the graph itself has; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Model`] where it cannot be read.
    pub fn numbers(&mut self, canonical: &str) -> Result<Option<Vec<f32>>> {
        if !self.has(canonical) {
            return Ok(None);
        }
        let t = self.take(&self.file_name(canonical))?;
        numbers(&t).map(Some)
    }

    /// Ends loading: the graph, the weights, and a check that nothing in the file was left aside but the parts that a text
    /// model of so many layers does without, which are named.
    ///
    /// # Errors
    /// [`Error::Unsupported`] that names tensors which this architecture does not use.
    pub fn finish(self, layers: usize) -> Result<Built> {
        let ignorable = |n: &str| n.ends_with(".inv_freq") || n.ends_with(".masked_bias");
        let unused = |n: &&str| !self.used.contains(*n) && !ignorable(n);
        let before = if self.is_gguf() { "blk.".into() } else { self.root.place(self.names.layers.to_string()) };
        let bare = |n: &'a str| if self.is_gguf() { n } else { self.root.strip(n) };
        let mut skipped = vec![];
        let mut needed = |n: &&'a str| match super::optional::part([n, bare(n)], &before, layers, |n| self.holds(n)) {
            Some(part) => {
                skipped.push(part);
                false
            }
            None => true,
        };
        let ckpt = self.ckpt;
        let unused = ckpt.infos().iter().map(|t| t.name.as_str()).filter(unused);
        let left: Vec<&str> = unused.filter(|n| needed(n)).collect();
        if let Some(scale) = left.iter().find(|n| self.scales_nvfp4(n)) {
            return Err(Error::Unsupported(format!(
                "tensor `{scale}` is a factor on all weights of an NVFP4 matrix, as converted checkpoints of NVIDIA's have them \
                 beside the blocks: not known here yet; a file of the model in another type, such as Q4_K_M, helps"
            )));
        }
        if let Some(first) = left.first() {
            return Err(Error::Unsupported(format!(
                "tensor `{first}`{} is not part of this architecture as it is known here: the file holds a variant \
                 whose results would be wrong without it",
                if left.len() > 1 { format!(" (and {} more)", left.len() - 1) } else { String::new() }
            )));
        }
        let mut left = super::optional::words(&skipped);
        left.extend(self.left);
        Ok((self.b.finish(), self.weights, left))
    }
}

impl Loader<'_> {
    /// Whether a tensor is the factor that llama.cpp's converter puts beside an NVFP4 matrix: `blk.0.ffn_gate.scale` (or
    /// `….input_scale`, of activations) beside `blk.0.ffn_gate.weight`, one number, or one for each expert.
    pub(super) fn scales_nvfp4(&self, name: &str) -> bool {
        let stem = name.strip_suffix(".scale").or_else(|| name.strip_suffix(".input_scale"));
        let weight = stem.and_then(|s| self.ckpt.info(&format!("{s}.weight")));
        weight.and_then(|t| t.content.as_ref().ok()).is_some_and(|t| t.dtype() == DType::NVFP4)
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Float tensors larger than this are not read at load, so that opening a large model stays quick; what they hold shows
/// in the logits, which are checked.
const SCAN_LIMIT: usize = 32 << 20;

/// Refuses infinities and not-a-numbers in float weights.
fn check_finite(name: &str, t: &Tensor) -> Result<()> {
    if t.byte_len() > SCAN_LIMIT || !t.is_made() {
        return Ok(());
    }
    let bad = match t.dtype() {
        DType::F32 => t.parts().iter().any(|p| p.chunks_exact(4).any(|b| b[3] & 0x7f == 0x7f && b[2] & 0x80 == 0x80)),
        DType::F16 => t.parts().iter().any(|p| p.chunks_exact(2).any(|b| b[1] & 0x7c == 0x7c)),
        DType::BF16 => t.parts().iter().any(|p| p.chunks_exact(2).any(|b| b[1] & 0x7f == 0x7f && b[0] & 0x80 == 0x80)),
        _ => false,
    };
    if bad { Err(Error::Model(format!("tensor `{name}` holds NaN or infinity: the file is damaged"))) } else { Ok(()) }
}
