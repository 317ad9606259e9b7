//! Training on the reference: every node by its page's code.

use crate::{
    backend::training::{
        Training,
        walk::{Nodes, Walk},
    },
    error::Result,
    graph::{LOSS, TrainProgram},
    ir::Node,
    ops::{
        Real,
        train::{Scope, Value},
    },
};

/// How numbers are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Each result is rounded to f32, as other backends do.
    #[default]
    F32,
    /// Nothing is rounded beyond f64, so that differences of losses are as exact as gradients need.
    F64,
}

struct Pages;

impl<T: Real> Nodes<T> for Pages {
    fn describe(&self) -> String {
        "reference".into()
    }

    fn eval(&mut self, _: &Node, _: &[Value<T>], _: &mut Scope<'_, T>) -> Result<Option<Vec<Value<T>>>> {
        Ok(None)
    }
}

/// Trains a program on the reference.
///
/// # Errors
/// None today; a result for symmetry with the other backends.
pub fn train(program: TrainProgram, precision: Precision) -> Result<Box<dyn Training>> {
    debug_assert!(program.graph.outputs.iter().any(|(n, _)| n == LOSS));
    Ok(match precision {
        Precision::F32 => Box::new(Walk::<f32, _>::new(program, Pages)),
        Precision::F64 => Box::new(Walk::<f64, _>::new(program, Pages)),
    })
}
