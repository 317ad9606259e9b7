//! The matrices and biases of experts, in the ways that files store them: one tensor a role, one an expert, gate and up
//! merged, transposed, or as MXFP4 blocks and scales. Which of them a file has, its names and shapes tell.

use super::{
    loader::Loader,
    names::ExpertLayout,
    tensors::{as_f32, fitted, numbers, row, same_sizes},
};
use crate::{
    error::{Error, Result},
    file::{Bytes, Tensor},
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

impl Pick {
    /// All of `rows`.
    fn whole(rows: usize) -> Pick {
        Pick { first: 0, step: 1, all: rows }
    }

    /// The gate's (0) or up's (1) of `rows` each.
    fn half(which: usize, rows: usize, layout: ExpertLayout) -> Pick {
        match layout {
            ExpertLayout::InterleavedColumns => Pick { first: which, step: 2, all: 2 * rows },
            ExpertLayout::Rows | ExpertLayout::Columns => Pick { first: which * rows, step: 1, all: 2 * rows },
        }
    }
}

/// How a file has the numbers of one role.
enum Stored {
    /// Those of all experts in one tensor.
    Together(String, Pick),
    /// The same as MXFP4, under the name with `_blocks` and `_scales`.
    Blocks(String, Pick),
    /// A tensor an expert, `{}` in the name standing for its number.
    Each(String, Pick),
}

/// A role's name as modules of experts have it in memory.
fn in_memory(role: &str) -> &'static str {
    match role {
        "ffn_gate" => "gate_proj",
        "ffn_up" => "up_proj",
        _ => "down_proj",
    }
}

/// Names of a tensor of all experts beside those that a family lists: without the number where its files have a tensor an expert,
/// called as there or `leaf`, with an ending or without (`mlp.experts.{}.w2.weight` → `mlp.experts.w2`, `mlp.experts.down_proj`).
fn together(candidates: &[String], leaf: &str) -> Vec<String> {
    let around = |n: &String| {
        let (before, behind) = n.split_once(".{}.")?;
        let own = behind.strip_suffix(".weight")?;
        let stems = [format!("{before}.{leaf}"), format!("{before}.{own}")];
        Some(stems.into_iter().flat_map(|stem| [stem.clone(), stem + ".weight"]))
    };
    candidates.iter().filter_map(around).flatten().collect()
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
        let [e, out, inp] = shape;
        match self.stored(prefix, role, out)? {
            Stored::Blocks(name, pick) => self.mxfp4_of(&name, pick, shape),
            Stored::Each(name, pick) => {
                let all = self.one_per_expert(&name, e, &[1, pick.all, inp])?;
                let cut = all.into_iter().map(|t| rows_of(t, &name, pick, [1, out, inp]));
                stacked(cut.collect::<Result<_>>()?, &shape)
            }
            Stored::Together(name, pick) => {
                let flipped = self.is_transposed(prefix, role, shape);
                let stored = if flipped { [e, inp, pick.all] } else { [e, pick.all, inp] };
                let t = fitted(self.take(&name)?, &stored);
                if t.shape() != stored {
                    return Err(wrong_shape(&t, &name, &stored));
                }
                if flipped { transposed(&t, &name, pick, shape) } else { rows_of(t, &name, pick, shape) }
            }
        }
    }

    /// Where the file has the matrices of a role, which have `out` rows each.
    fn stored(&self, prefix: &str, role: &str, out: usize) -> Result<Stored> {
        let named = |role: &str| self.candidates(&format!("{prefix}{role}_exps.weight"));
        let own = named(role);
        let found = self.among(own.iter().cloned().chain(together(&own, in_memory(role))), Pick::whole(out));
        let merged = || {
            let which = ["ffn_gate", "ffn_up"].iter().position(|r| *r == role)?;
            let mut names = named("ffn_gate_up");
            let gates = named("ffn_gate");
            names.extend(together(&gates, "gate_up_proj"));
            let each = gates.iter().filter_map(|n| n.split_once(".{}."));
            names.extend(each.map(|(before, _)| format!("{before}.{{}}.gate_up_proj.weight")));
            self.among(names.into_iter(), Pick::half(which, out, self.expert_layout()))
        };
        found.or_else(merged).ok_or_else(|| {
            let usual = own.first().map_or(String::new(), |n| n.replace("{}", "0"));
            Error::Model(format!("tensor `{usual}` is missing from the file"))
        })
    }

    /// The first of the names that the file has.
    fn among(&self, mut names: impl Iterator<Item = String>, pick: Pick) -> Option<Stored> {
        names.find_map(|name| {
            if self.holds_each(&name) {
                Some(Stored::Each(name, pick))
            } else if self.holds(&name) {
                Some(Stored::Together(name, pick))
            } else {
                self.holds(&format!("{name}_blocks")).then_some(Stored::Blocks(name, pick))
            }
        })
    }

    /// Whether the experts' matrices of a layer are stored transposed: as their shapes tell, or where these fit both ways as the
    /// family stores them. `shape` is that of the matrices of `role`.
    fn is_transposed(&self, prefix: &str, role: &str, [e, out, inp]: [usize; 3]) -> bool {
        if self.is_gguf() {
            return false;
        }
        let (width, hidden) = if role == "ffn_down" { (inp, out) } else { (out, inp) };
        let told = |role: &str, out: usize, inp: usize| {
            let Ok(Stored::Together(name, pick)) = self.stored(prefix, role, out) else { return None };
            let fits = |shape: [usize; 3]| self.shape_of(&name).is_some_and(|s| same_sizes(s, &shape));
            match (fits([e, pick.all, inp]), fits([e, inp, pick.all])) {
                (true, false) => Some(false),
                (false, true) => Some(true),
                (true, true) | (false, false) => None,
            }
        };
        told("ffn_gate", width, hidden)
            .or_else(|| told("ffn_down", hidden, width))
            .unwrap_or(self.expert_layout() != ExpertLayout::Rows)
    }

    /// The biases `[experts, out]` of one role as f32, where there are any.
    fn expert_biases(&mut self, prefix: &str, role: &str, shape: [usize; 2]) -> Result<Option<Tensor>> {
        let name = self.file_name(&format!("{prefix}{role}_exps.bias"));
        if self.holds(&name) {
            return as_f32(&self.take(&name)?).map(Some);
        }
        if self.holds_each(&name) {
            let all = self.one_per_expert(&name, shape[0], &shape[1..])?;
            return as_f32(&stacked(all, &shape)?).map(Some);
        }
        let Some(half) = ["ffn_gate", "ffn_up"].iter().position(|r| *r == role) else { return Ok(None) };
        let pick = Pick::half(half, shape[1], self.expert_layout());
        let name = self.file_name(&format!("{prefix}ffn_gate_up_exps.bias"));
        if !self.holds(&name) {
            return Ok(None);
        }
        let want = [shape[0], pick.all];
        let t = fitted(self.take(&name)?, &want);
        if t.shape() != want {
            return Err(wrong_shape(&t, &name, &want));
        }
        let all = numbers(&t)?;
        let of = |e: &[f32]| (0..shape[1]).map(|o| e[pick.first + pick.step * o]).collect::<Vec<f32>>();
        Tensor::from_f32(shape.to_vec(), all.chunks_exact(pick.all).flat_map(of).collect()).map(Some)
    }

    /// A tensor an expert of `shape`, `{}` in the name standing for its number.
    fn one_per_expert(&mut self, name: &str, count: usize, shape: &[usize]) -> Result<Vec<Tensor>> {
        let mut all = vec![];
        for i in 0..count {
            let name = name.replace("{}", &i.to_string());
            let t = fitted(self.take(&name)?, shape);
            if t.shape() != shape {
                return Err(wrong_shape(&t, &name, shape));
            }
            all.push(t);
        }
        Ok(all)
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

/// The rows of one role of each expert in `[E, all, in]`: pieces of the tensor, nothing is copied.
fn rows_of(t: Tensor, name: &str, pick: Pick, [e, out, inp]: [usize; 3]) -> Result<Tensor> {
    if pick.all == out {
        return Ok(t);
    }
    let first = |expert: usize| expert * pick.all + pick.first;
    let piece = |expert: usize| {
        let (part, at) = (first(expert) / t.rows_per_part(), first(expert) % t.rows_per_part());
        t.parts().get(part)?.slice(at * t.row_bytes()..(at + out) * t.row_bytes())
    };
    let parts: Option<Vec<Bytes>> = match pick.step {
        1 => (0..e).map(piece).collect(),
        step => (0..e).flat_map(|x| (0..out).map(move |o| first(x) + step * o)).map(|r| row(&t, r)).collect(),
    };
    let parts = parts.ok_or_else(|| wrong_shape(&t, name, &[e, pick.all, inp]))?;
    Tensor::new(t.dtype(), vec![e, out, inp], parts)
}

/// Tensors of the experts as one of `shape`. Those of different types become F32, which holds the numbers of every float type, each
/// when it is first read.
fn stacked(all: Vec<Tensor>, shape: &[usize]) -> Result<Tensor> {
    let Some(first) = all.first().map(Tensor::dtype) else {
        return Err(Error::Model("no experts".into()));
    };
    if all.iter().all(|t| t.dtype() == first) {
        return Tensor::new(first, shape.to_vec(), all.iter().flat_map(|t| t.parts().iter().cloned()).collect());
    }
    if let Some(t) = all.iter().find(|t| !t.dtype().is_float()) {
        tracing::warn!(
            "experts of a layer are stored in several types ({} among them): they take the memory of F32",
            t.dtype()
        );
    }
    let parts = all.into_iter().map(|t| {
        Bytes::from_fn(4 * t.rows() * t.cols(), move || {
            // The sizes were checked when the tensor was made; what cannot be read must not look like weights.
            let x = numbers(&t).unwrap_or_else(|_| vec![f32::NAN; t.rows() * t.cols()]);
            x.iter().flat_map(|v| v.to_le_bytes()).collect()
        })
    });
    Tensor::new(DType::F32, shape.to_vec(), parts.collect())
}

/// Columns of each expert in `[E, in, all]` as rows.
fn transposed(t: &Tensor, name: &str, pick: Pick, [e, out, inp]: [usize; 3]) -> Result<Tensor> {
    if !t.dtype().is_float() {
        return Err(wrong_shape(t, name, &[e, pick.all, inp]));
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
