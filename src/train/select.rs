//! Parameters chosen by what they are for, or by patterns of their names.

use super::learner::Parameter;
use crate::error::{Error, Result};

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
            s if ["ffn_gate_inp", "ffn_noise_inp", "exp_probs_b"].iter().any(|p| s.starts_with(p)) => Role::Router,
            s if s.contains("_exps") => Role::Experts,
            s if s.starts_with("ffn_") => Role::Dense,
            // Attention, recurrences and convolutions have their families' own stems.
            _ => Role::Attention,
        }
    }
}

/// Words of a configuration that choose parameters: roles (`experts`), and patterns of names in which `*` stands for any
/// letters (`blk.0.*`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection(Vec<Choice>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    Role(Role),
    Pattern(String),
}

impl Selection {
    /// Reads the words; every one must choose something.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names `key`, the word that matches nothing, and what there is.
    pub fn new(key: &str, words: &[String], parameters: &[Parameter]) -> Result<Self> {
        let choice = |word: &String| {
            let role = Role::ALL.iter().find(|(name, _)| name == word).map(|(_, role)| *role);
            let choice = role.map_or_else(|| Choice::Pattern(word.clone()), Choice::Role);
            if parameters.iter().any(|p| choice.matches(&p.name)) {
                Ok(choice)
            } else {
                Err(none(key, word, parameters))
            }
        };
        words.iter().map(choice).collect::<Result<_>>().map(Selection)
    }

    /// Whether a parameter is chosen.
    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|c| c.matches(name))
    }

    /// Whether there is no word.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Choice {
    fn matches(&self, name: &str) -> bool {
        match self {
            Choice::Role(role) => Role::of(name) == *role,
            Choice::Pattern(pattern) => glob(pattern.as_bytes(), name.as_bytes()),
        }
    }
}

/// The error of a word that chooses nothing.
fn none(key: &str, word: &str, parameters: &[Parameter]) -> Error {
    let mut roles: Vec<&str> = vec![];
    for (name, role) in Role::ALL {
        if parameters.iter().any(|p| Role::of(&p.name) == role) {
            roles.push(name);
        }
    }
    let example = parameters.first().map_or("", |p| p.name.as_str());
    Error::Invalid(format!(
        "{key}: {word:?} matches no parameter; there are {}, and names such as {example} (* stands for any letters)",
        roles.join(", ")
    ))
}

/// Whether `text` is `pattern` with something in the place of each `*`.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // The last star, and how far the text was read when it was met: where what follows does not fit, the star takes one more.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (p, t) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_letters() {
        for (pattern, text, fits) in [
            ("blk.*.ffn_gate_inp.weight", "blk.12.ffn_gate_inp.weight", true),
            ("*exps*", "blk.0.ffn_up_exps.weight", true),
            ("*", "", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("blk.1.*", "blk.11.x", false),
            ("", "a", false),
            ("**a", "a", true),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), fits, "{pattern} {text}");
        }
    }

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
    fn a_word_that_matches_nothing_is_an_error() {
        let parameters = [Parameter::new("blk.0.attn_q.weight", &[4, 4])];
        let all = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|w| w.to_string()).collect();
            Selection::new("freeze", &words, &parameters)
        };
        assert!(all(&["attention", "blk.*"]).unwrap().matches("blk.0.attn_q.weight"));
        let e = all(&["experts"]).unwrap_err().to_string();
        assert!(e.contains("freeze") && e.contains("experts") && e.contains("attention"), "{e}");
    }
}
