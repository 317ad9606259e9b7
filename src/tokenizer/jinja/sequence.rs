//! Filters over sequences.

use super::{
    Outcome,
    ast::Operator,
    check, fault, operator,
    run::{Given, Run},
    text::{Builder, Text},
    value::{Dict, Value},
};
use std::cmp::Ordering;

/// `value | name(...)`.
pub(super) fn apply(run: &Run, name: &str, value: Value, given: Given) -> Outcome<Value> {
    match name {
        "length" | "count" => return value.len().map(|n| Value::Int(n as i128)),
        "items" => {
            return match &value {
                Value::Undefined(_) => Ok(Value::generator(vec![])),
                Value::Dict(d) => Ok(Value::generator(pairs(d))),
                _ => fault("Can only get item pairs from a mapping."),
            };
        }
        "dictsort" => return dictsort(&value, &given),
        "reverse" => return reverse(value),
        "random" => return fault("random makes another prompt each time"),
        "select" | "reject" | "selectattr" | "rejectattr" => return select(run, name, value, given),
        _ => {}
    }
    let items = value.items()?;
    run.pay(items.len())?;
    match name {
        "list" => Ok(Value::list(items)),
        "first" => Ok(items.first().cloned().unwrap_or_else(|| empty("first item, sequence"))),
        "last" => match value {
            Value::Generator(_) => fault("'generator' object is not reversible"),
            _ => Ok(items.last().cloned().unwrap_or_else(|| empty("last item, sequence"))),
        },
        "join" => join(run, items, &given),
        "sum" => {
            let attribute = given.get(0, "attribute").filter(|v| !matches!(v, Value::None)).cloned();
            let start = given.get(1, "start").cloned().unwrap_or(Value::Int(0));
            items.iter().try_fold(start, |sum, item| {
                let item = attribute.as_ref().map_or_else(|| Ok(item.clone()), |a| path(run, item, a, None))?;
                operator::binary(run, Operator::Add, &sum, &item)
            })
        }
        "min" | "max" => extreme(run, name, items, &given),
        "sort" => sort(run, items, &given),
        "unique" => unique(run, items, &given),
        "groupby" => groupby(run, items, &given),
        "batch" => batch(items, &given),
        "slice" => slice(items, &given),
        other => fault(format!("No filter named '{other}'.")),
    }
}

fn empty(what: &str) -> Value {
    Value::Undefined(format!("No {what} was empty.").into())
}

fn pairs(d: &Dict) -> Vec<Value> {
    d.entries.iter().map(|(k, v)| Value::tuple(vec![k.clone(), v.clone()])).collect()
}

/// `a.b.0` of an item, as filters' arguments name attributes.
pub(super) fn path(run: &Run, item: &Value, attribute: &Value, default: Option<&Value>) -> Outcome<Value> {
    let step = |v: &Value, part: &Value| -> Outcome<Value> {
        let found = operator::item(run, v, part)?;
        Ok(match default {
            Some(d) if matches!(found, Value::Undefined(_)) => d.clone(),
            _ => found,
        })
    };
    match attribute {
        Value::Str(s) => s.as_str().split('.').try_fold(item.clone(), |v, part| {
            let index = match part.parse() {
                Ok(i) if part.bytes().all(|b| b.is_ascii_digit()) => Value::Int(i),
                _ => Value::own(part),
            };
            step(&v, &index)
        }),
        other => step(item, other),
    }
}

fn folded(value: Value) -> Value {
    match value {
        Value::Str(s) => Value::Str(s.made(s.as_str().to_lowercase())),
        other => other,
    }
}

/// The key of an item: an attribute or itself, without case unless it is asked for.
fn key(run: &Run, item: &Value, attribute: Option<&Value>, case_sensitive: bool) -> Outcome<Value> {
    let value = match attribute {
        None | Some(Value::None) => item.clone(),
        Some(a) => path(run, item, a, None)?,
    };
    Ok(if case_sensitive { value } else { folded(value) })
}

/// A stable sort whose comparison may fail.
fn sorted<T>(items: &mut [(T, Value)], reverse: bool, order: impl Fn(&T, &T) -> Outcome<Ordering>) -> Outcome<()> {
    let mut wrong = None;
    items.sort_by(|a, b| {
        if wrong.is_some() {
            return Ordering::Equal;
        }
        match order(&a.0, &b.0) {
            Ok(o) => {
                if reverse {
                    o.reverse()
                } else {
                    o
                }
            }
            Err(e) => {
                wrong = Some(e);
                Ordering::Equal
            }
        }
    });
    wrong.map_or(Ok(()), Err)
}

fn less(a: &Value, b: &Value) -> Outcome<Ordering> {
    Ok(a.order(b, "<")?.unwrap_or(Ordering::Equal))
}

fn sort(run: &Run, items: Vec<Value>, given: &Given) -> Outcome<Value> {
    given.only("sort", &["reverse", "case_sensitive", "attribute"])?;
    let case = given.truth(1, "case_sensitive", false);
    let attributes: Vec<Option<Value>> = match given.get(2, "attribute") {
        None | Some(Value::None) => vec![None],
        Some(Value::Str(s)) => s.as_str().split(',').map(|a| Some(Value::own(a.trim()))).collect(),
        Some(other) => vec![Some(other.clone())],
    };
    let mut keyed = vec![];
    for item in items {
        let keys: Outcome<Vec<Value>> = attributes.iter().map(|a| key(run, &item, a.as_ref(), case)).collect();
        keyed.push((keys?, item));
    }
    run.pay(keyed.len() * 16)?;
    sorted(&mut keyed, given.truth(0, "reverse", false), |a: &Vec<Value>, b| {
        for (x, y) in a.iter().zip(b) {
            if !x.equals(y) {
                return less(x, y);
            }
        }
        Ok(Ordering::Equal)
    })?;
    Ok(Value::list(keyed.into_iter().map(|k| k.1).collect()))
}

fn dictsort(value: &Value, given: &Given) -> Outcome<Value> {
    given.only("dictsort", &["case_sensitive", "by", "reverse"])?;
    let Value::Dict(d) = value.defined()? else {
        return fault(format!("'{} object' has no attribute 'items'", value.type_name()));
    };
    let by = given.text(1, "by")?.unwrap_or_else(|| Text::own("key"));
    if !matches!(by.as_str(), "key" | "value") {
        return fault("You can only sort by either \"key\" or \"value\"");
    }
    let case = given.truth(0, "case_sensitive", false);
    let fold = |v: &Value| if case { v.clone() } else { folded(v.clone()) };
    let keyed = d.entries.iter().zip(pairs(d));
    let mut keyed: Vec<(Value, Value)> =
        keyed.map(|((k, v), pair)| (fold(if by.as_str() == "key" { k } else { v }), pair)).collect();
    sorted(&mut keyed, given.truth(2, "reverse", false), less)?;
    Ok(Value::list(keyed.into_iter().map(|k| k.1).collect()))
}

fn reverse(value: Value) -> Outcome<Value> {
    if let Value::Str(s) = &value {
        let mut out = Builder::default();
        for (i, c) in s.as_str().char_indices().rev() {
            out.push(&s.slice(i..i + c.len_utf8()));
        }
        return Ok(Value::Str(out.finish()));
    }
    let mut items = value.defined()?.items()?;
    items.reverse();
    // Of a sequence Python makes an iterator, of another iterable a list.
    Ok(if matches!(value, Value::Generator(_)) { Value::list(items) } else { Value::generator(items) })
}

fn select(run: &Run, name: &str, value: Value, mut given: Given) -> Outcome<Value> {
    let wanted = name.starts_with("select");
    let attribute = if name.ends_with("attr") {
        if given.positional.is_empty() {
            return fault("Missing parameter for attribute name");
        }
        Some(given.positional.remove(0))
    } else {
        None
    };
    let test = if given.positional.is_empty() { None } else { Some(given.positional.remove(0).to_text()) };
    let mut out = vec![];
    for item in value.items()? {
        run.pay(1)?;
        let looked_at = attribute.as_ref().map_or_else(|| Ok(item.clone()), |a| path(run, &item, a, None))?;
        let holds = match &test {
            Some(t) => check::apply(run, t.as_str(), &looked_at, &given)?,
            None => looked_at.is_true(),
        };
        if holds == wanted {
            out.push(item);
        }
    }
    Ok(Value::generator(out))
}

fn join(run: &Run, items: Vec<Value>, given: &Given) -> Outcome<Value> {
    given.only("join", &["d", "attribute"])?;
    let between = given.get(0, "d").map_or_else(Text::default, Value::to_text);
    let attribute = given.get(1, "attribute").filter(|v| !matches!(v, Value::None));
    let mut out = Builder::default();
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push(&between);
        }
        let item = attribute.map_or_else(|| Ok(item.clone()), |a| path(run, item, a, None))?;
        let text = item.to_text();
        run.pay(1 + (text.len() + between.len()) / 8)?;
        out.push(&text);
    }
    Ok(Value::Str(out.finish()))
}

fn extreme(run: &Run, name: &str, items: Vec<Value>, given: &Given) -> Outcome<Value> {
    given.only(name, &["case_sensitive", "attribute"])?;
    let (case, attribute) = (given.truth(0, "case_sensitive", false), given.get(1, "attribute"));
    let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
    let mut best: Option<(Value, Value)> = None;
    for item in items {
        let k = key(run, &item, attribute, case)?;
        let better = match &best {
            None => true,
            Some((b, _)) => k.order(b, if name == "min" { "<" } else { ">" })? == Some(wanted),
        };
        if better {
            best = Some((k, item));
        }
    }
    Ok(best.map_or_else(|| empty("aggregated item, sequence"), |b| b.1))
}

fn unique(run: &Run, items: Vec<Value>, given: &Given) -> Outcome<Value> {
    given.only("unique", &["case_sensitive", "attribute"])?;
    let (case, attribute) = (given.truth(0, "case_sensitive", false), given.get(1, "attribute"));
    let mut seen = Dict::default();
    let mut out = vec![];
    for item in items {
        let k = key(run, &item, attribute, case)?;
        if seen.get(&k).is_none() {
            seen.set(k, Value::None)?;
            out.push(item);
        }
    }
    Ok(Value::generator(out))
}

fn groupby(run: &Run, items: Vec<Value>, given: &Given) -> Outcome<Value> {
    given.only("groupby", &["attribute", "default", "case_sensitive"])?;
    let attribute = given.need(0, "attribute")?;
    let default = given.get(1, "default").filter(|v| !matches!(v, Value::None));
    let case = given.truth(2, "case_sensitive", false);
    let mut keyed = vec![];
    for item in items {
        let own = path(run, &item, attribute, default)?;
        keyed.push(((if case { own.clone() } else { folded(own.clone()) }, own), item));
    }
    run.pay(keyed.len() * 16)?;
    sorted(&mut keyed, false, |a: &(Value, Value), b| less(&a.0, &b.0))?;
    let mut groups: Vec<(Value, Value, Vec<Value>)> = vec![];
    for ((k, own), item) in keyed {
        match groups.last_mut() {
            Some(g) if g.0.equals(&k) => g.2.push(item),
            _ => groups.push((k, own, vec![item])),
        }
    }
    // Python's named tuple has `grouper` and `list` as well; templates take it apart.
    Ok(Value::list(groups.into_iter().map(|(_, own, g)| Value::tuple(vec![own, Value::list(g)])).collect()))
}

fn batch(items: Vec<Value>, given: &Given) -> Outcome<Value> {
    given.only("batch", &["linecount", "fill_with"])?;
    let n = given.int(0, "linecount")?.unwrap_or(0);
    if n < 1 {
        return fault("batch takes a number of at least 1");
    }
    let n = n.min(1 << 20) as usize;
    let fill = given.get(1, "fill_with").filter(|v| !matches!(v, Value::None));
    let mut out = vec![];
    for part in items.chunks(n) {
        let mut part = part.to_vec();
        if let Some(fill) = fill {
            part.resize(n, fill.clone());
        }
        out.push(Value::list(part));
    }
    Ok(Value::generator(out))
}

fn slice(items: Vec<Value>, given: &Given) -> Outcome<Value> {
    given.only("slice", &["slices", "fill_with"])?;
    let n = given.int(0, "slices")?.unwrap_or(0);
    if !(1..=100_000).contains(&n) {
        return fault("slice takes a number of at least 1");
    }
    let n = n as usize;
    let fill = given.get(1, "fill_with").filter(|v| !matches!(v, Value::None));
    let (each, more) = (items.len() / n, items.len() % n);
    let mut out = vec![];
    let mut at = 0;
    for i in 0..n {
        let end = at + each + usize::from(i < more);
        let mut part = items[at..end].to_vec();
        if let Some(fill) = fill.filter(|_| i >= more) {
            part.push(fill.clone());
        }
        out.push(Value::list(part));
        at = end;
    }
    Ok(Value::generator(out))
}
