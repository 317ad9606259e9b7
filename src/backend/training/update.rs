//! Updates that a device makes by itself, so that weights, gradients and moments stay there.

use crate::error::Result;

/// How weights change by their own numbers alone. The numbers are those of one step, rounded as the optimizer rounds them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Update {
    /// Adam and AdamW: with g the gradient times `factor` plus `coupled · w`, m and v the moments:
    /// `w · keep + step · m / (√v / root + eps)`, where `step` and `root` are the slice's.
    Adam {
        /// What gradients are multiplied with: of clipping.
        factor: f32,
        /// Weight decay that is added to the gradient.
        coupled: f32,
        /// What weights are multiplied with first.
        keep: f32,
        /// How much of the first moment stays; 0: there is none, and g stands in its place.
        beta1: f32,
        /// `1 − β₁`.
        take1: f32,
        /// How much of the second moment stays.
        beta2: f32,
        /// `1 − β₂`.
        take2: f32,
        /// What is added to the root.
        eps: f32,
    },
    /// Stochastic gradient descent: with g as above and the momentum m = `momentum · m + g`: `w + step · m`, or with Nesterov's
    /// `w + step · (g + momentum · m)`.
    Sgd {
        /// What gradients are multiplied with: of clipping.
        factor: f32,
        /// Weight decay that is added to the gradient.
        coupled: f32,
        /// How much of the last step stays; 0: there is no momentum.
        momentum: f32,
        /// Nesterov's momentum.
        nesterov: bool,
    },
}

impl Update {
    /// Its name, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Update::Adam { .. } => "adam",
            Update::Sgd { .. } => "sgd",
        }
    }

    /// Moments that it has: the first (or momentum), and the second.
    pub fn moments(&self) -> [bool; 2] {
        match self {
            Update::Adam { beta1, .. } => [*beta1 > 0.0, true],
            Update::Sgd { momentum, .. } => [*momentum > 0.0, false],
        }
    }
}

/// What holds for a slice of a parameter, such as an expert, in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SliceStep {
    /// What the update is multiplied with: minus the rate, corrected where Adam corrects it.
    pub step: f32,
    /// The correction of the root of the second moment; 1 where there is none.
    pub root: f32,
    /// Whether the slice changes in this step.
    pub used: bool,
}

/// One parameter's part of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterStep {
    /// The rule.
    pub update: Update,
    /// For each slice; all of one size.
    pub slices: Vec<SliceStep>,
}

/// First moments (or momentum) and second moments of a parameter; empty where there are none.
pub type Moments = [Vec<f32>; 2];

/// A backend that takes an optimizer's steps by itself.
pub trait OnDevice {
    /// The sum of squares of all gradients; not finite where a gradient is.
    ///
    /// # Errors
    /// Those of a device.
    fn square_sum(&mut self) -> Result<f64>;

    /// Says how steps will look, before the first, and what moments there are already: by parameter, in their order.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for moments of another length; [`crate::Error::Device`] where memory is short.
    fn begin(&mut self, steps: &[ParameterStep], moments: &[[&[f32]; 2]]) -> Result<()>;

    /// Takes a step of all parameters.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] before [`OnDevice::begin`], and for steps that do not look as it said; those of a device.
    fn update(&mut self, steps: &[ParameterStep]) -> Result<()>;

    /// The moments of a parameter as they stand; both empty before [`OnDevice::begin`].
    ///
    /// # Errors
    /// Those of a device.
    fn moments(&mut self, parameter: usize) -> Result<Moments>;
}
