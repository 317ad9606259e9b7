//! Adafactor as PyTorch has it (`torch.optim.Adafactor`): Shazeer and Stern 2018, algorithms 4 and 5, with the rate given.

use super::state::Part;

/// The least sum of squares that a variance is divided by: the f32 epsilon, PyTorch's `eps[0]`.
const EPS1: f64 = f32::EPSILON as f64;

/// Numbers of one step.
#[derive(Clone, Copy)]
pub(super) struct AdafactorStep {
    /// How much of the old moments goes: t to the power of the decay.
    pub forget: f64,
    /// The smaller of the rate and 1 / √t.
    pub rate: f64,
    /// What weights are multiplied with first.
    pub keep: f64,
    pub eps: f64,
    pub clip: f64,
    pub factor: f32,
}

impl AdafactorStep {
    /// New weights of one matrix or vector.
    pub fn run(&self, w: &mut [f32], g: &[f32], second: Part<'_>) {
        let n = w.len().max(1) as f64;
        let rms = |sum: f64| (sum / n).sqrt();
        let rate = rms(w.iter().map(|w| f64::from(*w).powi(2)).sum()).max(self.eps) * self.rate;
        let square = |g: &f32| f64::from(g * self.factor).powi(2);
        let blend = |old: &mut f32, new: f64| *old = (f64::from(*old) + self.forget * (new - f64::from(*old))) as f32;
        // The variance of element i of row r.
        let (inp, rows, cols, mean) = match second {
            Part::Factored { rows, cols } => {
                let (out, inp) = (rows.len(), cols.len());
                let mut sums = vec![0.0f64; inp];
                for (row, g) in rows.iter_mut().zip(g.chunks(inp.max(1))) {
                    g.iter().zip(&mut sums).for_each(|(g, s)| *s += square(g));
                    blend(row, g.iter().map(square).sum::<f64>() / inp.max(1) as f64);
                }
                cols.iter_mut().zip(&sums).for_each(|(c, s)| blend(c, s / out.max(1) as f64));
                let mean = rows.iter().map(|r| f64::from(*r)).sum::<f64>() / out.max(1) as f64;
                (inp, &*rows, &*cols, mean.max(EPS1))
            }
            Part::Full(v) => {
                v.iter_mut().zip(g).for_each(|(v, g)| blend(v, square(g)));
                (v.len(), &[1.0f32][..], &*v, 1.0)
            }
            Part::None => return,
        };
        let inp = inp.max(1);
        let update = |i: usize, g: f32| {
            let variance = f64::from(rows[i / inp]) * f64::from(cols[i % inp]) / mean;
            f64::from(g * self.factor) / variance.max(EPS1 * EPS1).sqrt()
        };
        let size = rms(g.iter().enumerate().map(|(i, g)| update(i, *g).powi(2)).sum());
        let step = rate / (size / self.clip).max(1.0);
        for (i, (w, g)) in w.iter_mut().zip(g).enumerate() {
            *w = (f64::from(*w) * self.keep - step * update(i, *g)) as f32;
        }
    }
}
