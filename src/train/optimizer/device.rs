//! Steps that a device takes: what it is told, and moments on their way to it and back.

use super::{Algorithm, Moments, Optimizer, Unused, elementwise::AdamStep, state::Second};
use crate::{
    backend::training::{ParameterStep, SliceStep, Update},
    error::{Error, Result},
    train::learner::{DeviceLearner, Learner},
};

impl Optimizer {
    /// One step of all parameters of a learner: on its device, where it has one that can, or in the host's memory. Gradients are
    /// multiplied with `factor` first (of clipping).
    ///
    /// # Errors
    /// As [`Optimizer::step`], and what the learner says.
    pub fn update(&mut self, learner: &mut dyn Learner, rate: f64, factor: f64, threads: usize) -> Result<()> {
        match learner.device().filter(|_| self.is_elementwise()) {
            Some(device) => self.update_on(device, rate, factor),
            None => learner.each(&mut |i, slot| self.step(i, slot, rate, factor, threads)),
        }
    }

    /// Takes the moments that a learner's device has, for a checkpoint.
    ///
    /// # Errors
    /// What the learner says.
    pub fn fetch(&mut self, learner: &mut dyn Learner) -> Result<()> {
        let Some(device) = learner.device().filter(|d| d.has_moments()) else { return Ok(()) };
        let indices: Vec<usize> = device.used().into_iter().map(|(i, _)| i).collect();
        for (n, i) in indices.into_iter().enumerate() {
            let [first, second] = device.moments(n)?;
            let state = self.states.get_mut(i).ok_or_else(|| Error::Invalid(format!("there is no parameter {i}")))?;
            state.first = first;
            if let Second::Full(v) = &mut state.second {
                *v = second;
            }
        }
        Ok(())
    }

    /// Whether a weight needs its own numbers only, in all parameters that are trained.
    fn is_elementwise(&self) -> bool {
        let trained = || self.rules.iter().filter(|r| r.trained);
        match self.options.algorithm {
            Algorithm::Adam { .. } => trained().all(|r| r.moments == Moments::Full),
            Algorithm::Sgd { .. } => true,
            Algorithm::Adafactor { .. } => false,
        }
    }

    fn update_on(&mut self, device: &mut dyn DeviceLearner, rate: f64, factor: f64) -> Result<()> {
        let used = device.used();
        let mut steps = vec![];
        for (i, used) in &used {
            steps.push(self.told(*i, used, rate, factor as f32)?);
        }
        if !device.has_moments() {
            let moments = used.iter().map(|(i, _)| {
                let state = &self.states[*i];
                let second: &[f32] = if let Second::Full(v) = &state.second { v } else { &[] };
                [&state.first[..], second]
            });
            device.give_moments(&steps, &moments.collect::<Vec<_>>())?;
        }
        device.update(&steps)
    }

    /// What a device is told of a parameter's step. Counts it.
    fn told(&mut self, index: usize, used: &[bool], rate: f64, factor: f32) -> Result<ParameterStep> {
        let (Some(rule), Some(state)) = (self.rules.get(index), self.states.get_mut(index)) else {
            return Err(Error::Invalid(format!("there is no parameter {index}")));
        };
        let (rate, decay, algorithm) = (rate * rule.rate, rule.weight_decay, self.options.algorithm);
        let mut slices = vec![];
        for (i, t) in state.steps.iter_mut().enumerate() {
            let used = self.options.unused == Unused::Decay || used.get(i) != Some(&false);
            *t += u64::from(used);
            let (step, root) = match algorithm {
                // A slice that was never used has no corrections yet, and does not change.
                Algorithm::Adam { beta1, beta2, eps, decoupled } => {
                    AdamStep::new([beta1, beta2, eps], (*t).max(1), rate, decay, decoupled, factor).of_slice()
                }
                Algorithm::Sgd { .. } | Algorithm::Adafactor { .. } => (-rate as f32, 1.0),
            };
            slices.push(SliceStep { step, root, used });
        }
        let update = match algorithm {
            Algorithm::Adam { beta1, beta2, eps, decoupled } => {
                AdamStep::new([beta1, beta2, eps], 1, rate, decay, decoupled, factor).of_all()
            }
            Algorithm::Sgd { momentum, nesterov } => {
                Update::Sgd { factor, coupled: decay as f32, momentum: momentum as f32, nesterov }
            }
            Algorithm::Adafactor { .. } => {
                return Err(Error::Unsupported("adafactor needs sums over rows, which the host makes".into()));
            }
        };
        Ok(ParameterStep { update, slices })
    }
}
