//! The router's variants as data. What they mean is on the op's page, [`crate::ops::router`].

use super::WeightId;

/// How router logits become scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Score {
    /// Softmax over all experts.
    Softmax,
    /// The k largest logits, then softmax over these.
    SoftmaxOfSelected,
    /// Sigmoid of each logit.
    Sigmoid,
    /// `sqrt(ln(1 + exp(logit)))`.
    SqrtSoftplus,
    /// One expert after the other, the largest logit first: its weight is a softmax over the experts that are left, without
    /// those that are further than `threshold` below it, relative to the larger of its logit and their magnitude.
    SparseMixer {
        /// Twice the jitter of training.
        threshold: f32,
    },
}

/// What the weights of the chosen experts are divided by. The s below is their sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Renormalise {
    /// Nothing: they are the scores.
    No,
    /// `s`.
    Sum,
    /// `s + e`, with this e.
    SumPlus(f32),
    /// `max(s, e)`, with this e.
    SumAtLeast(f32),
    /// The weights become a softmax over the chosen scores: a second one, where the scores are of a softmax already.
    Softmax,
}

/// How a group of experts is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GroupScore {
    /// By its best expert.
    Max,
    /// By the sum of its two best experts.
    TopTwo,
    /// By logits of its own, of a router over groups: `[T, E + groups]`, behind those of the experts. As many experts are chosen in each
    /// chosen group; both choices are weighted by a softmax over the chosen logits, and the weights multiply (Shazeer et al. 2017,
    /// appendix B).
    Own,
}

/// Groups of neighbouring experts, of which only the best ones take part in the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Groups {
    /// How many groups the experts are in: a divisor of their number.
    pub count: usize,
    /// How many groups take part.
    pub used: usize,
    /// How groups are compared.
    pub score: GroupScore,
}

/// Which experts a token takes and with which weights (`ops/router.rs`). Ties go to the lower id; the ids come in
/// descending order of what they were chosen by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    /// Experts, E.
    pub experts: usize,
    /// Experts used a token, k.
    pub used: usize,
    /// From logits to scores.
    pub score: Score,
    /// `[E]`: added to the scores for the choice only; the weights are made of the scores without it. Also called
    /// `e_score_correction_bias` and `exp_probs_b`.
    pub selection_bias: Option<WeightId>,
    /// Groups, where the choice is limited to some of them.
    pub groups: Option<Groups>,
    /// What the k weights are divided by.
    pub renormalise: Renormalise,
    /// Factor on the weights, last of all.
    pub scale: f32,
    /// `[E]`: a further factor of each expert on its weight.
    pub expert_scale: Option<WeightId>,
}

impl Router {
    /// The `used` best of `experts`, weighted by their scores as they are.
    pub fn new(experts: usize, used: usize, score: Score) -> Router {
        let renormalise = Renormalise::No;
        Router { experts, used, score, selection_bias: None, groups: None, renormalise, scale: 1.0, expert_scale: None }
    }

    /// Whether the weights of the chosen experts always sum to 1.
    pub fn sums_to_one(&self) -> bool {
        let divided = match self.renormalise {
            Renormalise::Sum | Renormalise::Softmax => true,
            Renormalise::No | Renormalise::SumPlus(_) | Renormalise::SumAtLeast(_) => false,
        };
        (self.score == Score::SoftmaxOfSelected || divided) && self.scale == 1.0 && self.expert_scale.is_none()
    }

    /// The groups, where a router over them chooses some.
    pub fn over_groups(&self) -> Option<Groups> {
        self.groups.filter(|g| g.score == GroupScore::Own)
    }

    /// Logits of a token: one an expert, and behind them one a group where a router over groups chooses these.
    pub fn logits(&self) -> usize {
        self.experts + self.over_groups().map_or(0, |g| g.count)
    }

    /// Whether every weight is the same whatever the logits are: one expert a token, whose weight is divided by itself. What the
    /// expert gives then has no gradient for the router.
    pub fn weighs_alike(&self) -> bool {
        let divided = match self.renormalise {
            Renormalise::No => false,
            Renormalise::Sum | Renormalise::Softmax | Renormalise::SumPlus(_) | Renormalise::SumAtLeast(_) => true,
        };
        self.used == 1 && (self.score == Score::SoftmaxOfSelected || divided)
    }

    /// Whether the choice can be made on the logits themselves: every score grows with its logit, so the order is the same,
    /// and scores of far-apart logits round to the same number before the logits do.
    pub fn chooses_by_logits(&self) -> bool {
        let by_logits = |g: Groups| match g.score {
            GroupScore::Max | GroupScore::Own => true,
            GroupScore::TopTwo => false,
        };
        self.selection_bias.is_none() && self.groups.is_none_or(by_logits)
    }

    /// What it does, in words: `sigmoid, selection bias, best 4 of 8 groups (sum of top two), renormalised (sum + 1e-20),
    /// times 2.5`.
    pub fn variant(&self) -> String {
        let mut words = vec![
            match self.score {
                Score::Softmax => "softmax",
                Score::SoftmaxOfSelected => "softmax of the selected",
                Score::Sigmoid => "sigmoid",
                Score::SqrtSoftplus => "sqrt-softplus",
                Score::SparseMixer { .. } => "sparsemixer",
            }
            .to_string(),
        ];
        words.extend(self.selection_bias.map(|_| "selection bias".to_string()));
        if let Some(g) = self.groups {
            let by = match g.score {
                GroupScore::Max => "best expert",
                GroupScore::TopTwo => "sum of top two",
                GroupScore::Own => "a router over groups",
            };
            words.push(format!("best {} of {} groups ({by})", g.used, g.count));
        }
        match self.renormalise {
            Renormalise::No => {}
            Renormalise::Sum => words.push("renormalised".to_string()),
            Renormalise::SumPlus(e) => words.push(format!("renormalised (sum + {e:e})")),
            Renormalise::Softmax => words.push("softmax of the chosen scores".to_string()),
            Renormalise::SumAtLeast(e) => words.push(format!("renormalised (sum at least {e:e})")),
        }
        words.extend((self.scale != 1.0).then(|| format!("times {}", self.scale)));
        words.extend(self.expert_scale.map(|_| "times a factor of each expert".to_string()));
        words.join(", ")
    }

    /// Whether the numbers fit each other.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self) -> Result<(), String> {
        if self.used == 0 || self.used > self.experts {
            return Err(format!("top {} of {} experts", self.used, self.experts));
        }
        if self.score == Score::SoftmaxOfSelected && !self.chooses_by_logits() {
            return Err("a softmax of the selected with a selection bias: there are no scores to add it to".into());
        }
        if matches!(self.score, Score::SparseMixer { .. }) && (self.selection_bias.is_some() || self.groups.is_some()) {
            return Err("a sparsemixer with a selection bias or groups: it chooses by logits".into());
        }
        let Some(Groups { count, used, score }) = self.groups else { return Ok(()) };
        if count == 0 || self.experts % count != 0 || used == 0 || used > count {
            return Err(format!("{used} of {count} groups of {} experts", self.experts));
        }
        if score == GroupScore::TopTwo && self.experts / count < 2 {
            return Err(format!("the two best of groups of {} expert", self.experts / count));
        }
        if score == GroupScore::Own {
            let plain =
                self.renormalise == Renormalise::No && self.selection_bias.is_none() && self.expert_scale.is_none();
            if !plain || self.score != Score::SoftmaxOfSelected {
                return Err("a router over groups whose weights are no softmax over the chosen logits".into());
            }
            if self.used % used != 0 {
                return Err(format!("{} experts from {used} groups, as many from each", self.used));
            }
        }
        if self.used > used * (self.experts / count) {
            return Err(format!("{} experts from {used} of {count} groups of {}", self.used, self.experts / count));
        }
        Ok(())
    }
}
