//! What is trained: named tensors, what each is for, and the slices of those that hold all experts of a layer.
//!
//! This is the one place that knows how experts lie in parameters: which parameters are theirs, that the first dimension counts
//! them, and which of them the tokens of a step used.

use std::collections::BTreeMap;

/// What the stems of routers' parameters begin with.
const ROUTERS: [&str; 3] = ["ffn_gate_inp", "ffn_noise_inp", "exp_probs_b"];

/// What a parameter is for, told from its canonical name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The table of token embeddings.
    Embedding,
    /// The output matrix.
    Output,
    /// Projections of attention, and what stands in its place (convolutions, recurrences).
    Attention,
    /// The router's matrices and biases.
    Router,
    /// Routed experts.
    Experts,
    /// Shared experts and their gates.
    Shared,
    /// Dense feed-forward networks.
    Dense,
    /// Norms' weights and biases.
    Norms,
}

impl Role {
    /// Every role with the word that a configuration has for it.
    pub const ALL: [(&'static str, Role); 8] = [
        ("embedding", Role::Embedding),
        ("output", Role::Output),
        ("attention", Role::Attention),
        ("router", Role::Router),
        ("experts", Role::Experts),
        ("shared", Role::Shared),
        ("dense", Role::Dense),
        ("norms", Role::Norms),
    ];

    /// The role of the parameter with this canonical name: `blk.3.ffn_gate_inp.weight` is the router's.
    pub fn of(name: &str) -> Role {
        let stem = match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((_, rest)) => rest,
            None => name,
        };
        match stem {
            s if s.contains("norm") => Role::Norms,
            s if s.starts_with("token_embd") => Role::Embedding,
            s if s.starts_with("output") => Role::Output,
            s if s.contains("shexp") => Role::Shared,
            s if ROUTERS.iter().any(|p| s.starts_with(p)) => Role::Router,
            s if s.contains("_exps") => Role::Experts,
            s if s.starts_with("ffn_") => Role::Dense,
            // Attention, recurrences and convolutions have their families' own stems.
            _ => Role::Attention,
        }
    }
}

/// Tokens of each expert in a step, by layer.
pub type Loads = BTreeMap<u32, Vec<u64>>;

/// A parameter that can be trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its canonical (GGUF) name: `blk.0.ffn_down_exps.weight`.
    pub name: String,
    /// Row-major shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Leading slices that stand for tensors of their own, since a micro-batch may use some and not others: the experts of
    /// `[E, out, in]`, and 1 for all else.
    pub slices: usize,
    /// Whether the first dimension counts slices, also where there is but one.
    pub stacked: bool,
}

impl Parameter {
    /// A parameter of a model: of experts where its name says so.
    pub fn named(name: impl Into<String>, shape: &[usize]) -> Self {
        let name = name.into();
        match Role::of(&name) {
            Role::Experts => Parameter::of_experts(name, shape),
            Role::Embedding
            | Role::Output
            | Role::Attention
            | Role::Router
            | Role::Shared
            | Role::Dense
            | Role::Norms => Parameter::new(name, shape),
        }
    }

    /// A parameter in one piece.
    pub fn new(name: impl Into<String>, shape: &[usize]) -> Self {
        Parameter { name: name.into(), shape: shape.to_vec(), slices: 1, stacked: false }
    }

    /// A parameter of experts: its first dimension counts them.
    pub fn of_experts(name: impl Into<String>, shape: &[usize]) -> Self {
        let slices = shape.first().copied().unwrap_or(1).max(1);
        Parameter { name: name.into(), shape: shape.to_vec(), slices, stacked: !shape.is_empty() }
    }

    /// The shape of one slice.
    pub fn slice_shape(&self) -> &[usize] {
        &self.shape[usize::from(self.stacked)..]
    }

    /// The number of weights of one slice.
    pub fn slice_len(&self) -> usize {
        self.len() / self.slices.max(1)
    }

    /// The number of weights.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no weight.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The layer that it belongs to.
    pub fn layer(&self) -> Option<u32> {
        self.name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
    }

    /// For each slice whether a token used it, by the tokens of each expert; empty where everything was used.
    pub fn used(&self, loads: &Loads) -> Vec<bool> {
        let tokens = self.layer().and_then(|l| loads.get(&l)).filter(|n| self.stacked && n.len() == self.slices);
        tokens.map_or(vec![], |n| n.iter().map(|n| *n > 0).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_roles() {
        for (name, role) in [
            ("token_embd.weight", Role::Embedding),
            ("output.weight", Role::Output),
            ("output_norm.weight", Role::Norms),
            ("blk.0.attn_q.weight", Role::Attention),
            ("blk.0.attn_q_norm.weight", Role::Norms),
            ("blk.9.ffn_gate_inp.weight", Role::Router),
            ("blk.9.exp_probs_b.bias", Role::Router),
            ("blk.9.ffn_gate_inp_shexp.weight", Role::Shared),
            ("blk.9.ffn_down_exps.weight", Role::Experts),
            ("blk.9.ffn_down.weight", Role::Dense),
            ("blk.9.ssm_out.weight", Role::Attention),
        ] {
            assert_eq!(Role::of(name), role, "{name}");
        }
    }

    #[test]
    fn experts_lie_one_behind_the_other() {
        let loads = Loads::from([(3, vec![5, 0, 2, 1])]);
        let p = Parameter::named("blk.3.ffn_up_exps.weight", &[4, 6, 2]);
        assert_eq!((p.slices, p.slice_shape(), p.slice_len(), p.len()), (4, &[6, 2][..], 12, 48));
        assert_eq!(p.used(&loads), [true, false, true, true]);
        // Those of another layer, and of an adapter of the same.
        assert!(Parameter::named("blk.2.ffn_up_exps.weight", &[4, 6, 2]).used(&loads).is_empty());
        assert_eq!(Parameter::named("blk.3.ffn_down_exps.weight.lora_a", &[4, 1, 6]).used(&loads).len(), 4);
        for name in ["blk.3.ffn_up_shexp.weight", "blk.3.ffn_gate_inp.weight", "blk.3.attn_q.weight", "output.weight"] {
            let p = Parameter::named(name, &[4, 6]);
            assert_eq!((p.slices, p.slice_len(), p.used(&loads).len()), (1, 24, 0), "{name}");
        }
        assert_eq!(Parameter::named("output.weight", &[4, 6]).layer(), None);
    }
}
