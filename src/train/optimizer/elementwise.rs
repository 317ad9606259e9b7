//! Steps in which a weight needs its own numbers only: Adam, AdamW, SGD.

use crate::backend::training::Update;

/// Numbers of one step of Adam. Rounded to f32 where PyTorch rounds them: as the scalars of its operations.
#[derive(Clone, Copy)]
pub(super) struct AdamStep {
    /// What gradients are multiplied with.
    factor: f32,
    /// Weight decay that is added to the gradient.
    coupled: f32,
    /// What weights are multiplied with first.
    keep: f32,
    /// 1 − β₁.
    take1: f32,
    /// β₁.
    keep1: f32,
    beta2: f32,
    take2: f32,
    /// √(1 − β₂ᵗ).
    root: f32,
    eps: f32,
    /// −rate / (1 − β₁ᵗ).
    step: f32,
}

impl AdamStep {
    /// Step `t` (from 1) of the betas and epsilon.
    pub fn new([beta1, beta2, eps]: [f64; 3], t: u64, rate: f64, decay: f64, decoupled: bool, factor: f32) -> AdamStep {
        let t = t as f64;
        AdamStep {
            factor,
            coupled: if decoupled { 0.0 } else { decay as f32 },
            keep: if decoupled { (1.0 - rate * decay) as f32 } else { 1.0 },
            take1: (1.0 - beta1) as f32,
            keep1: beta1 as f32,
            beta2: beta2 as f32,
            take2: (1.0 - beta2) as f32,
            root: (1.0 - beta2.powf(t)).sqrt() as f32,
            eps: eps as f32,
            step: (-rate / (1.0 - beta1.powf(t))) as f32,
        }
    }

    /// What a device is told of the whole step.
    pub fn of_all(&self) -> Update {
        Update::Adam {
            factor: self.factor,
            coupled: self.coupled,
            keep: self.keep,
            beta1: self.keep1,
            take1: self.take1,
            beta2: self.beta2,
            take2: self.take2,
            eps: self.eps,
        }
    }

    /// What it is told of a slice: what the update is multiplied with, and the correction of the root.
    pub fn of_slice(&self) -> (f32, f32) {
        (self.step, self.root)
    }

    /// The gradient that counts: scaled, with the decay that belongs to it.
    #[inline(always)]
    pub fn gradient(&self, w: f32, g: f32) -> f32 {
        g * self.factor + self.coupled * w
    }

    /// The first moment after a gradient: PyTorch's `lerp_`, which has two forms.
    #[inline(always)]
    fn moment(&self, m: f32, g: f32) -> f32 {
        if self.take1 < 0.5 { m + self.take1 * (g - m) } else { g - (g - m) * self.keep1 }
    }

    /// The weight after a step along `m`, over the root of the second moment.
    #[inline(always)]
    fn moved(&self, w: f32, m: f32, root: f32) -> f32 {
        w * self.keep + self.step * m / (root + self.eps)
    }

    /// New weights; `m` is empty where β₁ is 0: the gradient itself is the first moment.
    pub fn run(&self, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        if m.is_empty() {
            for ((w, g), v) in w.iter_mut().zip(g).zip(v) {
                let g = self.gradient(*w, *g);
                *v = *v * self.beta2 + self.take2 * g * g;
                *w = self.moved(*w, g, v.sqrt() / self.root);
            }
            return;
        }
        for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
            let g = self.gradient(*w, *g);
            *m = self.moment(*m, g);
            *v = *v * self.beta2 + self.take2 * g * g;
            *w = self.moved(*w, *m, v.sqrt() / self.root);
        }
    }

    /// New weights of one row, where the second moment of column j, bias-corrected, is `scale` · cols\[j\].
    pub fn row(&self, w: &mut [f32], g: &[f32], m: &mut [f32], cols: &[f32], scale: f32) {
        if m.is_empty() {
            for ((w, g), c) in w.iter_mut().zip(g).zip(cols) {
                let g = self.gradient(*w, *g);
                *w = self.moved(*w, g, (scale * c).sqrt());
            }
            return;
        }
        for (((w, g), m), c) in w.iter_mut().zip(g).zip(m).zip(cols) {
            let g = self.gradient(*w, *g);
            *m = self.moment(*m, g);
            *w = self.moved(*w, *m, (scale * c).sqrt());
        }
    }
}

/// Numbers of one step of SGD.
#[derive(Clone, Copy)]
pub(super) struct SgdStep {
    factor: f32,
    decay: f32,
    momentum: f32,
    nesterov: bool,
    step: f32,
}

impl SgdStep {
    pub fn new(momentum: f64, nesterov: bool, rate: f64, decay: f64, factor: f32) -> SgdStep {
        SgdStep { factor, decay: decay as f32, momentum: momentum as f32, nesterov, step: -rate as f32 }
    }

    /// New weights; `m` is empty without momentum. At the first step the momentum is zero, so that it becomes the gradient, as in
    /// PyTorch.
    pub fn run(&self, w: &mut [f32], g: &[f32], m: &mut [f32]) {
        if m.is_empty() {
            for (w, g) in w.iter_mut().zip(g) {
                *w += self.step * (g * self.factor + self.decay * *w);
            }
            return;
        }
        for ((w, g), m) in w.iter_mut().zip(g).zip(m) {
            let g = g * self.factor + self.decay * *w;
            *m = *m * self.momentum + g;
            let along = if self.nesterov { g + self.momentum * *m } else { *m };
            *w += self.step * along;
        }
    }
}
