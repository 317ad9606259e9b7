//! What llama.cpp says of a family: names, keys, defaults, and what its graph takes for granted.

use crate::{
    error::{Error, Result},
    file::Value,
    ir::{Activation, Renormalise, RopePairs, Score},
    model::{
        decoder::{Decoder, Moe, Multipliers},
        facts::Absent,
    },
};

/// A key of a file's metadata.
#[derive(Clone, Copy)]
pub struct Key {
    /// Its name behind `<arch>.`.
    pub name: &'static str,
    /// Its value; `None` where the file goes without it.
    pub value: fn(&Decoder, &GgufForm) -> Result<Option<Value>>,
}

/// What llama.cpp's reader takes for absent keys of every architecture (`llama_model_base::load_hparams`).
const ABSENT: &[(&str, Absent)] = &[("rope.freq_base", Absent::Number(10_000.0))];

/// A family's form as GGUF.
#[derive(Clone, Copy)]
pub struct GgufForm {
    /// `general.architecture`.
    pub arch: &'static str,
    /// The keys that a file is written with, list by list in order. What none of them says must be as the graph has it.
    pub(in crate::model) keys: &'static [&'static [Key]],
    /// What llama.cpp's reader takes for keys that are absent, where that is not nothing.
    pub(in crate::model) absent: &'static [(&'static str, Absent)],
    /// Whether the ends of YaRN's blend are rounded, which no key says.
    pub(in crate::model) yarn_truncates: bool,
    /// What llama.cpp's graph takes for granted.
    pub(in crate::model) graph: Graph,
    /// Rows whose order is llama.cpp's own.
    pub(in crate::model) rows: Rows,
    /// What else llama.cpp would compute otherwise, refused by name or said in a warning.
    pub(in crate::model) check: fn(&Decoder) -> Result<()>,
}

/// What llama.cpp's graph of an architecture takes for granted where no key says otherwise.
#[derive(Clone, Copy)]
pub(in crate::model) struct Graph {
    /// Activation of the feed-forward networks.
    pub act: Activation,
    /// Whether norms may be other than of the root mean square.
    pub any_norm: bool,
    /// Factors between the parts.
    pub multipliers: fn(&Decoder) -> Multipliers,
    /// Factor on the dot products of attention; `None`: 1/sqrt(head_dim).
    pub attention_scale: Option<f32>,
    /// Whether only whole heads rotate.
    pub whole_heads: bool,
    /// Whether the file may have divisors of the frequencies (`rope_freqs.weight`).
    pub divisors: bool,
    /// How the router scores; `None`: `expert_gating_func` says it.
    pub score: Option<Score>,
    /// Whether the chosen experts' weights are divided by their sum.
    pub renormalises: Renormalises,
    /// What may be added to that sum without a key that says so.
    pub sum_plus: f32,
    /// Whether there is a selection bias; `None`: where the file has one.
    pub selection_bias: Option<bool>,
    /// Whether there are shared experts.
    pub shared: SharedForm,
}

/// Whether the chosen experts' weights are divided by their sum.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum Renormalises {
    Always,
    Never,
    /// As `expert_weights_norm` says.
    ByKey,
}

/// Whether there are shared experts, and of which kind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum SharedForm {
    Never,
    /// Where a key gives their width or number.
    Maybe,
    Always,
    /// Always, scaled by a gate.
    Gated,
}

/// Rows of matrices whose order in a GGUF is another than in Hugging Face's files.
#[derive(Clone, Copy)]
pub(in crate::model) struct Rows {
    /// Queries and keys are stored for interleaved rotation instead of rotation by halves.
    pub interleaved_qk: bool,
    /// Queries, keys and values lie in one matrix, in this order (`attn_qkv`).
    pub joined_qkv: bool,
    /// The projections to beta and alpha of DeltaNet lie in one matrix, a key head after the other (`ssm_ba`).
    pub joined_beta_alpha: bool,
    /// Value heads of DeltaNet: the first of every key head, then the second of every one, and so on.
    pub tiled_values: bool,
}

impl GgufForm {
    /// The form of most families, which they write out where they differ.
    pub(in crate::model) const NONE: GgufForm = GgufForm {
        arch: "",
        keys: &[],
        absent: ABSENT,
        yarn_truncates: true,
        graph: Graph::NONE,
        rows: Rows::NONE,
        check: |_| Ok(()),
    };

    /// What absent keys mean to llama.cpp, where that is not nothing.
    pub fn defaults(&self) -> impl Iterator<Item = (&'static str, Absent)> {
        self.absent.iter().copied()
    }

    /// Whether a file says this.
    pub(in crate::model) fn has(&self, key: &Key) -> bool {
        self.keys.iter().copied().flatten().any(|k| k.name == key.name)
    }

    /// Which columns rotate together in a file of this form, whose matrices are Hugging Face's but for their rows' order.
    pub(in crate::model) fn pairs(&self) -> RopePairs {
        if self.rows.interleaved_qk { RopePairs::Interleaved } else { RopePairs::Halves }
    }

    /// The error of what a file of this form cannot say.
    pub(in crate::model) fn refused(&self, what: impl std::fmt::Display) -> Error {
        refused(self.arch, what)
    }
}

impl Graph {
    /// What most graphs do.
    pub(in crate::model) const NONE: Graph = Graph {
        act: Activation::Silu,
        any_norm: false,
        multipliers: |_| Multipliers { embedding: 1.0, residual: 1.0, logits: 1.0 },
        attention_scale: None,
        whole_heads: false,
        divisors: false,
        score: Some(Score::Softmax),
        renormalises: Renormalises::Always,
        sum_plus: 1e-20,
        selection_bias: Some(false),
        shared: SharedForm::Never,
    };
}

impl Rows {
    /// All as in Hugging Face's files.
    pub(in crate::model) const NONE: Rows =
        Rows { interleaved_qk: false, joined_qkv: false, joined_beta_alpha: false, tiled_values: false };
}

/// Whether the weights of the chosen experts are divided by their sum; `None` where it is by something else. What is added to
/// the sum must not be more than `plus`.
pub(in crate::model) fn divides(m: &Moe, plus: f32) -> Option<bool> {
    let r = &m.router;
    match r.renormalise {
        Renormalise::No => Some(r.score == Score::SoftmaxOfSelected),
        Renormalise::Sum => Some(true),
        Renormalise::SumPlus(e) if e <= plus => Some(true),
        // A bound below every possible sum is none: k of E softmax scores, the largest, sum to k / E or more.
        Renormalise::SumAtLeast(e) if r.score == Score::Softmax && e * r.experts as f32 <= r.used as f32 => Some(true),
        Renormalise::SumPlus(_) | Renormalise::SumAtLeast(_) | Renormalise::Softmax => None,
    }
}

/// The error of what a GGUF of an architecture cannot say.
pub(in crate::model) fn refused(arch: &str, what: impl std::fmt::Display) -> Error {
    Error::Unsupported(format!("{what}: a GGUF of the architecture `{arch}` cannot say that"))
}
