//! Norms, and matrix products with all tokens.

use super::*;

impl State {
    /// Quantises a value for products with `weights`, unless none of them is quantised or an earlier node has done so.
    pub(super) fn quantise(&mut self, f: StepContext<'_>, v: ValueId, weights: &[WeightId]) -> Result<()> {
        // A value with a row for each expert slot counts as that many rows, each as long as a row of the weight.
        let cols = f.weight(weights[0]).cols();
        if self.acts_of == Some((v, cols)) || !weights.iter().any(|w| f.weight(*w).is_quantised()) {
            return Ok(());
        }
        let mut acts = take(&mut self.acts);
        self.acts_of = None;
        let done = acts.fill(&f.model.pool, f.model.simd_level, f.activations(v), self.floats_of(f, v), cols);
        self.acts = acts;
        self.acts_of = Some((v, cols));
        done
    }

    /// ExpertMatrix on one input, after an optional norm; what follows is for a single matrix.
    pub(super) fn linears(
        &mut self,
        f: StepContext<'_>,
        x: ValueId,
        norm: Option<&Norm>,
        parts: &[Linear],
        outs: &mut [Aligned<f32>],
        then: EpilogueValues,
    ) -> Result<()> {
        let (t, cols) = (f.rows_of(x), f.place(x).cols);
        let quantised = parts.iter().any(|l| f.weight(l.weight).is_quantised());
        let mut normed = take(&mut self.normed);
        let mut acts = take(&mut self.acts);
        let made = (|| {
            let mut floats = self.floats_of(f, x);
            if let Some(n) = norm {
                normed.grow(t * cols);
                norm_rows(self.env(f), f, floats, n, cols, &mut normed)?;
                floats = &normed[..t * cols];
            }
            // Quants that are kept in `acts` are those of the value itself, not of its norm.
            if quantised && (norm.is_some() || self.acts_of != Some((x, cols))) {
                acts.fill(&f.model.pool, f.model.simd_level, f.activations(x), floats, cols)?;
            }
            let epilogue = match then {
                EpilogueValues::Add { residual, gate, factor } => {
                    Epilogue::Add(self.floats_of(f, residual), gate.map(|g| self.floats_of(f, g)), factor)
                }
                EpilogueValues::Act(act) => Epilogue::Act(act),
                EpilogueValues::Nothing => Epilogue::Plain,
            };
            matmul::linears(self.env(f), Input { floats, acts: &acts }, t, parts, outs, epilogue)
        })();
        if quantised {
            self.acts_of = if norm.is_none() { Some((x, cols)) } else { None };
        }
        (self.normed, self.acts) = (normed, acts);
        made
    }
}

/// Normalises every row of `x`, `[T, cols]`, into `out`.
pub(super) fn norm_rows(
    env: Env<'_>,
    f: StepContext<'_>,
    x: &[f32],
    n: &Norm,
    cols: usize,
    out: &mut [f32],
) -> Result<()> {
    let (w, b) = (f.vector(n.weight), n.bias.map(|b| f.vector(b)));
    let centred = match n.kind {
        NormKind::Rms if b.is_none() => {
            return each_row(env, x, cols, out, &|_, x, y| env.simd(RmsNorm { x, y, w, eps: n.eps }));
        }
        NormKind::Rms => false,
        NormKind::Layer => true,
    };
    each_row(env, x, cols, out, &|_, x, y| env.simd(LayerNorm { x, y, w, b, centred, eps: n.eps }))
}
