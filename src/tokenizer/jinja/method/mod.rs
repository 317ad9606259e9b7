//! Methods of Python's strings, lists and dicts. Those that would change a list or a dict are refused, as in the sandbox.

use super::{
    Outcome, fault,
    run::{Given, Run},
    value::{Dict, SeqKind, Value},
};
use std::rc::Rc;

mod text;

pub(super) use text::{aligned, capitalized, replaced, stripped};

/// Calls `value.name(...)`.
pub(super) fn call(run: &Run, value: &Value, name: &str, given: Given) -> Outcome<Value> {
    match value {
        Value::Str(s) => text::call(run, s, name, given),
        Value::Seq(_, items) => list_method(value, items, name, &given),
        Value::Dict(d) => dict_method(run, d, name, &given),
        Value::Int(_) | Value::Bool(_) | Value::Float(_) => number_method(value, name),
        Value::Loop(l) => match name {
            "cycle" if given.positional.is_empty() => fault("no items for cycling given"),
            "cycle" => Ok(given.positional[l.index0.get() % given.positional.len()].clone()),
            _ => {
                let now = Some(given.positional);
                let same = match (&*l.changed.borrow(), &now) {
                    (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.equals(y)),
                    _ => false,
                };
                l.changed.replace(now);
                Ok(Value::Bool(!same))
            }
        },
        Value::Cycler(c) => {
            let at = *c.1.borrow();
            let next = if name == "next" { (at + 1) % c.0.len() } else { 0 };
            c.1.replace(next);
            Ok(if name == "next" { c.0[at].clone() } else { Value::None })
        }
        other => fault(format!("'{}' object has no attribute '{name}'", other.type_name())),
    }
}

fn unsafe_change<T>(kind: &str, name: &str) -> Outcome<T> {
    fault(format!("access to attribute '{name}' of '{kind}' object is unsafe: templates do not change values."))
}

fn list_method(value: &Value, items: &[Value], name: &str, given: &Given) -> Outcome<Value> {
    match name {
        "copy" => Ok(value.clone()),
        "count" => {
            let wanted = given.need(0, "value")?;
            Ok(Value::Int(items.iter().filter(|i| i.equals(wanted)).count() as i128))
        }
        "index" => {
            let wanted = given.need(0, "value")?;
            match items.iter().position(|i| i.equals(wanted)) {
                Some(i) => Ok(Value::Int(i as i128)),
                None => fault(format!("{} is not in list", wanted.repr().as_str())),
            }
        }
        _ => unsafe_change("list", name),
    }
}

fn dict_method(run: &Run, d: &Rc<Dict>, name: &str, given: &Given) -> Outcome<Value> {
    run.pay(if name == "get" { 0 } else { d.entries.len() })?;
    match name {
        "get" => {
            let found = d.get(given.need(0, "key")?);
            Ok(found.or(given.get(1, "default")).cloned().unwrap_or(Value::None))
        }
        "keys" => Ok(Value::seq(SeqKind::Keys, d.entries.iter().map(|e| e.0.clone()).collect())),
        "values" => Ok(Value::seq(SeqKind::Values, d.entries.iter().map(|e| e.1.clone()).collect())),
        "items" => {
            let pairs = d.entries.iter().map(|(k, v)| Value::tuple(vec![k.clone(), v.clone()]));
            Ok(Value::seq(SeqKind::Items, pairs.collect()))
        }
        "copy" => Ok(Value::Dict(d.clone())),
        "fromkeys" => {
            let value = given.get(1, "value").cloned().unwrap_or(Value::None);
            let keys = given.need(0, "iterable")?.items()?;
            Ok(Value::Dict(Rc::new(Dict::of(keys.into_iter().map(|k| (k, value.clone())))?)))
        }
        _ => unsafe_change("dict", name),
    }
}

fn number_method(value: &Value, name: &str) -> Outcome<Value> {
    match (name, value.int(), value.float()) {
        ("conjugate", Some(i), _) => Ok(Value::Int(i)),
        ("conjugate", ..) => Ok(value.clone()),
        ("bit_length", Some(i), _) => Ok(Value::Int(i128::from(128 - i.unsigned_abs().leading_zeros()))),
        ("is_integer", _, Some(x)) => Ok(Value::Bool(x.fract() == 0.0)),
        ("as_integer_ratio", Some(i), _) => Ok(Value::tuple(vec![Value::Int(i), Value::Int(1)])),
        _ => fault(format!("'{}' object has no attribute '{name}'", value.type_name())),
    }
}
