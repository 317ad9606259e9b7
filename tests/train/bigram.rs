//! A model with exact gradients: logits of a row are A[id] + mean of B over the row's text up to itself + X[id mod E][0 at the
//! beginning of a text, 1 behind it] + c. So A learns which token follows which, B and X only learn anything useful where texts and
//! positions begin anew, and an expert of X without tokens has no gradient.

use moeray::{
    Error, Result,
    train::{ExpertLoad, Learner, LossTerm, MicroBatch, Outcome, Parameter, Slot, Visit},
};

pub const EXPERTS: usize = 4;

pub struct Bigram {
    parameters: Vec<Parameter>,
    pub weights: Vec<Vec<f32>>,
    pub gradients: Vec<Vec<f32>>,
    used: Vec<bool>,
    trained: Vec<bool>,
    vocab: usize,
    context: usize,
    /// Steps whose loss is no number.
    pub poison: Vec<u64>,
    /// How long a micro-batch takes.
    pub pause: std::time::Duration,
}

impl Bigram {
    pub fn new(vocab: usize, context: usize) -> Bigram {
        let parameters = vec![
            Parameter::new("token_embd.weight", &[vocab, vocab]),
            Parameter::new("blk.0.attn_q.weight", &[vocab, vocab]),
            Parameter::of_experts("blk.0.ffn_up_exps.weight", &[EXPERTS, 2, vocab]),
            Parameter::new("output_norm.weight", &[vocab]),
        ];
        let fill = |(i, p): (usize, &Parameter)| {
            (0..p.len()).map(|e| moeray::train::data::normal(7, 16 + i as u32, e as u32) * 0.1).collect::<Vec<f32>>()
        };
        let weights: Vec<Vec<f32>> = parameters.iter().enumerate().map(fill).collect();
        let gradients = weights.iter().map(|w| vec![0.0; w.len()]).collect();
        Bigram {
            parameters,
            weights,
            gradients,
            used: vec![false; EXPERTS],
            trained: vec![],
            vocab,
            context,
            poison: vec![],
            pause: std::time::Duration::ZERO,
        }
    }

    /// Rows of A and X and the running mean of B, f64 logits.
    fn forward(&self, b: &MicroBatch) -> Vec<Vec<f64>> {
        let v = self.vocab;
        let mut sum = vec![0.0f64; v];
        let mut all = Vec::with_capacity(b.rows());
        for r in 0..b.rows() {
            let (id, start) = (b.ids[r] as usize, b.starts[r] as usize);
            if start == r {
                sum.fill(0.0);
            }
            let n = (r - start + 1) as f64;
            let x = &self.weights[2][(id % EXPERTS * 2 + usize::from(b.positions[r] > 0)) * v..][..v];
            let (a, bb) = (&self.weights[0][id * v..][..v], &self.weights[1][id * v..][..v]);
            let mut logits = vec![0.0; v];
            for j in 0..v {
                sum[j] += f64::from(bb[j]);
                logits[j] = f64::from(a[j]) + sum[j] / n + f64::from(x[j]) + f64::from(self.weights[3][j]);
            }
            all.push(logits);
        }
        all
    }

    /// The outcome, and the gradient by the logits.
    fn loss(&self, b: &MicroBatch) -> (Outcome, Vec<Vec<f64>>) {
        let mut logits = self.forward(b);
        let (mut loss, mut tokens) = (0.0, vec![0; EXPERTS]);
        for (r, l) in logits.iter_mut().enumerate() {
            let most = l.iter().copied().fold(f64::MIN, f64::max);
            let lse = most + l.iter().map(|x| (x - most).exp()).sum::<f64>().ln();
            let (w, target) = (f64::from(b.weights[r]) * b.scale, b.targets[r] as usize);
            loss += w * (lse - l[target]);
            l.iter_mut().for_each(|x| *x = (*x - lse).exp() * w);
            l[target] -= w;
            tokens[b.ids[r] as usize % EXPERTS] += 1;
        }
        if self.poison.contains(&b.step) {
            loss = f64::NAN;
        }
        let terms = vec![
            LossTerm { name: "cross_entropy", value: loss, weight: 1.0 },
            LossTerm { name: "rows", value: b.share, weight: 0.0 },
        ];
        (Outcome { terms, loads: vec![ExpertLoad { layer: 0, tokens, dropped: 0 }] }, logits)
    }
}

impl Learner for Bigram {
    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    fn vocab(&self) -> usize {
        self.vocab
    }

    fn context(&self) -> usize {
        self.context
    }

    fn choose(&mut self, trained: &[bool]) -> Result<()> {
        self.trained = trained.to_vec();
        Ok(())
    }

    fn accumulate(&mut self, b: &MicroBatch) -> Result<Outcome> {
        std::thread::sleep(self.pause);
        if b.ids.iter().chain(&b.targets).any(|id| *id as usize >= self.vocab) {
            return Err(Error::Invalid("an id out of range".into()));
        }
        let (outcome, dl) = self.loss(b);
        let v = self.vocab;
        let mut behind = vec![0.0f64; v];
        for r in (0..b.rows()).rev() {
            let id = b.ids[r] as usize;
            let n = (r - b.starts[r] as usize + 1) as f64;
            // The last row of a text is followed by one that begins another.
            if b.starts.get(r + 1).is_none_or(|s| *s as usize == r + 1) {
                behind.fill(0.0);
            }
            let e = id % EXPERTS;
            self.used[e] |= b.weights[r] > 0.0;
            let x = (e * 2 + usize::from(b.positions[r] > 0)) * v;
            for j in 0..v {
                behind[j] += dl[r][j] / n;
                self.gradients[0][id * v + j] += dl[r][j] as f32;
                self.gradients[1][id * v + j] += behind[j] as f32;
                self.gradients[2][x + j] += dl[r][j] as f32;
                self.gradients[3][j] += dl[r][j] as f32;
            }
        }
        if self.poison.contains(&b.step) {
            self.gradients[0][0] = f32::NAN;
        }
        Ok(outcome)
    }

    fn evaluate(&mut self, b: &MicroBatch) -> Result<Outcome> {
        Ok(self.loss(b).0)
    }

    fn each(&mut self, visit: Visit<'_>) -> Result<()> {
        for (i, (w, g)) in self.weights.iter_mut().zip(&self.gradients).enumerate() {
            if self.trained[i] {
                visit(i, Slot { weights: w, gradients: g, used: if i == 2 { &self.used } else { &[] } })?;
            }
        }
        Ok(())
    }

    fn clear(&mut self) -> Result<()> {
        self.gradients.iter_mut().for_each(|g| g.fill(0.0));
        self.used.fill(false);
        Ok(())
    }
}

#[test]
fn its_gradients_are_right() {
    let mut m = Bigram::new(7, 64);
    m.choose(&[true; 4]).unwrap();
    let b = MicroBatch {
        ids: vec![1, 3, 2, 6, 5, 1],
        targets: vec![3, 2, 1, 5, 1, 0],
        positions: vec![0, 1, 2, 0, 1, 2],
        starts: vec![0, 0, 0, 3, 3, 3],
        weights: vec![1.0, 0.0, 1.0, 1.0, 0.5, 1.0],
        scale: 0.3,
        ..MicroBatch::default()
    };
    m.accumulate(&b).unwrap();
    for p in 0..4 {
        for i in 0..m.weights[p].len() {
            let (w, h) = (m.weights[p][i], 1e-3f32);
            let mut at = |x: f32| {
                m.weights[p][i] = x;
                m.loss(&b).0.total()
            };
            let (up, down) = (at(w + h), at(w - h));
            m.weights[p][i] = w;
            let slope = (up - down) / f64::from((w + h) - (w - h));
            let got = f64::from(m.gradients[p][i]);
            assert!((slope - got).abs() < 1e-6, "parameter {p}, element {i}: {got} instead of {slope}");
        }
    }
}
