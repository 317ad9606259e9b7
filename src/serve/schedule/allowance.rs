//! How long a step may take beside sequences that generate: by how much prompts may widen the gaps between their tokens.
//!
//! Each step may become longer by a share of its own length. Pieces that fit such a share are small, and small pieces are dear:
//! every weight is read for a few rows. So short prompts wait for some steps, while what these do not use is saved, and are read to
//! their end at once by what was saved; nobody reads faster for having begun sooner. Long prompts come in even pieces: for them no
//! gap is wider than the others.

/// By how many times its own length a step that generates may get longer by rows of prompts.
const STRETCH: f64 = 0.9;
/// How many times that, where more prompts wait than texts are generated: who waits is one of those that are served too, and steps
/// with many rows read every weight for more of them. More than this only while the gap is short.
const MORE_STRETCH: f64 = 2.0;
/// Microseconds that a step may always take.
const LEAST_STEP: f64 = 8_000.0;
/// Microseconds that are saved at most: nobody notices one gap of this length.
const MOST_SAVED: f64 = 80_000.0;
/// Microseconds by which a step may get longer for the sake of many prompts: so many gaps of this length are still fluent.
const MORE_SHORT: f64 = 40_000.0;
/// Rows of prompts that are short.
const SHORT: usize = 128;

/// What waits beside sequences that generate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prompts {
    /// How many prompts.
    pub count: usize,
    /// Rows that are left of the one with the fewest.
    pub fewest: usize,
    /// Whether all of them are short: from their first row that was not in the cache to their last, whatever is left.
    pub short: bool,
}

impl Prompts {
    /// Those of which so many rows are left, of so many that were to be read.
    pub fn of(prompts: impl Iterator<Item = (usize, usize)>) -> Self {
        prompts.fold(Prompts { count: 0, fewest: usize::MAX, short: true }, |all, (left, whole)| Prompts {
            count: all.count + 1,
            fewest: all.fewest.min(left),
            short: all.short && whole <= SHORT,
        })
    }
}

/// How long a step may be, and what earlier ones have saved.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Allowance {
    saved: f64,
}

impl Allowance {
    /// Microseconds of a step whose generating sequences alone take `alone`.
    pub fn of_step(&self, alone: f64, generating: usize, prompts: Prompts) -> f64 {
        alone + share(alone, generating, prompts) + if prompts.short { self.saved } else { 0.0 }
    }

    /// Whether prompts should wait for a step in which more of their rows than these have room.
    pub fn waits(&self, rows: usize, prompts: Prompts) -> bool {
        prompts.short && rows < prompts.fewest && self.saved < MOST_SAVED
    }

    /// Takes in by how much rows of prompts, if there were any, made such a step longer.
    pub fn spend(&mut self, alone: f64, generating: usize, prompts: Prompts, longer: f64) {
        self.saved = (self.saved + share(alone, generating, prompts) - longer.max(0.0)).clamp(0.0, MOST_SAVED);
    }
}

/// What prompts may always add to a step.
fn share(alone: f64, generating: usize, prompts: Prompts) -> f64 {
    let times = (prompts.count as f64 / generating.max(1) as f64).max(1.0);
    let stretched = |times: f64| STRETCH * times * alone;
    stretched(times.min(MORE_STRETCH)).max(stretched(times).min(MORE_SHORT)).max(LEAST_STEP - alone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(rows: &[usize]) -> Prompts {
        Prompts::of(rows.iter().map(|n| (*n, *n)))
    }

    #[test]
    fn a_long_prompt_has_its_share_of_every_step_and_no_more() {
        let mut a = Allowance::default();
        (0..100).for_each(|_| a.spend(10_000.0, 7, prompts(&[]), 0.0));
        assert_eq!(a.of_step(10_000.0, 7, prompts(&[4096])), 19_000.0);
        assert_eq!(a.of_step(10_000.0, 7, prompts(&[4096, 20])), 19_000.0);
        // To its end, of which there is little left.
        assert_eq!(a.of_step(10_000.0, 7, Prompts::of([(20, 4096)].into_iter())), 19_000.0);
        assert!(!Allowance::default().waits(1, prompts(&[4096])));
        // Where more wait than generate they get more; and a short step may always become a little longer.
        assert_eq!(a.of_step(10_000.0, 1, prompts(&[4096, 4096])), 28_000.0);
        assert_eq!(a.of_step(10_000.0, 1, prompts(&[4096; 4])), 46_000.0);
        assert_eq!(a.of_step(10_000.0, 1, prompts(&[4096; 16])), 50_000.0);
        assert_eq!(a.of_step(100_000.0, 1, prompts(&[4096; 16])), 280_000.0);
        assert_eq!(a.of_step(2_000.0, 7, prompts(&[4096])), 8_000.0);
    }

    #[test]
    fn a_short_prompt_is_read_by_what_was_saved() {
        let mut a = Allowance::default();
        assert_eq!(a.of_step(10_000.0, 4, prompts(&[40])), 19_000.0);
        a.spend(10_000.0, 4, prompts(&[]), 0.0);
        assert_eq!(a.of_step(10_000.0, 4, prompts(&[40])), 28_000.0);
        (0..100).for_each(|_| a.spend(10_000.0, 4, prompts(&[]), 0.0));
        assert_eq!(a.of_step(10_000.0, 4, prompts(&[40, 64])), 99_000.0);
        // What it took is gone, and who comes directly behind it waits for its share again.
        a.spend(10_000.0, 4, prompts(&[40, 64]), 85_000.0);
        assert_eq!(a.of_step(10_000.0, 4, prompts(&[40])), 19_000.0 + 4_000.0);
    }

    /// One that has no room yet waits until it has, or until no more is saved: then it comes in pieces.
    #[test]
    fn a_short_prompt_waits_for_room_but_not_for_ever() {
        for (micros_of_a_row, steps, pieces) in [(1_000.0, 3, 1), (5_000.0, 8, 2)] {
            let (mut a, mut left, mut waited, mut read) = (Allowance::default(), 30usize, 0, 0);
            while left > 0 {
                let p = Prompts::of([(left, 30)].into_iter());
                let fit = ((a.of_step(10_000.0, 4, p) - 10_000.0) / micros_of_a_row) as usize;
                let rows = if a.waits(fit, p) { 0 } else { fit.min(left) };
                a.spend(10_000.0, 4, p, rows as f64 * micros_of_a_row);
                left -= rows;
                if rows > 0 { read += 1 } else { waited += 1 }
            }
            assert!((steps..=2 * steps).contains(&waited) && read == pieces, "waited {waited} steps, {read} pieces");
        }
    }

    /// However many short prompts come, they do not take more than their share of the time in the long run.
    #[test]
    fn a_storm_of_short_prompts_takes_its_share() {
        let (mut a, mut all, mut generated) = (Allowance::default(), 0.0, 0.0);
        for _ in 0..1000 {
            let micros = a.of_step(10_000.0, 4, prompts(&[64; 4]));
            a.spend(10_000.0, 4, prompts(&[64; 4]), micros - 10_000.0);
            (all, generated) = (all + micros, generated + 10_000.0);
        }
        assert!(all <= generated * (1.0 + STRETCH) + 1.0, "{all} for {generated}");
    }
}
