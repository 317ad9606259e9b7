//! Hidden states, and the vectors that stand for texts.

use super::{Budget, Session, Status, feed::Want};
use crate::{
    error::{Error, Result},
    model::Pooling,
};

/// One vector of the hidden states of a text, gathered row by row: see [`Pooled::push`].
#[derive(Clone, Debug)]
pub struct Pooled {
    pooling: Pooling,
    sum: Vec<f64>,
    rows: usize,
}

impl Pooled {
    /// Of no rows yet.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for [`Pooling::None`], which leaves a vector for each token.
    pub fn new(pooling: Pooling) -> Result<Self> {
        if pooling == Pooling::None {
            let why = "the model keeps a vector for each token and says no way to make one of them";
            return Err(Error::Unsupported(format!("pooling `none`: {why}")));
        }
        Ok(Pooled { pooling, sum: vec![], rows: 0 })
    }

    /// Whether the hidden state at a position has a part in the vector of a text of so many tokens.
    #[cfg(feature = "serve")]
    pub(crate) fn wants(&self, position: usize, length: usize) -> bool {
        match self.pooling {
            Pooling::None | Pooling::Mean => true,
            Pooling::First => position == 0,
            Pooling::Last => position + 1 == length,
        }
    }

    /// Takes the hidden state of the text's next token, `[H]`.
    pub fn push(&mut self, row: &[f32]) {
        self.rows += 1;
        let first = self.rows == 1;
        match self.pooling {
            Pooling::First if !first => {}
            Pooling::Mean if !first => self.sum.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x)),
            Pooling::None | Pooling::Mean | Pooling::First | Pooling::Last => {
                self.sum.clear();
                self.sum.extend(row.iter().map(|x| f64::from(*x)));
            }
        }
    }

    /// The vector, `[H]`, of length 1 (cosine similarity is then a dot product), as OpenAI's embeddings are; all zeros where the
    /// hidden states cancel out, and empty without rows.
    ///
    /// # Errors
    /// [`Error::Model`] where it is not finite: the weights are damaged, or numbers overflow.
    pub fn finish(self) -> Result<Vec<f32>> {
        let length = self.sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        if !length.is_finite() {
            return Err(crate::backend::runner::not_finite("the hidden states hold"));
        }
        let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
        Ok(self.sum.iter().map(|x| (x * scale) as f32).collect())
    }
}

/// Hidden states.
impl Session {
    /// Feeds tokens; gives the hidden state of each after the final norm, row-major `[T, H]`: what the output matrix makes logits
    /// of, and what transformers calls the last hidden state. No logits are computed.
    ///
    /// # Errors
    /// As [`Session::prefill`]; [`Error::Model`] where they are not finite.
    pub fn hidden_states(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let mut all = vec![];
        self.each_hidden(tokens, |rows| all.extend_from_slice(rows))?;
        match all.iter().all(|x| x.is_finite()) {
            true => Ok(all),
            false => Err(crate::backend::runner::not_finite("the hidden states hold")),
        }
    }

    /// Feeds a text and gives one vector of length 1 that stands for it, `[H]`. The session should hold no other text before
    /// ([`Session::truncate`]), for what comes before has its part in the hidden states. How hidden states are pooled is the
    /// model's to say ([`super::Model::pooling`]); where it does not, [`Pooling::Last`] is usual for language models.
    ///
    /// # Errors
    /// As [`Session::hidden_states`] and [`Pooled::new`].
    pub fn embedding(&mut self, tokens: &[u32], pooling: Pooling) -> Result<Vec<f32>> {
        let (mut pooled, cols) = (Pooled::new(pooling)?, self.model.hyper().hidden.max(1));
        self.each_hidden(tokens, |rows| rows.chunks_exact(cols).for_each(|r| pooled.push(r)))?;
        pooled.finish()
    }

    /// Calls `each` with the hidden states of every micro-batch.
    fn each_hidden(&mut self, tokens: &[u32], mut each: impl FnMut(&[f32])) -> Result<()> {
        self.begin(tokens, Want::Hidden)?;
        loop {
            let before = self.position();
            let status = self.step(Budget::UNLIMITED)?;
            if self.position() > before {
                each(&self.runner.results().hidden);
            }
            match status {
                Status::Done => return Ok(()),
                Status::Waiting => self.wait()?,
                Status::Pending | Status::Idle => {}
            }
        }
    }
}
