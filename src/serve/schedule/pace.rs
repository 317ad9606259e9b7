//! How long a step takes: learnt from the steps so far.
//!
//! The time of rows is no multiple of their number: a Mixture-of-Experts layer reads the weights of an expert once for all rows
//! that chose it, so that time grows fast at first and slowly later. Two tables by number of rows hold what was measured:
//! of steps that only generate, and of what prompts' rows added to such steps. Between measured numbers time is
//! interpolated. Beyond the largest a little more is taken to cost little more, for the first row may cost as much as the next
//! twenty where it brings other kernels with it, and much more to grow in proportion, which overestimates; so longer steps are
//! approached from below, and each of them is measured in turn.
//!
//! A measurement may be the fault of something else on the machine, and a number of rows that was too slow once would not be tried
//! again by itself. So one measurement at most doubles a time halfway, and what was too slow counts only for some steps.

/// What is known of the time of steps.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    generating: Table,
    prompts: Table,
}

/// Part of a new measurement in the average: of a shorter time, and of a longer one.
const SHORTER: f64 = 0.25;
const LONGER: f64 = 0.5;
/// How many times the average a longer time may count as.
const SURPRISE: f64 = 2.0;
/// Steps with prompts for which a number of rows that was too slow is not tried again.
const REMEMBERED: u64 = 32;
/// How much longer a little more rows than were ever measured may take.
const A_LITTLE_MORE: f64 = 1.1;

impl Pace {
    /// Takes in that a step of so many rows took so many microseconds.
    pub fn learn(&mut self, generating: usize, prompt: usize, micros: f64) {
        if prompt == 0 {
            self.generating.learn(generating, micros);
        } else {
            let before = self.generating.predict(generating).unwrap_or(0.0);
            // What rows add is never less than nothing, however the measurements scatter.
            self.prompts.learn(prompt, (micros - before).max(1.0));
        }
    }

    /// Microseconds of a step of so many rows, as far as is known; `None` before anything like it was measured.
    pub fn predict(&self, generating: usize, prompt: usize) -> Option<f64> {
        let base = if generating == 0 { Some(0.0) } else { self.generating.predict(generating) };
        let more = if prompt == 0 { Some(0.0) } else { self.prompts.predict(prompt) };
        Some(base? + more?)
    }

    /// The most rows of prompts, up to `most`, that fit a step of `micros` beside `generating` others; at least 1. So long as
    /// nothing is known it is a careful number.
    pub fn prompt_rows(&self, generating: usize, micros: f64, most: usize) -> usize {
        const UNKNOWN: usize = 16;
        let base = self.generating.predict(generating).unwrap_or(0.0);
        let room = (micros - base).max(0.0);
        let fits = |n: usize| match self.prompts.predict(n) {
            None => n <= UNKNOWN,
            Some(t) => t <= room || self.prompts.predict_without_old(n, room).is_some_and(|t| t <= room),
        };
        // Time grows with the number of rows, so the largest that fits is found by bisection.
        let (mut low, mut high) = (1, most.max(1) + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(middle) { low = middle } else { high = middle }
        }
        low
    }
}

/// Average times by number of rows, in classes that get wider with it.
#[derive(Clone, Debug, Default)]
struct Table {
    classes: Vec<Class>,
    /// Measurements so far.
    now: u64,
}

#[derive(Clone, Copy, Debug)]
struct Class {
    /// Averages of the rows that were measured, and of their times.
    rows: f64,
    micros: f64,
    /// When it was measured last.
    at: u64,
}

/// The class of a number of rows: eight for each doubling.
fn class(rows: usize) -> usize {
    (8.0 * (rows.max(1) as f64).log2()).round() as usize
}

impl Table {
    fn learn(&mut self, rows: usize, micros: f64) {
        if rows == 0 || !micros.is_finite() {
            return;
        }
        self.now += 1;
        let place = self.classes.partition_point(|c| class(c.rows as usize) < class(rows));
        let (rows_f, now) = (rows as f64, self.now);
        match self.classes.get_mut(place).filter(|c| class(c.rows as usize) == class(rows)) {
            Some(c) => {
                let more = (micros * c.rows / rows_f).min(SURPRISE * c.micros) - c.micros;
                c.micros += more * if more > 0.0 { LONGER } else { SHORTER };
                c.at = now;
            }
            None => self.classes.insert(place, Class { rows: rows_f, micros, at: now }),
        }
    }

    /// Time of so many rows; never less than that of fewer.
    fn predict(&self, rows: usize) -> Option<f64> {
        predict(self.classes.iter(), rows)
    }

    /// The same from what was measured lately or fits in `room`.
    fn predict_without_old(&self, rows: usize, room: f64) -> Option<f64> {
        predict(self.classes.iter().filter(|c| c.micros <= room || self.now - c.at <= REMEMBERED), rows)
    }
}

fn predict<'a>(classes: impl Iterator<Item = &'a Class>, rows: usize) -> Option<f64> {
    let rows = rows as f64;
    if rows == 0.0 {
        return Some(0.0);
    }
    let (mut before, mut most): (Option<&Class>, f64) = (None, 0.0);
    for c in classes {
        if c.rows >= rows {
            let Some(b) = before.filter(|_| c.rows > rows) else { return Some(c.micros.max(most)) };
            let upper = c.micros.max(most);
            let between = (rows - b.rows) / (c.rows - b.rows);
            return Some(most + between * (upper - most));
        }
        most = most.max(c.micros);
        before = Some(c);
    }
    let near = |b: &Class| 1.25 * b.rows + 1.0;
    before.map(|b| A_LITTLE_MORE * most * (rows / near(b)).max(1.0))
}

#[cfg(test)]
mod tests {
    use super::Pace;

    /// A step's fixed cost, and a cost of rows that saturates as experts do.
    fn true_time(generating: usize, prompt: usize) -> f64 {
        let experts = |n: usize| 20_000.0 * (1.0 - (-(n as f64) / 12.0).exp()) + 150.0 * n as f64;
        2_000.0 + experts(generating + prompt)
    }

    /// Within some dozen steps the chosen number of rows uses the budget and does not exceed it by much.
    #[test]
    fn steps_approach_their_budget_from_below() {
        for (generating, micros) in [(7, 60_000.0), (0, 100_000.0), (1, 30_000.0)] {
            let mut pace = Pace::default();
            for _ in 0..4 {
                if generating > 0 {
                    pace.learn(generating, 0, true_time(generating, 0));
                }
            }
            let mut rows = 0;
            for step in 0..40 {
                rows = pace.prompt_rows(generating, micros, 512);
                let took = true_time(generating, rows);
                assert!(took < 1.3 * micros, "step {step}: {rows} rows took {took} of {micros}");
                pace.learn(generating, rows, took);
            }
            let took = true_time(generating, rows);
            assert!(took > 0.7 * micros, "{rows} rows take {took} of {micros}");
        }
    }

    /// The first row beside those that generate brings other kernels with it, and the next ones cost little.
    #[test]
    fn a_dear_first_row_does_not_keep_others_away() {
        let time = |prompt: usize| 85_000.0 + if prompt > 0 { 50_000.0 + 400.0 * prompt as f64 } else { 0.0 };
        let (mut pace, micros) = (Pace::default(), 161_500.0);
        (0..4).for_each(|_| pace.learn(7, 0, time(0)));
        // What a noisy moment left of the first try.
        pace.learn(7, 16, 900_000.0);
        let mut rows = 0;
        for _ in 0..80 {
            rows = pace.prompt_rows(7, micros, 512);
            assert!(time(rows) < 1.15 * micros, "{rows} rows");
            pace.learn(7, rows, time(rows));
        }
        assert!(rows > 40, "{rows} rows, of 66 that fit");
    }

    /// Every twentieth step is disturbed; the others decide.
    #[test]
    fn disturbances_are_forgotten() {
        let mut pace = Pace::default();
        (0..4).for_each(|_| pace.learn(7, 0, true_time(7, 0)));
        let (mut sum, mut n) = (0, 0);
        for step in 0..600 {
            let rows = pace.prompt_rows(7, 40_000.0, 512);
            let slower = if step % 20 == 0 { 6.0 } else { 1.0 };
            pace.learn(7, rows, slower * true_time(7, rows));
            if step > 200 {
                (sum, n) = (sum + rows, n + 1);
            }
        }
        let most = (1..512).filter(|n| true_time(7, *n) <= 40_000.0).max().unwrap();
        assert!(sum / n > most / 2, "{} rows of {most}", sum / n);
    }

    #[test]
    fn a_device_that_slows_down_is_noticed() {
        let mut pace = Pace::default();
        (0..50).for_each(|_| pace.learn(4, 0, 10_000.0));
        (0..20).for_each(|_| pace.learn(4, 0, 40_000.0));
        assert!((pace.predict(4, 0).unwrap() - 40_000.0).abs() < 1_000.0);
        assert_eq!(pace.predict(4, 8), None);
        assert_eq!(Pace::default().prompt_rows(3, 5_000.0, 512), 16);
        assert_eq!(pace.prompt_rows(4, 1.0, 0), 1, "a prompt never starves");
    }

    /// Measurements that scatter do not make more rows cheaper than fewer.
    #[test]
    fn time_grows_with_rows() {
        let mut pace = Pace::default();
        for (rows, micros) in [(1, 900.0), (2, 700.0), (40, 5_000.0), (64, 4_000.0), (300, 20_000.0)] {
            pace.learn(0, rows, micros);
        }
        let times: Vec<f64> = (1..600).map(|n| pace.predict(0, n).unwrap()).collect();
        assert!(times.windows(2).all(|w| w[0] <= w[1] + 1e-9), "{times:?}");
    }
}
