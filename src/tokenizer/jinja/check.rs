//! The tests behind `is`.

use super::{
    Outcome,
    ast::Comparison,
    fault,
    names::{TESTS, is_filter},
    operator,
    run::{Given, Run},
    value::{SeqKind, Value},
};

/// `value is name(...)`.
pub(super) fn apply(run: &Run, name: &str, value: &Value, given: &Given) -> Outcome<bool> {
    let compare = |op: Comparison| operator::compare(run, op, value, given.need(0, "other")?);
    let number = || match value.defined()?.int() {
        Some(i) => Ok(i),
        None => fault(format!("not all arguments converted: '{}' is no whole number", value.type_name())),
    };
    Ok(match name {
        "defined" => !matches!(value, Value::Undefined(_)),
        "undefined" => matches!(value, Value::Undefined(_)),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "sequence" => matches!(
            value,
            Value::Str(_)
                | Value::Dict(_)
                | Value::Undefined(_)
                | Value::Seq(SeqKind::List | SeqKind::Tuple | SeqKind::Range { .. }, _)
        ),
        "iterable" => matches!(
            value,
            Value::Str(_)
                | Value::Dict(_)
                | Value::Seq(..)
                | Value::Generator(_)
                | Value::Undefined(_)
                | Value::Loop(_)
        ),
        "callable" => matches!(
            value,
            Value::Function(_)
                | Value::Method(..)
                | Value::Macro(_)
                | Value::Loop(_)
                | Value::Joiner(_)
                | Value::Undefined(_)
        ),
        "escaped" => false,
        "odd" => number()?.rem_euclid(2) == 1,
        "even" => number()?.rem_euclid(2) == 0,
        "divisibleby" => match (number()?, given.need(0, "num")?.int()) {
            (_, Some(0)) => return fault("integer modulo by zero"),
            (a, Some(b)) => a % b == 0,
            (_, None) => return fault("divisibleby takes a whole number"),
        },
        "lower" | "upper" => {
            let text = value.to_text();
            let t = text.as_str();
            let (has, has_other) = if name == "lower" {
                (t.chars().any(char::is_lowercase), t.chars().any(char::is_uppercase))
            } else {
                (t.chars().any(char::is_uppercase), t.chars().any(char::is_lowercase))
            };
            has && !has_other
        }
        "eq" | "equalto" | "==" => compare(Comparison::Equal)?,
        "ne" | "!=" => compare(Comparison::NotEqual)?,
        "lt" | "lessthan" | "<" => compare(Comparison::Less)?,
        "le" | "<=" => compare(Comparison::LessEqual)?,
        "gt" | "greaterthan" | ">" => compare(Comparison::Greater)?,
        "ge" | ">=" => compare(Comparison::GreaterEqual)?,
        "in" => operator::contains(run, given.need(0, "seq")?, value)?,
        "sameas" => value.same(given.need(0, "other")?),
        "filter" => value.text().is_some_and(|t| is_filter(t.as_str())),
        "test" => value.text().is_some_and(|t| TESTS.contains(&t.as_str())),
        other => return fault(format!("No test named '{other}'.")),
    })
}
