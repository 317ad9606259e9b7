//! `[router]`: how routers choose in training, and what keeps the experts' loads even.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// `aux` of `[router]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuxName {
    /// No balancing loss.
    #[default]
    None,
    /// The loads of first and second choice against the mean probabilities, of every layer, averaged.
    Switch,
    /// Hugging Face's `load_balancing_loss_func`, over all layers together.
    Hf,
    /// The same of every layer, averaged.
    MeanOfLayers,
    /// The share of tokens with a weight above 0 against the mean weight.
    Usage,
    /// GShard's with first choices, times the number of experts, as DeepSpeed has it.
    Gshard,
    /// GShard's as its paper has it: divided by the number of experts.
    GshardPaper,
    /// The squared coefficient of variation of the weights' sums (Shazeer et al. 2017).
    Importance,
    /// The same and that of the load that the noise makes probable: needs `noise`.
    ImportanceLoad,
}

/// `z` of `[router]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ZName {
    /// No z-loss.
    #[default]
    None,
    /// The mean square of the logits' log-sum-exp (ST-MoE).
    Logsumexp,
    /// The mean square of the logits.
    MeanSquare,
}

/// `cv2` of `[router]`: the variance in losses of importance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceName {
    /// Divided by the number of experts.
    #[default]
    Population,
    /// Divided by one less.
    Sample,
}

/// `noise` of `[router]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseName {
    /// No noise on the logits.
    #[default]
    None,
    /// Normal noise of the deviation `noise_std`.
    Normal,
    /// Normal noise whose deviation is learned: `noise_std` · softplus of a matrix (Shazeer et al. 2017). The matrix begins as zeros.
    Learned,
}

/// `drop` of `[router]`: which tokens stay where an expert has no room for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropName {
    /// The first ones; all first choices before all second ones.
    #[default]
    Position,
    /// Those with the largest weights.
    Probability,
}

/// `second` of `[router]`: when a second choice stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecondName {
    /// Where there is room.
    #[default]
    Always,
    /// Besides, with a probability of twice its weight (GShard).
    Random,
}

/// `[router]`: how routers choose in training, and what keeps the experts' loads even. Noise, jitter and capacity are of training
/// alone: evaluation and the model that is written are without.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouterConfig {
    /// The balancing loss.
    pub aux: AuxName,
    /// Its weight.
    #[serde(alias = "router_aux_loss_coef")]
    pub aux_weight: f64,
    /// The variance of losses of importance.
    pub cv2: VarianceName,
    /// The z-loss.
    pub z: ZName,
    /// Its weight.
    #[serde(alias = "router_z_loss_coef")]
    pub z_weight: f64,
    /// Noise on the logits before the choice.
    pub noise: NoiseName,
    /// Its deviation, or what the learned one is multiplied with.
    pub noise_std: f64,
    /// Noise in evaluation, too.
    pub noise_in_eval: bool,
    /// e: the router's input times random factors between 1 − e and 1 + e.
    #[serde(alias = "router_jitter_noise")]
    pub jitter: f64,
    /// An expert takes `max(ceil(tokens / experts · used · capacity_factor), min_capacity)` tokens of a micro-batch; all where it is
    /// not said.
    pub capacity_factor: Option<f64>,
    /// See there.
    pub min_capacity: usize,
    /// Which tokens stay.
    pub drop: DropName,
    /// When a second choice stays.
    pub second: SecondName,
    /// Divide weights by the sum of those that stay.
    pub renormalise_kept: bool,
    /// u: after every step the selection bias of an expert with less than the mean load rises by u, and that of one with more
    /// falls by u (DeepSeek-V3); 0 for never.
    pub bias_update: f64,
}

impl Default for RouterConfig {
    fn default() -> Self {
        RouterConfig {
            aux: AuxName::None,
            aux_weight: 0.01,
            cv2: VarianceName::Population,
            z: ZName::None,
            z_weight: 0.001,
            noise: NoiseName::None,
            noise_std: 1.0,
            noise_in_eval: false,
            jitter: 0.0,
            capacity_factor: None,
            min_capacity: 0,
            drop: DropName::Position,
            second: SecondName::Always,
            renormalise_kept: false,
            bias_update: 0.0,
        }
    }
}

impl RouterConfig {
    /// Refuses numbers out of range, and keys that do nothing by themselves.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the key.
    pub fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::Invalid(format!("router: {what}")));
        for (key, w) in [
            ("aux_weight", self.aux_weight),
            ("z_weight", self.z_weight),
            ("noise_std", self.noise_std),
            ("bias_update", self.bias_update),
        ] {
            if !(w >= 0.0 && w.is_finite()) {
                return bad(format!("{key} is {w}; a number from 0 is expected"));
            }
        }
        if !(0.0..1.0).contains(&self.jitter) {
            return bad(format!("jitter is {}; a number from 0 to below 1 is expected", self.jitter));
        }
        if let Some(factor) = self.capacity_factor.filter(|f| !(*f > 0.0 && f.is_finite())) {
            return bad(format!("capacity_factor is {factor}; a number above 0 is expected, or none for room for all"));
        }
        if self.aux == AuxName::ImportanceLoad && (self.noise == NoiseName::None || self.noise_std == 0.0) {
            return bad("aux = \"importance_load\" needs noise: the load is what it makes probable".into());
        }
        if self.noise != NoiseName::None && self.noise_std == 0.0 {
            return bad("noise with noise_std = 0 is none".into());
        }
        if self.noise_in_eval && self.noise == NoiseName::None {
            return bad("noise_in_eval needs noise".into());
        }
        let limits = [
            ("min_capacity", self.min_capacity > 0),
            ("drop", self.drop != DropName::Position),
            ("second", self.second != SecondName::Always),
            ("renormalise_kept", self.renormalise_kept),
        ];
        if let Some((key, _)) = limits.iter().find(|(_, set)| *set).filter(|_| self.capacity_factor.is_none()) {
            return bad(format!("{key} needs capacity_factor: without it there is room for all"));
        }
        Ok(())
    }
}
