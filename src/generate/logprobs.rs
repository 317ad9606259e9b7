//! Log-probabilities of tokens.

/// How probable a chosen token was: the model's own distribution, after a logits hook and before bias, penalties, filters and
/// temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// The natural logarithm of the chosen token's probability.
    pub logprob: f32,
    /// The most probable tokens with theirs, the best first; of equal ones the lower id first.
    pub top: Vec<(u32, f32)>,
}

impl Logprobs {
    /// Of token `id` and the `n` most probable ones, by logits `[V]`.
    pub(crate) fn of(logits: &[f32], id: u32, n: usize) -> Logprobs {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = logits.iter().map(|x| f64::from(x - most).exp()).sum();
        let log = |id: u32| (f64::from(logits[id as usize] - most) - total.ln()) as f32;
        let before = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        if n < order.len() {
            order.select_nth_unstable_by(n, before);
            order.truncate(n);
        }
        order.sort_unstable_by(before);
        Logprobs { logprob: log(id), top: order.into_iter().map(|id| (id, log(id))).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::Logprobs;

    #[test]
    fn probabilities_sum_to_one_and_ties_go_to_the_lower_id() {
        let logits = [1.0f32, 3.0, f32::NEG_INFINITY, 3.0, -2.0];
        let all = Logprobs::of(&logits, 3, 9);
        assert_eq!(all.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 0, 4, 2]);
        let sum: f64 = all.top.iter().map(|t| f64::from(t.1).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        assert_eq!(all.logprob, all.top[1].1);
        let two = Logprobs::of(&logits, 4, 2);
        assert_eq!((two.top.as_slice(), two.logprob), (&all.top[..2], all.top[3].1));
        assert_eq!(Logprobs::of(&logits, 0, 0).top, []);
    }
}
