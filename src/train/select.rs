//! Parameters chosen by what they are for, or by patterns of their names.

use super::parameter::{Parameter, Role};
use crate::error::{Error, Result};

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
