//! The global norm of gradients, and what it is clipped with.

use super::learner::Learner;
use crate::{
    error::{Error, Result},
    threads,
};
use std::sync::Mutex;

/// Gradients that are summed at once: sums of fixed pieces do not depend on who computes them.
const PIECE: usize = 1 << 15;

/// The size of all gradients together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// The square root of the sum of all squares; infinite or not a number where a gradient is.
    pub value: f64,
}

impl Norm {
    /// Whether every gradient is a number.
    pub fn is_finite(self) -> bool {
        self.value.is_finite()
    }
}

/// The sum of squares of one parameter's gradients: f64 sums of fixed pieces, added in their order, so that any number of
/// threads gives the same bits.
///
/// # Errors
/// [`Error::Device`] where a thread ended early.
pub fn square_sum(gradients: &[f32], threads: usize) -> Result<f64> {
    let sums = Mutex::new(vec![0.0f64; gradients.len().div_ceil(PIECE)]);
    let early = || Error::Device("a worker thread ended early".into());
    let threads = threads.min(gradients.len().div_ceil(PIECE)).max(1);
    threads::for_each(
        threads,
        gradients.chunks(PIECE).enumerate(),
        || (),
        |(), (i, piece)| {
            let sum = piece_sum(piece);
            sums.lock().map_err(|_| early())?[i] = sum;
            Ok(())
        },
    )?;
    Ok(sums.into_inner().map_err(|_| early())?.iter().sum())
}

/// The norm of all gradients of a model.
///
/// # Errors
/// As [`square_sum`], and what the model says.
pub fn gradient_norm(learner: &mut dyn Learner, threads: usize) -> Result<Norm> {
    if let Some(device) = learner.device() {
        return Ok(Norm { value: device.square_sum()?.sqrt() });
    }
    let mut sum = 0.0;
    learner.each(&mut |_, slot| {
        sum += square_sum(slot.gradients, threads)?;
        Ok(())
    })?;
    Ok(Norm { value: sum.sqrt() })
}

/// The sum of squares in f64, in eight lanes.
fn piece_sum(x: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let mut groups = x.chunks_exact(8);
    for group in &mut groups {
        for (lane, v) in lanes.iter_mut().zip(group) {
            *lane += f64::from(*v) * f64::from(*v);
        }
    }
    let rest: f64 = groups.remainder().iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    lanes.iter().sum::<f64>() + rest
}

/// What gradients of this norm are multiplied with so that their norm is at most `limit` (0 for no limit), as PyTorch's
/// `clip_grad_norm_`: min(1, limit / (norm + 1e-6)).
pub fn clip_factor(norm: Norm, limit: f64) -> f64 {
    if limit > 0.0 { (limit / (norm.value + 1e-6)).min(1.0) } else { 1.0 }
}
