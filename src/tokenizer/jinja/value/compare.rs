//! Equality, identity and order.

use super::{SeqKind, Value};
use crate::tokenizer::jinja::{Outcome, fault};
use std::{cmp::Ordering, rc::Rc};

impl Value {
    /// `==`.
    pub fn equals(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Str(a), Value::Str(b)) => a == b,
            (Value::None, Value::None) | (Value::Undefined(_), Value::Undefined(_)) => true,
            (Value::Seq(a, x), Value::Seq(b, y)) => {
                let same_kind = std::mem::discriminant(a) == std::mem::discriminant(b);
                same_kind && x.len() == y.len() && x.iter().zip(y.iter()).all(|(x, y)| x.equals(y))
            }
            (Value::Dict(a), Value::Dict(b)) => {
                a.entries.len() == b.entries.len()
                    && a.entries.iter().all(|(k, v)| b.get(k).is_some_and(|w| v.equals(w)))
            }
            _ => match (self.int(), other.int(), self.float(), other.float()) {
                (Some(a), Some(b), ..) => a == b,
                (.., Some(a), Some(b)) => a == b,
                _ => self.same(other),
            },
        }
    }

    /// `is`: the same thing.
    pub fn same(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::None, Value::None) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Int(a), Value::Int(b)) => a == b,
            (Value::Str(a), Value::Str(b)) => a == b,
            (Value::Function(a), Value::Function(b)) => a == b,
            (Value::Seq(_, a), Value::Seq(_, b)) => Rc::ptr_eq(a, b),
            (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b),
            (Value::Namespace(a), Value::Namespace(b)) => Rc::ptr_eq(a, b),
            (Value::Macro(a), Value::Macro(b)) => Rc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// `<` and its kin; `sign` is for the message where Python has no order.
    pub fn order(&self, other: &Value, sign: &str) -> Outcome<Option<Ordering>> {
        self.defined()?;
        other.defined()?;
        match (self, other) {
            (Value::Str(a), Value::Str(b)) => Ok(Some(a.as_str().cmp(b.as_str()))),
            (Value::Seq(a, x), Value::Seq(b, y)) if a == b && matches!(a, SeqKind::List | SeqKind::Tuple) => {
                for (x, y) in x.iter().zip(y.iter()) {
                    if !x.equals(y) {
                        return x.order(y, sign);
                    }
                }
                Ok(Some(x.len().cmp(&y.len())))
            }
            _ => match (self.int(), other.int(), self.float(), other.float()) {
                (Some(a), Some(b), ..) => Ok(Some(a.cmp(&b))),
                (.., Some(a), Some(b)) => Ok(a.partial_cmp(&b)),
                _ => fault(format!(
                    "'{sign}' not supported between instances of '{}' and '{}'",
                    self.type_name(),
                    other.type_name()
                )),
            },
        }
    }
}
