//! The functions of the environment.

use super::{
    Outcome, fault,
    run::{Given, Run},
    strftime::strftime,
    text::Text,
    value::{Dict, Function, SeqKind, Value},
};
use std::{cell::RefCell, collections::HashMap, rc::Rc};

/// The longest `range`, as in Jinja's sandbox.
const MAX_RANGE: i128 = 100_000;

/// Functions by name. Without a time there is no `strftime_now`, and templates take their own default date.
pub(super) fn functions(timed: bool) -> HashMap<String, Value> {
    let mut all = vec![
        ("range", Function::Range),
        ("dict", Function::Dict),
        ("namespace", Function::Namespace),
        ("cycler", Function::Cycler),
        ("joiner", Function::Joiner),
        ("lipsum", Function::Lipsum),
        ("raise_exception", Function::RaiseException),
    ];
    if timed {
        all.push(("strftime_now", Function::StrftimeNow));
    }
    let functions = all.into_iter().map(|(name, f)| (name.to_owned(), Value::Function(f)));
    // The template itself, of which templates know only that it is there.
    functions.chain([("self".to_owned(), Value::Namespace(Rc::default()))]).collect()
}

/// Names that a namespace may not have.
pub(super) fn check_name(name: &str) -> Outcome<()> {
    if name.starts_with('_') {
        return fault(format!(
            "Chat templates cannot store underscore-prefixed attributes on a namespace, but got '{name}'. Please rename the attribute."
        ));
    }
    Ok(())
}

/// Calls a function.
pub(super) fn call(run: &Run, function: Function, given: &Given) -> Outcome<Value> {
    match function {
        Function::Range => range(run, given),
        Function::Dict => Ok(Value::Dict(Rc::new(Dict::of(entries(given)?)?))),
        Function::Namespace => {
            let mut values = HashMap::new();
            for (k, v) in entries(given)? {
                let Value::Str(name) = k else { return fault("attribute names are texts") };
                check_name(name.as_str())?;
                values.insert(name.as_str().to_owned(), v);
            }
            let values = Rc::new(RefCell::new(values));
            run.namespaces.borrow_mut().push(values.clone());
            Ok(Value::Namespace(values))
        }
        Function::Cycler if given.positional.is_empty() => fault("at least one item has to be provided"),
        Function::Cycler => Ok(Value::Cycler(Rc::new((given.positional.clone(), RefCell::new(0))))),
        Function::Joiner => {
            let sep = given.text(0, "sep")?.unwrap_or_else(|| Text::own(", "));
            Ok(Value::Joiner(Rc::new((sep, RefCell::new(false)))))
        }
        Function::Lipsum => fault("lipsum() makes random text, and a prompt has none"),
        Function::RaiseException => fault(given.need(0, "message")?.to_text().as_str()),
        Function::StrftimeNow => match (run.now, given.text(0, "format")?) {
            (Some(now), Some(format)) => Ok(Value::own(strftime(now, format.as_str()))),
            _ => fault("strftime_now() takes a format"),
        },
    }
}

/// What `dict(...)` is made of: a mapping or pairs, and keywords.
fn entries(given: &Given) -> Outcome<Vec<(Value, Value)>> {
    let mut all = vec![];
    match given.positional.first() {
        None => {}
        Some(Value::Dict(d)) => all.extend(d.entries.iter().cloned()),
        Some(pairs) => {
            for pair in pairs.defined()?.items()? {
                let items = pair.items()?;
                let [k, v] = &items[..] else { return fault("dictionary update sequence element is no pair") };
                all.push((k.clone(), v.clone()));
            }
        }
    }
    all.extend(given.named.iter().map(|(k, v)| (Value::own(k.as_str()), v.clone())));
    Ok(all)
}

fn range(run: &Run, given: &Given) -> Outcome<Value> {
    let numbers: Vec<i128> = (0..given.positional.len())
        .map(|i| given.int(i, "").and_then(|n| n.map_or_else(|| fault("range() takes whole numbers"), Ok)))
        .collect::<Outcome<_>>()?;
    let (start, stop, step) = match numbers[..] {
        [stop] => (0, stop, 1),
        [start, stop] => (start, stop, 1),
        [start, stop, step] => (start, stop, step),
        _ => return fault(format!("range expected 1 to 3 arguments, got {}", numbers.len())),
    };
    if step == 0 {
        return fault("range() arg 3 must not be zero");
    }
    let span = if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) };
    let count = if span <= 0 { 0 } else { (span - 1) / step.saturating_abs() + 1 };
    if count > MAX_RANGE {
        return fault(format!("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."));
    }
    run.pay(count as usize)?;
    let items = (0..count).map(|i| Value::Int(start + i * step)).collect();
    Ok(Value::seq(SeqKind::Range { start, stop, step }, items))
}
