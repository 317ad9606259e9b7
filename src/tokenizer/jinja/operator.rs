//! Operators, attributes and indices.

use super::{
    Fault, Outcome,
    ast::{Comparison, Operator},
    fault,
    names::is_method,
    run::Run,
    text::{Builder, Text, joined},
    value::{SeqKind, Value},
};
use std::{cmp::Ordering, rc::Rc};

/// `a op b`, but for `text % values`, which [`super::format`] does.
pub(super) fn binary(run: &Run, op: Operator, a: &Value, b: &Value) -> Outcome<Value> {
    if op == Operator::Concat {
        return Ok(Value::Str(joined([&a.to_text(), &b.to_text()])));
    }
    a.defined()?;
    b.defined()?;
    match (op, a, b) {
        (Operator::Add, Value::Str(x), Value::Str(y)) => return Ok(Value::Str(joined([x, y]))),
        (Operator::Add, Value::Str(_), other) => {
            return fault(format!("can only concatenate str (not \"{}\") to str", other.type_name()));
        }
        (Operator::Add, Value::Seq(k, x), Value::Seq(l, y))
            if k == l && matches!(k, SeqKind::List | SeqKind::Tuple) =>
        {
            run.pay(x.len() + y.len())?;
            return Ok(Value::seq(*k, x.iter().chain(y.iter()).cloned().collect()));
        }
        (Operator::Multiply, _, _) => {
            if let Some(times) = b.int()
                && let Some(v) = repeated(run, a, times)?
            {
                return Ok(v);
            }
            if let Some(times) = a.int()
                && let Some(v) = repeated(run, b, times)?
            {
                return Ok(v);
            }
        }
        _ => {}
    }
    match (a.int(), b.int(), a.float(), b.float()) {
        (Some(x), Some(y), ..) => whole(op, x, y),
        (.., Some(x), Some(y)) => real(op, x, y),
        _ => Err(Fault::operands(op.sign(), a, b)),
    }
}

/// `text * n` and `list * n`.
fn repeated(run: &Run, value: &Value, times: i128) -> Outcome<Option<Value>> {
    let times = usize::try_from(times.clamp(0, i128::from(u32::MAX))).unwrap_or(0);
    Ok(match value {
        Value::Str(s) => {
            run.pay(s.len().saturating_mul(times))?;
            let mut out = Builder::default();
            (0..times).for_each(|_| out.push(s));
            Some(Value::Str(out.finish()))
        }
        Value::Seq(kind @ (SeqKind::List | SeqKind::Tuple), items) => {
            run.pay(items.len().saturating_mul(times))?;
            Some(Value::seq(*kind, (0..times).flat_map(|_| items.iter().cloned()).collect()))
        }
        _ => None,
    })
}

fn whole(op: Operator, x: i128, y: i128) -> Outcome<Value> {
    let large = || Fault::new("a number is too large");
    let by_zero = || Fault::new("integer division or modulo by zero");
    Ok(match op {
        Operator::Add => Value::Int(x.checked_add(y).ok_or_else(large)?),
        Operator::Subtract => Value::Int(x.checked_sub(y).ok_or_else(large)?),
        Operator::Multiply => Value::Int(x.checked_mul(y).ok_or_else(large)?),
        Operator::Divide if y == 0 => return fault("division by zero"),
        Operator::Divide => Value::Float(x as f64 / y as f64),
        Operator::FloorDivide => {
            let q = x.checked_div(y).ok_or_else(by_zero)?;
            Value::Int(q - i128::from(x % y != 0 && (x < 0) != (y < 0)))
        }
        Operator::Modulo => {
            let r = x.checked_rem(y).ok_or_else(by_zero)?;
            Value::Int(if r != 0 && (r < 0) != (y < 0) { r + y } else { r })
        }
        Operator::Power if y < 0 => Value::Float((x as f64).powf(y as f64)),
        Operator::Power => Value::Int(x.checked_pow(u32::try_from(y).map_err(|_| large())?).ok_or_else(large)?),
        Operator::Concat => return fault("'~' joins texts"),
    })
}

fn real(op: Operator, x: f64, y: f64) -> Outcome<Value> {
    let floor_rem = |x: f64, y: f64| {
        let r = x % y;
        if r != 0.0 && (r < 0.0) != (y < 0.0) { r + y } else { r }
    };
    Ok(Value::Float(match op {
        Operator::Add => x + y,
        Operator::Subtract => x - y,
        Operator::Multiply => x * y,
        Operator::Divide | Operator::FloorDivide | Operator::Modulo if y == 0.0 => {
            return fault("float division by zero");
        }
        Operator::Divide => x / y,
        Operator::FloorDivide => ((x - floor_rem(x, y)) / y).round(),
        Operator::Modulo => floor_rem(x, y),
        Operator::Power => x.powf(y),
        Operator::Concat => return fault("'~' joins texts"),
    }))
}

/// `-a` and `+a`.
pub(super) fn signed(a: &Value, negative: bool) -> Outcome<Value> {
    a.defined()?;
    match (a.int(), a) {
        (Some(i), _) => Ok(Value::Int(if negative { -i } else { i })),
        (None, Value::Float(x)) => Ok(Value::Float(if negative { -x } else { *x })),
        _ => fault(format!("bad operand type for unary {}: '{}'", if negative { '-' } else { '+' }, a.type_name())),
    }
}

/// `a op b` as a truth.
pub(super) fn compare(run: &Run, op: Comparison, a: &Value, b: &Value) -> Outcome<bool> {
    run.pay(a.extent().bytes.min(b.extent().bytes) / 64)?;
    let order = |sign: &str, test: fn(Ordering) -> bool| Ok(a.order(b, sign)?.is_some_and(test));
    match op {
        Comparison::Equal => Ok(a.equals(b)),
        Comparison::NotEqual => Ok(!a.equals(b)),
        Comparison::Less => order("<", Ordering::is_lt),
        Comparison::LessEqual => order("<=", Ordering::is_le),
        Comparison::Greater => order(">", Ordering::is_gt),
        Comparison::GreaterEqual => order(">=", Ordering::is_ge),
        Comparison::In => contains(run, b, a),
        Comparison::NotIn => contains(run, b, a).map(|c| !c),
    }
}

/// `item in container`.
pub(super) fn contains(run: &Run, container: &Value, item: &Value) -> Outcome<bool> {
    match container {
        Value::Str(s) => match item {
            Value::Str(part) => Ok(s.as_str().contains(part.as_str())),
            Value::Undefined(what) => fault(what.to_string()),
            other => fault(format!("'in <string>' requires string as left operand, not {}", other.type_name())),
        },
        Value::Dict(d) => Ok(d.get(item).is_some()),
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
            fault(format!("argument of type '{}' is not iterable", container.type_name()))
        }
        other => {
            let items = other.items()?;
            run.pay(items.len())?;
            Ok(items.iter().any(|i| i.equals(item)))
        }
    }
}

/// `value.name`: Python's attribute, else an item.
pub(super) fn attribute(value: &Value, name: &str) -> Outcome<Value> {
    value.defined()?;
    if name.starts_with('_') {
        return Ok(Value::Undefined(
            format!("access to attribute '{name}' of '{}' object is unsafe.", value.type_name()).into(),
        ));
    }
    if let Some(found) = own_attribute(value, name) {
        return Ok(found);
    }
    if let Value::Dict(d) = value
        && let Some(found) = d.get(&Value::own(name))
    {
        return Ok(found.clone());
    }
    Ok(missing(value, name))
}

/// `value[index]`: an item, else for texts Python's attribute.
pub(super) fn item(run: &Run, value: &Value, index: &Value) -> Outcome<Value> {
    value.defined()?;
    match (value, index) {
        (Value::Dict(d), _) => {
            if let Some(found) = d.get(index) {
                return Ok(found.clone());
            }
        }
        (Value::Seq(SeqKind::List | SeqKind::Tuple | SeqKind::Range { .. }, items), _) => {
            if let Some(i) = index.int() {
                let at = position(i, items.len());
                return Ok(match at.and_then(|at| items.get(at)) {
                    Some(v) => v.clone(),
                    None => Value::Undefined(format!("{} object has no element {i}", value.type_name()).into()),
                });
            }
        }
        (Value::Str(s), _) => {
            if let Some(i) = index.int() {
                run.pay(s.len() / 64)?;
                let found = position(i, s.as_str().chars().count())
                    .and_then(|at| s.as_str().char_indices().nth(at))
                    .map(|(at, c)| Value::Str(s.slice(at..at + c.len_utf8())));
                return Ok(found.unwrap_or_else(|| Value::Undefined(format!("str object has no element {i}").into())));
            }
        }
        _ => {}
    }
    match index {
        Value::Str(name) => {
            let name = name.as_str();
            let found = if name.starts_with('_') { None } else { own_attribute(value, name) };
            Ok(found.unwrap_or_else(|| missing(value, name)))
        }
        Value::Undefined(what) => fault(what.to_string()),
        other => Ok(Value::Undefined(
            format!("'{} object' has no element {}", value.type_name(), other.repr().as_str()).into(),
        )),
    }
}

fn missing(value: &Value, name: &str) -> Value {
    let of = match value {
        Value::None => "None".to_owned(),
        other => format!("'{} object'", other.type_name()),
    };
    Value::Undefined(format!("{of} has no attribute '{name}'").into())
}

/// Python's attribute alone, without a dict's items.
pub(super) fn attribute_only(value: &Value, name: &str) -> Outcome<Value> {
    value.defined()?;
    let found = if name.starts_with('_') { None } else { own_attribute(value, name) };
    Ok(found.unwrap_or_else(|| missing(value, name)))
}

fn own_attribute(value: &Value, name: &str) -> Option<Value> {
    match value {
        Value::Namespace(n) => n.borrow().get(name).cloned(),
        Value::Loop(l) if !is_method(value, name) => l.attribute(name),
        Value::Cycler(c) => match name {
            "current" => c.0.get(*c.1.borrow()).cloned(),
            "next" | "reset" => Some(Value::Method(Rc::new(value.clone()), name.into())),
            _ => None,
        },
        Value::Macro(m) => match name {
            "name" => Some(Value::own(m.definition.name.as_str())),
            "arguments" => {
                Some(Value::tuple(m.definition.parameters.iter().map(|p| Value::own(p.0.as_str())).collect()))
            }
            "catch_varargs" => Some(Value::Bool(m.definition.takes_varargs)),
            "catch_kwargs" => Some(Value::Bool(m.definition.takes_kwargs)),
            _ => None,
        },
        Value::Int(_) | Value::Bool(_) | Value::Float(_) => match name {
            "real" => Some(if let Value::Bool(b) = value { Value::Int(i128::from(*b)) } else { value.clone() }),
            "imag" => Some(if let Value::Float(_) = value { Value::Float(0.0) } else { Value::Int(0) }),
            "numerator" if value.int().is_some() => value.int().map(Value::Int),
            "denominator" if value.int().is_some() => Some(Value::Int(1)),
            _ if is_method(value, name) => Some(Value::Method(Rc::new(value.clone()), name.into())),
            _ => None,
        },
        _ if is_method(value, name) => Some(Value::Method(Rc::new(value.clone()), name.into())),
        _ => None,
    }
}

/// Where a Python index points, counted from the end where it is negative.
pub(super) fn position(i: i128, len: usize) -> Option<usize> {
    let at = if i < 0 { i + len as i128 } else { i };
    usize::try_from(at).ok()
}

/// `value[start:stop:step]`.
pub(super) fn slice(run: &Run, value: &Value, parts: [Option<Value>; 3]) -> Outcome<Value> {
    value.defined()?;
    let mut numbers = [None; 3];
    for (to, part) in numbers.iter_mut().zip(&parts) {
        *to = match part {
            None | Some(Value::None) => None,
            Some(v) => match v.defined()?.int() {
                Some(i) => Some(i),
                None => return fault("slice indices must be integers or None or have an __index__ method"),
            },
        };
    }
    let [start, stop, step] = numbers;
    let step = step.unwrap_or(1);
    if step == 0 {
        return fault("slice step cannot be zero");
    }
    match value {
        Value::Str(s) => {
            run.pay(s.len() / 16)?;
            let at: Vec<(usize, char)> = s.as_str().char_indices().collect();
            let chosen = chosen(start, stop, step, at.len());
            if step == 1 {
                let (Some(first), Some(last)) = (chosen.first(), chosen.last()) else {
                    return Ok(Value::Str(Text::default()));
                };
                return Ok(Value::Str(s.slice(at[*first].0..at[*last].0 + at[*last].1.len_utf8())));
            }
            let mut out = Builder::default();
            chosen.iter().for_each(|i| out.push(&s.slice(at[*i].0..at[*i].0 + at[*i].1.len_utf8())));
            Ok(Value::Str(out.finish()))
        }
        Value::Seq(kind @ (SeqKind::List | SeqKind::Tuple | SeqKind::Range { .. }), items) => {
            let chosen = chosen(start, stop, step, items.len());
            run.pay(chosen.len())?;
            let kind = if *kind == SeqKind::Tuple { SeqKind::Tuple } else { SeqKind::List };
            Ok(Value::seq(kind, chosen.into_iter().map(|i| items[i].clone()).collect()))
        }
        other => Ok(Value::Undefined(format!("'{} object' cannot be sliced", other.type_name()).into())),
    }
}

/// The indices of a slice, by Python's rules.
fn chosen(start: Option<i128>, stop: Option<i128>, step: i128, len: usize) -> Vec<usize> {
    let n = len as i128;
    let bound = |i: i128, low: i128, high: i128| (if i < 0 { i + n } else { i }).clamp(low, high);
    let (mut at, end) = if step > 0 {
        (start.map_or(0, |i| bound(i, 0, n)), stop.map_or(n, |i| bound(i, 0, n)))
    } else {
        (start.map_or(n - 1, |i| bound(i, -1, n - 1)), stop.map_or(-1, |i| bound(i, -1, n - 1)))
    };
    let mut out = vec![];
    while (step > 0 && at < end) || (step < 0 && at > end) {
        out.push(at as usize);
        at = at.saturating_add(step);
    }
    out
}
