//! Choosing tokens on the host, by the rules that each sequence has.

use super::step::Chosen;
use crate::{
    error::{Error, Result},
    sampler::{self, Chooser, Rules, SamplerOptions, Sampling},
};

/// How tokens of a sequence are chosen.
#[derive(Debug, Default)]
pub(super) struct SequenceSampler {
    /// Whether it was ever set.
    pub set: bool,
    /// Whether the executor chooses.
    pub on_device: bool,
    /// Whether rows may bring masks.
    pub masked: bool,
    /// The token that was chosen last, once its step's results were there.
    pub last: Option<u32>,
    options: SamplerOptions,
    forbidden: Vec<u32>,
    bias: Vec<(u32, f32)>,
    recent: Vec<u32>,
}

impl SequenceSampler {
    /// Takes over rules that were checked. What was chosen before is forgotten.
    pub fn set(&mut self, s: &Sampling<'_>, on_device: bool) {
        self.options = s.options;
        (self.set, self.on_device, self.masked, self.last) = (true, on_device, s.masked, None);
        self.forbidden.clear();
        self.bias.clear();
        self.recent.clear();
        if !on_device {
            self.forbidden.extend_from_slice(s.forbidden);
            self.bias.extend_from_slice(s.bias);
            let window = s.recent.len().min(self.window());
            self.recent.extend_from_slice(&s.recent[s.recent.len() - window..]);
        }
    }

    /// Tokens that the repetition penalty looks at.
    fn window(&self) -> usize {
        if self.options.repeat_penalty == 1.0 { 0 } else { self.options.repeat_last_n }
    }

    /// A token of finite logits, by these rules.
    pub fn choose(&mut self, chooser: &mut Chooser, logits: &[f32], mask: Option<&[u32]>, random: u64) -> Chosen {
        if !sampler::all_finite(logits) {
            return Chosen::NotFinite;
        }
        let (options, forbidden, bias) = (&self.options, &self.forbidden[..], &self.bias[..]);
        let rules = Rules { options, forbidden, bias, mask, recent: &self.recent };
        match chooser.choose(logits, &rules, random) {
            None => Chosen::NothingAllowed,
            Some(id) => {
                self.remember(id);
                Chosen::Token(id)
            }
        }
    }

    /// Appends a chosen token to the recent ones, of which no more are held than are looked at, twice.
    fn remember(&mut self, id: u32) {
        let window = self.window();
        if window == 0 {
            return;
        }
        if self.recent.len() >= window.saturating_mul(2).max(64) {
            let first = self.recent.len() - window;
            self.recent.drain(..first);
        }
        self.recent.push(id);
    }
}

/// Checks the rules of a sequence against the vocabulary.
pub(super) fn check_sampling(s: &Sampling<'_>, vocab: Option<usize>) -> Result<()> {
    s.options.check()?;
    let Some(vocab) = vocab else {
        return Err(Error::Invalid("the graph has no logits after which tokens could be chosen".into()));
    };
    for (i, (id, bias)) in s.bias.iter().enumerate() {
        if *id as usize >= vocab || bias.is_nan() || *bias == f32::INFINITY {
            return Err(Error::Invalid(format!("a bias of {bias} on token {id} of {vocab}")));
        }
        if s.bias[..i].iter().any(|(other, _)| other == id) {
            return Err(Error::Invalid(format!("token {id} has two biases")));
        }
    }
    Ok(())
}
