//! What an optimizer remembers of each parameter, and its way to a checkpoint and back.

use super::{Algorithm, Moments, Parameter, Rule};
use crate::error::{Error, Result};

/// The state of one parameter. Empty where it is frozen.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// Steps of each slice so far.
    pub steps: Vec<u64>,
    /// First moments, or momentum; empty where there is none.
    pub first: Vec<f32>,
    /// Second moments.
    pub second: Second,
}

/// Second moments of a parameter.
#[derive(Clone, Debug)]
pub(super) enum Second {
    None,
    /// One a weight.
    Full(Vec<f32>),
    /// Of matrices `[out, in]`, one behind the other: `out` of each, and `in` of each.
    Factored {
        rows: Vec<f32>,
        cols: Vec<f32>,
    },
}

/// Second moments of one slice.
pub(super) enum Part<'a> {
    None,
    Full(&'a mut [f32]),
    Factored { rows: &'a mut [f32], cols: &'a mut [f32] },
}

impl Second {
    /// The slices, `each` weights of `count` slices.
    pub fn slices(&mut self, each: usize, count: usize) -> Box<dyn Iterator<Item = Part<'_>> + '_> {
        match self {
            Second::None => Box::new(std::iter::empty()),
            Second::Full(v) => Box::new(v.chunks_mut(each.max(1)).map(Part::Full)),
            Second::Factored { rows, cols } => {
                let (r, c) = ((rows.len() / count).max(1), (cols.len() / count).max(1));
                let parts = rows.chunks_mut(r).zip(cols.chunks_mut(c));
                Box::new(parts.map(|(rows, cols)| Part::Factored { rows, cols }))
            }
        }
    }
}

impl State {
    pub fn new(algorithm: &Algorithm, p: &Parameter, rule: &Rule) -> State {
        if !rule.trained {
            return State { steps: vec![], first: vec![], second: Second::None };
        }
        let zeros = |n: usize| vec![0.0f32; n];
        let full = || Second::Full(zeros(p.len()));
        // A slice is one matrix, or a vector, which cannot be factored.
        let factored = || match *p.slice_shape() {
            [out, inp] => Second::Factored { rows: zeros(p.slices * out), cols: zeros(p.slices * inp) },
            _ => full(),
        };
        let (first, second) = match *algorithm {
            Algorithm::Adam { beta1, .. } => {
                let first = beta1 > 0.0 && rule.moments != Moments::FactoredOnly;
                let second = if rule.moments == Moments::Full { full() } else { factored() };
                (first, second)
            }
            Algorithm::Sgd { momentum, .. } => (momentum > 0.0, Second::None),
            Algorithm::Adafactor { .. } => (false, factored()),
        };
        State { steps: vec![0; p.slices], first: zeros(if first { p.len() } else { 0 }), second }
    }

    pub fn bytes(&self) -> u64 {
        let second = match &self.second {
            Second::None => 0,
            Second::Full(v) => v.len(),
            Second::Factored { rows, cols } => rows.len() + cols.len(),
        };
        4 * (self.first.len() + second) as u64
    }

    /// Names of the parts with their numbers.
    fn parts(&self) -> Vec<(&'static str, &[f32])> {
        let mut parts: Vec<(&'static str, &[f32])> = vec![];
        if !self.first.is_empty() {
            parts.push(("first", &self.first));
        }
        match &self.second {
            Second::None => {}
            Second::Full(v) => parts.push(("second", v)),
            Second::Factored { rows, cols } => parts.extend([("rows", &rows[..]), ("columns", &cols[..])]),
        }
        parts
    }

    fn parts_mut(&mut self) -> Vec<(&'static str, &mut [f32])> {
        let mut parts: Vec<(&'static str, &mut [f32])> = vec![];
        if !self.first.is_empty() {
            parts.push(("first", &mut self.first));
        }
        match &mut self.second {
            Second::None => {}
            Second::Full(v) => parts.push(("second", v)),
            Second::Factored { rows, cols } => parts.extend([("rows", &mut rows[..]), ("columns", &mut cols[..])]),
        }
        parts
    }
}

/// An optimizer's state for a checkpoint.
pub struct Saved<'a> {
    /// Steps of each slice of the parameters that are trained.
    pub steps: Vec<(String, Vec<u64>)>,
    /// Tensors: `blk.0.ffn_up_exps.weight/first`, and their numbers.
    pub tensors: Vec<(String, &'a [f32])>,
}

pub(super) fn save<'a>(parameters: &[Parameter], states: &'a [State]) -> Saved<'a> {
    let named = || parameters.iter().zip(states).filter(|(_, s)| !s.steps.is_empty());
    let tensors = named().flat_map(|(p, s)| s.parts().into_iter().map(move |(n, x)| (format!("{}/{n}", p.name), x)));
    Saved { steps: named().map(|(p, s)| (p.name.clone(), s.steps.clone())).collect(), tensors: tensors.collect() }
}

pub(super) fn load(
    parameters: &[Parameter],
    states: &mut [State],
    steps: &[(String, Vec<u64>)],
    tensor: &mut dyn FnMut(&str, &mut [f32]) -> Result<()>,
) -> Result<()> {
    for (p, state) in parameters.iter().zip(states).filter(|(_, s)| !s.steps.is_empty()) {
        let saved = steps.iter().find(|(name, _)| *name == p.name).map(|(_, s)| s);
        match saved {
            Some(s) if s.len() == state.steps.len() => state.steps.clone_from(s),
            _ => return Err(Error::Invalid(format!("the checkpoint has no optimizer state of {}", p.name))),
        }
        for (part, numbers) in state.parts_mut() {
            tensor(&format!("{}/{part}", p.name), numbers)?;
        }
    }
    Ok(())
}
