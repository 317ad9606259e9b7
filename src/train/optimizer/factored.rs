//! Adam with factored second moments: Shazeer et al. 2017, appendix D ("Adam with reduced state for experts").
//!
//! For a matrix `[out, in]` the means of the squared gradients of every row, R, and of every column, C, are remembered as Adam
//! remembers its second moments; the second moment of an element is R C / mean(R).

use super::elementwise::AdamStep;

/// Numbers of one step.
#[derive(Clone, Copy)]
pub(super) struct FactoredStep {
    pub adam: AdamStep,
    pub beta2: f64,
    /// 1 − β₂ᵗ.
    pub correction: f64,
}

impl FactoredStep {
    /// New weights of one matrix of `rows.len()` rows and `cols.len()` columns.
    pub fn run(&self, w: &mut [f32], g: &[f32], m: &mut [f32], rows: &mut [f32], cols: &mut [f32]) {
        let (out, inp) = (rows.len(), cols.len());
        let mut sums = vec![0.0f64; inp];
        let mean = |old: f32, sum: f64, n: usize| {
            (f64::from(old) * self.beta2 + (1.0 - self.beta2) * (sum / n.max(1) as f64)) as f32
        };
        for (r, row) in rows.iter_mut().enumerate() {
            let (w, g) = (&w[r * inp..(r + 1) * inp], &g[r * inp..(r + 1) * inp]);
            let mut sum = 0.0;
            for ((w, g), column) in w.iter().zip(g).zip(&mut sums) {
                let g = f64::from(self.adam.gradient(*w, *g));
                sum += g * g;
                *column += g * g;
            }
            *row = mean(*row, sum, inp);
        }
        cols.iter_mut().zip(&sums).for_each(|(c, sum)| *c = mean(*c, *sum, out));
        let all = rows.iter().map(|r| f64::from(*r)).sum::<f64>() / out.max(1) as f64;
        let m_row = if m.is_empty() { 0 } else { inp };
        for (r, row) in rows.iter().enumerate() {
            // Without any gradient so far every second moment is 0.
            let scale = if all > 0.0 { f64::from(*row) / all / self.correction } else { 0.0 };
            let (w, g) = (&mut w[r * inp..(r + 1) * inp], &g[r * inp..(r + 1) * inp]);
            self.adam.row(w, g, &mut m[r * m_row..(r + 1) * m_row], cols, scale as f32);
        }
    }
}
