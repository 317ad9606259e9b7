//! The matrices and biases of experts, in the ways that files store them: one tensor a role, one an expert, gate and up
//! merged, transposed, or as MXFP4 blocks and scales.

use super::{
    loader::Loader,
    names::ExpertLayout,
    tensors::{as_f32, numbers},
};
use crate::{
    error::{Error, Result},
    file::{Bytes, Format, Tensor},
    ir::Linear,
    quant::DType,
};

/// Where the rows of one role are among those of a tensor: `first + step · row`, of `all`.
#[derive(Clone, Copy)]
struct Pick {
    first: usize,
    step: usize,
    all: usize,
}

impl Loader<'_> {
    /// The matrices `[experts, out, in]` of one role, with their biases where the file has them. They may lie in one
    /// tensor, in one per expert, or for `ffn_gate` and `ffn_up` in a merged one. What is stored as this engine reads it is
    /// not copied; transposed matrices and MXFP4 blocks apart from their scales are, once.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn experts(&mut self, prefix: &str, role: &str, shape: [usize; 3]) -> Result<Linear> {
        let canonical = format!("{prefix}{role}_exps.weight");
        let tensor = self.expert_matrices(prefix, role, shape)?;
        let weight = self.declare(&canonical, &shape, tensor)?;
        let bias = match self.expert_biases(prefix, role, [shape[0], shape[1]])? {
            Some(t) => Some(self.declare(&format!("{prefix}{role}_exps.bias"), &shape[..2], t)?),
            None => None,
        };
        Ok(Linear { weight, bias })
    }

    fn expert_matrices(&mut self, prefix: &str, role: &str, shape: [usize; 3]) -> Result<Tensor> {
        let layout = self.expert_layout();
        let name = self.file_name(&format!("{prefix}{role}_exps.weight"));
        let whole = Pick { first: 0, step: 1, all: shape[1] };
        let candidates = [Some((name.clone(), whole)), self.merged(prefix, role, shape[1], layout)];
        for (file, pick) in candidates.into_iter().flatten() {
            if self.holds(&format!("{file}_blocks")) {
                return self.mxfp4_of(&file, pick, shape);
            }
            if !self.holds(&file) {
                continue;
            }
            let t = self.take(&file)?;
            return match layout {
                ExpertLayout::Rows if pick.all == shape[1] => Ok(t),
                ExpertLayout::Rows => rows_of(&t, &file, pick, shape),
                _ => transposed(&t, &file, pick, shape),
            };
        }
        if !name.contains("{}") {
            return Err(Error::Model(format!("tensor `{name}` is missing from the file")));
        }
        self.one_per_expert(&name, &shape)
    }

    /// The biases `[experts, out]` of one role as f32, where there are any.
    fn expert_biases(&mut self, prefix: &str, role: &str, shape: [usize; 2]) -> Result<Option<Tensor>> {
        let name = self.file_name(&format!("{prefix}{role}_exps.bias"));
        if self.holds(&name) {
            return as_f32(&self.take(&name)?).map(Some);
        }
        if self.holds(&name.replace("{}", "0")) {
            return as_f32(&self.one_per_expert(&name, &shape)?).map(Some);
        }
        let layout = self.expert_layout();
        let Some((_, pick)) = self.merged(prefix, role, shape[1], layout) else { return Ok(None) };
        let name = self.file_name(&format!("{prefix}ffn_gate_up_exps.bias"));
        if !self.holds(&name) {
            return Ok(None);
        }
        let t = self.take(&name)?;
        if t.shape() != [shape[0], pick.all] {
            return Err(Error::Model(format!(
                "tensor `{name}` has shape {:?}, expected [{}, {}]",
                t.shape(),
                shape[0],
                pick.all
            )));
        }
        let all = numbers(&t)?;
        let of = |e: &[f32]| (0..shape[1]).map(|o| e[pick.first + pick.step * o]).collect::<Vec<f32>>();
        Tensor::from_f32(shape.to_vec(), all.chunks_exact(pick.all).flat_map(of).collect()).map(Some)
    }

    /// The name of the tensor of gates and ups, and where those of `role` are in it.
    fn merged(&self, prefix: &str, role: &str, out: usize, layout: ExpertLayout) -> Option<(String, Pick)> {
        let half = ["ffn_gate", "ffn_up"].iter().position(|r| *r == role)?;
        let own = format!("{prefix}ffn_gate_up_exps.weight");
        let name = match self.format() {
            Format::Gguf => own,
            Format::SafeTensors if self.renames("ffn_gate_up_exps") => self.file_name(&own),
            // transformers 5 may keep its in-memory names, which have no `.weight`.
            Format::SafeTensors => {
                let name = self.file_name(&format!("{prefix}ffn_gate_exps.weight"));
                format!("{}.gate_up_proj", name.split_once(".{}")?.0)
            }
        };
        let pick = match layout {
            ExpertLayout::InterleavedColumns => Pick { first: half, step: 2, all: 2 * out },
            _ => Pick { first: half * out, step: 1, all: 2 * out },
        };
        Some((name, pick))
    }

    /// A tensor an expert, `{}` in the name standing for its number; `shape` is that of all together.
    fn one_per_expert(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let (mut parts, mut dtype) = (vec![], None);
        for i in 0..shape[0] {
            let name = name.replace("{}", &i.to_string());
            let t = self.take(&name)?;
            if t.shape() != &shape[1..] || dtype.is_some_and(|d| d != t.dtype()) {
                let (s, d, want) = (t.shape(), t.dtype(), &shape[1..]);
                return Err(Error::Model(format!("tensor `{name}` is {d} {s:?}, expected {want:?} as the others")));
            }
            dtype = Some(t.dtype());
            parts.extend(t.parts().iter().cloned());
        }
        Tensor::new(dtype.unwrap_or(DType::F32), shape.to_vec(), parts)
    }

    /// MXFP4 as Hugging Face stores it: `_blocks` `[E, rows, groups, 16]`, where byte j of a group holds the weights 2j
    /// (low) and 2j + 1 (high), and `_scales` `[E, rows, groups]`, the exponents. ggml's blocks, which this engine reads,
    /// have the exponent first, and byte j holds the weights j and j + 16.
    fn mxfp4_of(&mut self, file: &str, pick: Pick, [e, out, inp]: [usize; 3]) -> Result<Tensor> {
        let groups = inp / 32;
        let wrong =
            |name: &str| Error::Model(format!("tensor `{name}` does not hold MXFP4 of [{e}, {}, {inp}]", pick.all));
        let (blocks, scales) = (format!("{file}_blocks"), format!("{file}_scales"));
        let (q, s) = (self.take_raw(&blocks)?, self.take_raw(&scales)?);
        let count =
            [e, pick.all, groups].iter().try_fold(1usize, |n, d| n.checked_mul(*d)).ok_or_else(|| wrong(&blocks))?;
        if inp % 32 != 0 || Some(q.len()) != count.checked_mul(16) {
            return Err(wrong(&blocks));
        }
        if s.len() != count {
            return Err(wrong(&scales));
        }
        let mut parts = Vec::with_capacity(e);
        for expert in 0..e {
            let mut bytes = Vec::with_capacity(out * groups * 17);
            for o in 0..out {
                let first = (expert * pick.all + pick.first + pick.step * o) * groups;
                for g in first..first + groups {
                    bytes.push(s[g]);
                    let pairs = &q[16 * g..16 * g + 16];
                    let nibble = |i: usize| (pairs[i / 2] >> (4 * (i % 2))) & 15;
                    bytes.extend((0..16).map(|j| nibble(j) | nibble(j + 16) << 4));
                }
            }
            parts.push(Bytes::from_vec(bytes));
        }
        Tensor::new(DType::MXFP4, vec![e, out, inp], parts)
    }
}

fn wrong_shape(t: &Tensor, name: &str, want: &[usize]) -> Error {
    Error::Model(format!("tensor `{name}` has shape {:?}, expected {want:?}", t.shape()))
}

/// Neighbouring rows of each expert in `[E, all, in]`: pieces of the tensor, nothing is copied.
fn rows_of(t: &Tensor, name: &str, pick: Pick, [e, out, inp]: [usize; 3]) -> Result<Tensor> {
    let wrong = || wrong_shape(t, name, &[e, pick.all, inp]);
    if t.shape() != [e, pick.all, inp] || t.parts().len() != 1 {
        return Err(wrong());
    }
    let row = |expert: usize, o: usize| (expert * pick.all + pick.first + o) * t.row_bytes();
    let part = |i: usize| t.parts()[0].slice(row(i, 0)..row(i, out));
    let parts = (0..e).map(part).collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
    Tensor::new(t.dtype(), vec![e, out, inp], parts)
}

/// Columns of each expert in `[E, in, all]` as rows.
fn transposed(t: &Tensor, name: &str, pick: Pick, [e, out, inp]: [usize; 3]) -> Result<Tensor> {
    if t.shape() != [e, inp, pick.all] || !t.dtype().is_float() {
        return Err(wrong_shape(t, name, &[e, inp, pick.all]));
    }
    let size = t.dtype().layout().bytes;
    let mut parts = Vec::with_capacity(e);
    for expert in 0..e {
        let mut bytes = vec![0; out * inp * size];
        for i in 0..inp {
            let row = t.row(expert * inp + i);
            for o in 0..out {
                let from = (pick.first + pick.step * o) * size;
                bytes[(o * inp + i) * size..][..size].copy_from_slice(&row[from..from + size]);
            }
        }
        parts.push(Bytes::from_vec(bytes));
    }
    Tensor::new(t.dtype(), vec![e, out, inp], parts)
}
