//! `[router]`: how routers choose in training, and what keeps the experts' loads even.

use crate::{
    error::{Error, Result},
    graph::formula::{Needs, ROUTER_LOSSES, RouterLoss, Term},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A loss of routers, where there is one.
type Loss = Option<&'static RouterLoss>;

/// Reads the name of a loss; `none` is none.
fn named<'de, D: Deserializer<'de>>(d: D, key: &str, term: Term) -> std::result::Result<Loss, D::Error> {
    let name = String::deserialize(d)?;
    if name == "none" {
        return Ok(None);
    }
    RouterLoss::named(term, &name).map(Some).ok_or_else(|| {
        let known: Vec<&str> = ROUTER_LOSSES.iter().filter(|l| l.term == term).map(|l| l.name).collect();
        D::Error::custom(format!("{key} = {name:?} is no loss of routers; there are none, {}", known.join(", ")))
    })
}

fn aux<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Loss, D::Error> {
    named(d, "aux", Term::Balance)
}

fn z<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Loss, D::Error> {
    named(d, "z", Term::Z)
}

fn name<S: Serializer>(loss: &Loss, s: S) -> std::result::Result<S::Ok, S::Error> {
    s.serialize_str(loss.map_or("none", |l| l.name))
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
    #[serde(deserialize_with = "aux", serialize_with = "name")]
    pub aux: Option<&'static RouterLoss>,
    /// Its weight.
    #[serde(alias = "router_aux_loss_coef")]
    pub aux_weight: f64,
    /// The variance of losses of importance.
    pub cv2: VarianceName,
    /// The z-loss.
    #[serde(deserialize_with = "z", serialize_with = "name")]
    pub z: Option<&'static RouterLoss>,
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
    /// Experts read the input with these factors, too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub jitter_experts: bool,
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
    /// So many groups of neighbouring experts, and a router over them before the routers in each (Shazeer et al. 2017). The model that
    /// is written says so in keys of this program's own: other engines do not run it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<usize>,
    /// Groups that a token uses, 1 where it is not said; its experts are so many in each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups_used: Option<usize>,
    /// u: after every step the selection bias of an expert with less than the mean load rises by u, and that of one with more
    /// falls by u (DeepSeek-V3); 0 for never.
    pub bias_update: f64,
}

impl Default for RouterConfig {
    fn default() -> Self {
        RouterConfig {
            aux: None,
            aux_weight: 0.01,
            cv2: VarianceName::Population,
            z: None,
            z_weight: 0.001,
            noise: NoiseName::None,
            noise_std: 1.0,
            noise_in_eval: false,
            jitter: 0.0,
            jitter_experts: false,
            capacity_factor: None,
            min_capacity: 0,
            drop: DropName::Position,
            second: SecondName::Always,
            renormalise_kept: false,
            groups: None,
            groups_used: None,
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
        if self.jitter_experts && self.jitter == 0.0 {
            return bad("jitter_experts needs jitter".into());
        }
        if let Some(factor) = self.capacity_factor.filter(|f| !(*f > 0.0 && f.is_finite())) {
            return bad(format!("capacity_factor is {factor}; a number above 0 is expected, or none for room for all"));
        }
        let noiseless = self.noise == NoiseName::None || self.noise_std == 0.0;
        if let Some(loss) = self.aux.filter(|l| noiseless && l.needs == Needs::Noise) {
            return bad(format!("aux = {:?} needs noise: the load is what it makes probable", loss.name));
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
        self.check_groups()
    }

    /// Refuses groups of experts that are none, and what routers over groups do not have.
    fn check_groups(&self) -> Result<()> {
        let bad = |what: String| Err(Error::Invalid(format!("router: {what}")));
        let Some(groups) = self.groups else {
            let alone = self.groups_used.is_some();
            return if alone { bad("groups_used needs groups".into()) } else { Ok(()) };
        };
        if groups < 2 {
            return bad(format!("groups is {groups}; at least 2 are expected"));
        }
        if let Some(used) = self.groups_used.filter(|n| *n == 0 || *n > groups) {
            return bad(format!("groups_used is {used}; 1 to {groups} are expected"));
        }
        let of_weights = self.aux.is_none_or(|l| l.needs == Needs::Weights);
        let others = [
            ("aux", !of_weights),
            ("z", self.z.is_some()),
            ("noise", self.noise != NoiseName::None),
            ("jitter", self.jitter > 0.0),
            ("capacity_factor", self.capacity_factor.is_some()),
            ("bias_update", self.bias_update > 0.0),
        ];
        match others.iter().find(|(_, set)| *set) {
            Some((key, _)) => bad(format!(
                "{key} is for routers of one softmax over all experts; with groups aux = \"usage\" and \"importance\" keep loads even"
            )),
            None => Ok(()),
        }
    }
}
