//! Bytes that a dispatch moves, as a function of the sizes of a step.

/// Sizes of a step while it is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// T.
    pub tokens: u32,
    /// O.
    pub outputs: u32,
    /// P.
    pub past: u32,
}

/// Bytes as a linear function of a step's sizes: what a dispatch has to move at least, if every weight, key and
/// activation is read once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Always.
    pub fixed: u64,
    /// For each of the T tokens.
    pub token: u64,
    /// For each of the O outputs.
    pub output: u64,
    /// For each of the P + T positions in the cache.
    pub position: u64,
    /// Positions that count at most: a sliding window; 0: all.
    pub window: u64,
    /// Query heads that meet each byte of a position: work counts them.
    pub heads: u64,
    /// For each token, but no more than `at_most` in all: experts, which several tokens share.
    pub expert: u64,
    /// See `expert`.
    pub at_most: u64,
}

impl Cost {
    /// The bytes for these sizes.
    pub fn eval(&self, s: Sizes) -> u64 {
        let (t, o, n) = (u64::from(s.tokens), u64::from(s.outputs), self.positions(s));
        self.fixed + t * self.token + o * self.output + n * self.position + (t * self.expert).min(self.at_most)
    }

    /// Bytes of weights times the tokens that meet them, and of keys and values times the query heads that do: a measure of time where
    /// these are many.
    pub fn work(&self, s: Sizes) -> u64 {
        let (t, n) = (u64::from(s.tokens), self.positions(s));
        let met = self
            .fixed
            .saturating_add(self.expert)
            .saturating_add(n.saturating_mul(self.position).saturating_mul(self.heads.max(1)));
        met.saturating_mul(t)
    }

    /// Positions that count: with a window those that the first token sees, and one for each further token.
    fn positions(&self, s: Sizes) -> u64 {
        let (t, n) = (u64::from(s.tokens), u64::from(s.past) + u64::from(s.tokens));
        if self.window > 0 { n.min(self.window + t - t.min(1)) } else { n }
    }

    /// The sum of both, piece by piece. Where both count positions, those of the wider window.
    #[must_use]
    pub fn and(self, o: Cost) -> Cost {
        Cost {
            fixed: self.fixed + o.fixed,
            token: self.token + o.token,
            output: self.output + o.output,
            position: self.position + o.position,
            window: match (self.position, o.position) {
                (0, _) => o.window,
                (_, 0) => self.window,
                // No window is the widest.
                _ if self.window.min(o.window) == 0 => 0,
                _ => self.window.max(o.window),
            },
            heads: self.heads.max(o.heads),
            expert: self.expert + o.expert,
            at_most: self.at_most + o.at_most,
        }
    }
}
