//! The variable `loop`.

use super::{Scope, Value};
use crate::tokenizer::jinja::ast::Loop;
use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};

/// A loop in progress.
#[derive(Debug)]
pub(in crate::tokenizer) struct LoopState {
    pub items: Vec<Value>,
    pub index0: Cell<usize>,
    pub depth0: usize,
    pub changed: RefCell<Option<Vec<Value>>>,
    /// The loop itself, where it may be run again over other items.
    pub again: Option<Arc<Loop>>,
    pub scope: Scope,
}

impl LoopState {
    /// An attribute of the variable `loop`.
    pub fn attribute(&self, name: &str) -> Option<Value> {
        let (at, n) = (self.index0.get(), self.items.len());
        let number = |i: usize| Some(Value::Int(i as i128));
        match name {
            "index" => number(at + 1),
            "index0" => number(at),
            "revindex" => number(n - at),
            "revindex0" => number(n - at - 1),
            "first" => Some(Value::Bool(at == 0)),
            "last" => Some(Value::Bool(at + 1 == n)),
            "length" => number(n),
            "depth" => number(self.depth0 + 1),
            "depth0" => number(self.depth0),
            "previtem" => Some(match at.checked_sub(1) {
                Some(before) => self.items[before].clone(),
                None => Value::Undefined("there is no previous item".into()),
            }),
            "nextitem" => Some(match self.items.get(at + 1) {
                Some(next) => next.clone(),
                None => Value::Undefined("there is no next item".into()),
            }),
            _ => None,
        }
    }
}
