//! The one live line of a run.

use crate::{
    cli::failure::say,
    train::{Event, metrics::StepRecord},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// A line on stderr: loss, evaluation, rate, speed, fullest expert, time left. Where nobody sees it move, a line now and then.
pub struct Live {
    bar: ProgressBar,
    moves: bool,
    quiet: bool,
    every: u64,
    steps: u64,
    eval: Option<f64>,
    /// A mean of the last losses and speeds.
    loss: Option<f64>,
    speed: Option<f64>,
}

impl Live {
    /// A line of a run of `steps` steps that begins at `first`.
    pub fn new(steps: u64, first: u64, quiet: bool) -> Live {
        let moves = !quiet && std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            Some(steps),
            if moves { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() },
        );
        let style = ProgressStyle::with_template("{pos}/{len} [{bar:20}] {msg} ETA {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        bar.set_position(first);
        bar.reset_eta();
        Live { bar, moves, quiet, every: (steps / 20).max(1), steps, eval: None, loss: None, speed: None }
    }

    /// Shows what happened.
    pub fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Step(r) => {
                let mean = |old: Option<f64>, new: f64| Some(old.map_or(new, |o| 0.9 * o + 0.1 * new));
                if !r.skipped {
                    self.loss = mean(self.loss, r.terms.first().map_or(r.loss, |t| t.value));
                    self.speed = mean(self.speed, r.tokens_per_second);
                }
                let words = self.words(r);
                self.bar.set_message(words.clone());
                self.bar.set_position(r.step);
                if !self.moves && !self.quiet && (r.step % self.every == 0 || r.step == self.steps) {
                    say(format_args!("step {}/{}: {words}", r.step, self.steps));
                }
            }
            Event::Evaluated(r) => self.eval = Some(r.loss),
            Event::Saved(path) => tracing::info!("wrote {}", path.display()),
        }
    }

    fn words(&self, r: &StepRecord) -> String {
        let mut words = format!("loss {:.4}", self.loss.unwrap_or(r.loss));
        if let Some(eval) = self.eval {
            words += &format!(" val {eval:.4}");
        }
        words += &format!(" lr {:.1e} norm {:.2} {:.0} tok/s", r.learning_rate, r.grad_norm, self.speed.unwrap_or(0.0));
        if let Some(fullest) = r.fullest() {
            words += &format!(" fullest {fullest:.1}x");
        }
        if r.dropped_share() > 0.0 {
            words += &format!(" dropped {:.1} %", 100.0 * r.dropped_share());
        }
        if r.skipped {
            words += " (skipped: no number)";
        }
        words
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
