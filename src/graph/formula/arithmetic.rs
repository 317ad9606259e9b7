//! Arithmetic on values.

use super::Builder;
use crate::{
    error::Result,
    ir::{Arithmetic, Axis, Function, Math, Op, ValueId},
};

impl Builder {
    /// Adds a node of training with one result.
    ///
    /// # Errors
    /// As [`Builder::add`].
    pub fn math(&mut self, op: Math, inputs: &[ValueId]) -> Result<ValueId> {
        self.one(Op::Math(op), inputs)
    }

    /// `a + b`, where an operand with one row or column is repeated; so the following ones.
    ///
    /// # Errors
    /// As [`Builder::add`].
    pub fn plus(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.math(Math::Binary(Arithmetic::Add), &[a, b])
    }

    /// `a − b`.
    ///
    /// # Errors
    /// As [`Builder::add`].
    pub fn minus(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.math(Math::Binary(Arithmetic::Sub), &[a, b])
    }

    /// `a · b`, number by number.
    ///
    /// # Errors
    /// As [`Builder::add`].
    pub fn times(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.math(Math::Binary(Arithmetic::Mul), &[a, b])
    }

    /// `a / b`, number by number.
    ///
    /// # Errors
    /// As [`Builder::add`].
    pub fn over(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.math(Math::Binary(Arithmetic::Div), &[a, b])
    }

    /// `factor · x`.
    ///
    /// # Errors
    /// As [`Builder::add`].
    pub fn scaled(&mut self, x: ValueId, factor: f64) -> Result<ValueId> {
        self.math(Math::Affine { factor, shift: 0.0 }, &[x])
    }

    /// `x + shift`.
    ///
    /// # Errors
    /// As [`Builder::add`].
    pub fn shifted(&mut self, x: ValueId, shift: f64) -> Result<ValueId> {
        self.math(Math::Affine { factor: 1.0, shift }, &[x])
    }

    /// `f(x)`.
    ///
    /// # Errors
    /// As [`Builder::add`].
    pub fn apply(&mut self, f: Function, x: ValueId) -> Result<ValueId> {
        self.math(Math::Unary(f), &[x])
    }

    /// The sum over rows, `[1, c]`.
    ///
    /// # Errors
    /// As [`Builder::add`].
    pub fn sum_rows(&mut self, x: ValueId) -> Result<ValueId> {
        self.math(Math::Reduce { axis: Axis::Rows, mean: false }, &[x])
    }

    /// The mean over rows, `[1, c]`.
    ///
    /// # Errors
    /// As [`Builder::add`].
    pub fn mean_rows(&mut self, x: ValueId) -> Result<ValueId> {
        self.math(Math::Reduce { axis: Axis::Rows, mean: true }, &[x])
    }

    /// The sum over columns, `[R, 1]`.
    ///
    /// # Errors
    /// As [`Builder::add`].
    pub fn sum_cols(&mut self, x: ValueId) -> Result<ValueId> {
        self.math(Math::Reduce { axis: Axis::Cols, mean: false }, &[x])
    }

    /// The mean over columns, `[R, 1]`.
    ///
    /// # Errors
    /// As [`Builder::add`].
    pub fn mean_cols(&mut self, x: ValueId) -> Result<ValueId> {
        self.math(Math::Reduce { axis: Axis::Cols, mean: true }, &[x])
    }

    /// The sum of all numbers, `[1, 1]`.
    ///
    /// # Errors
    /// As [`Builder::add`].
    pub fn sum_all(&mut self, x: ValueId) -> Result<ValueId> {
        let rows = self.sum_cols(x)?;
        self.sum_rows(rows)
    }

    /// The mean of all numbers, `[1, 1]`.
    ///
    /// # Errors
    /// As [`Builder::add`].
    pub fn mean_all(&mut self, x: ValueId) -> Result<ValueId> {
        let rows = self.mean_cols(x)?;
        self.mean_rows(rows)
    }

    /// The softmax of every row.
    ///
    /// # Errors
    /// As [`Builder::add`].
    pub fn softmax(&mut self, x: ValueId) -> Result<ValueId> {
        self.math(Math::Softmax { groups: 1 }, &[x])
    }

    /// `Σ weights · terms`, all `[1, 1]`: a loss of several terms.
    ///
    /// # Errors
    /// As [`Builder::add`].
    pub fn weighted_sum(&mut self, terms: &[(f64, ValueId)]) -> Result<ValueId> {
        let mut sum = None;
        for (weight, term) in terms {
            let term = if *weight == 1.0 { *term } else { self.scaled(*term, *weight)? };
            sum = Some(match sum {
                Some(before) => self.plus(before, term)?,
                None => term,
            });
        }
        match sum {
            Some(v) => Ok(v),
            None => self.math(Math::Constant { value: 0.0, cols: 1 }, &[]),
        }
    }
}
