//! How long a step may take beside sequences that generate: by how much prompts may widen the gaps between their tokens.
//!
//! Each step may become longer by a share of its own length. Pieces that fit such a share are small, and small pieces are dear:
//! every weight is read for a few rows. So what steps do not use is saved up to a limit, and the saved time is spent on prompts
//! that are read to their end by it, at once. Long prompts come in even pieces all the same: for them no gap is wider than the others.

/// By how many times its own length a step that generates may get longer by rows of prompts.
const STRETCH: f64 = 0.9;
/// How many times that, where more prompts wait than texts are generated: who waits is one of those that are served too, and steps
/// with many rows read every weight for more of them.
const MORE_STRETCH: f64 = 2.0;
/// Microseconds that a step may always take.
const LEAST_STEP: f64 = 8_000.0;
/// Microseconds that are saved at most: nobody notices one gap of this length.
const MOST_SAVED: f64 = 50_000.0;
/// Rows of prompts that are short.
const SHORT: usize = 64;

/// How long a step may be, and what earlier ones have saved.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Allowance {
    saved: f64,
}

impl Allowance {
    /// Microseconds of a step whose generating sequences alone take `alone`, where prompts wait with so many rows left each.
    pub fn of_step(&self, alone: f64, generating: usize, prompts: &[usize]) -> f64 {
        let saved = if prompts.iter().all(|left| *left <= SHORT) { self.saved } else { 0.0 };
        alone + share(alone, generating, prompts.len()) + saved
    }

    /// Takes in how long such a step was.
    pub fn spend(&mut self, alone: f64, generating: usize, prompts: &[usize], micros: f64) {
        let used = if prompts.is_empty() { 0.0 } else { (micros - alone).max(0.0) };
        self.saved = (self.saved + share(alone, generating, prompts.len()) - used).clamp(0.0, MOST_SAVED);
    }
}

/// What prompts may always add to a step.
fn share(alone: f64, generating: usize, prompts: usize) -> f64 {
    let stretch = STRETCH * (prompts as f64 / generating.max(1) as f64).clamp(1.0, MORE_STRETCH);
    (stretch * alone).max(LEAST_STEP - alone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_prompt_has_its_share_of_every_step_and_no_more() {
        let mut a = Allowance::default();
        (0..100).for_each(|_| a.spend(10_000.0, 7, &[], 10_000.0));
        assert_eq!(a.of_step(10_000.0, 7, &[4096]), 19_000.0);
        assert_eq!(a.of_step(10_000.0, 7, &[4096, 20]), 19_000.0);
        // Where more wait than generate they get more; and a short step may always become a little longer.
        assert_eq!(a.of_step(10_000.0, 1, &[4096, 4096]), 28_000.0);
        assert_eq!(a.of_step(2_000.0, 7, &[4096]), 8_000.0);
    }

    #[test]
    fn a_short_prompt_is_read_by_what_was_saved() {
        let mut a = Allowance::default();
        assert_eq!(a.of_step(10_000.0, 4, &[40]), 19_000.0);
        a.spend(10_000.0, 4, &[], 11_000.0);
        assert_eq!(a.of_step(10_000.0, 4, &[40]), 28_000.0);
        (0..100).for_each(|_| a.spend(10_000.0, 4, &[], 10_000.0));
        assert_eq!(a.of_step(10_000.0, 4, &[40, 64]), 69_000.0);
        // What it took is gone, and who comes directly behind it waits for its share again.
        a.spend(10_000.0, 4, &[40, 64], 65_000.0);
        assert_eq!(a.of_step(10_000.0, 4, &[40]), 19_000.0 + 4_000.0);
    }

    /// However many short prompts come, they do not take more than their share of the time in the long run.
    #[test]
    fn a_storm_of_short_prompts_takes_its_share() {
        let (mut a, mut all, mut generated) = (Allowance::default(), 0.0, 0.0);
        for _ in 0..1000 {
            let micros = a.of_step(10_000.0, 4, &[64; 4]);
            a.spend(10_000.0, 4, &[64; 4], micros);
            (all, generated) = (all + micros, generated + 10_000.0);
        }
        assert!(all <= generated * (1.0 + STRETCH) + 1.0, "{all} for {generated}");
    }
}
