//! Runs a template.

use super::{
    DateTime, Outcome, Template,
    ast::{Action, Arguments, Expr, Kind, Loop, MacroDefinition, Operator, Statement, Target},
    check, fault, filter, format, global, method, operator,
    run::{Given, Limits, Run},
    text::{Builder, Text},
    value::{Dict, LoopState, Macro, Scope, Value},
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
};

/// Where a statement leads.
#[derive(Clone, Copy, PartialEq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// Renders a template with these variables.
pub(in crate::tokenizer) fn render(
    template: &Template,
    variables: HashMap<String, Value>,
    now: Option<DateTime>,
    limits: Limits,
) -> Outcome<Text> {
    let run = Run::new(limits, now);
    let mut all = global::functions(now.is_some());
    all.extend(variables);
    let scope = Scope::new(all);
    let mut out = Builder::default();
    let done = run.block(&template.body, &scope, &mut out);
    for s in run.scopes.take() {
        s.clear();
    }
    for n in run.namespaces.take() {
        let gone = std::mem::take(&mut *n.borrow_mut());
        drop(gone);
    }
    done.map(|_| out.finish())
}

impl Run {
    // ---------------------------------------------------------------- statements

    fn block(&self, body: &[Statement], scope: &Scope, out: &mut Builder) -> Outcome<Flow> {
        for statement in body {
            let flow = self.deeper(|| self.statement(statement, scope, out)).map_err(|e| e.at(statement.line))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn write(&self, text: &Text, out: &mut Builder) -> Outcome<()> {
        if out.len() + text.len() > self.output {
            return fault("it writes without end");
        }
        out.push(text);
        Ok(())
    }

    fn statement(&self, statement: &Statement, scope: &Scope, out: &mut Builder) -> Outcome<Flow> {
        self.pay(1)?;
        match &statement.kind {
            Action::Text(text) => {
                self.pay(text.len() / 8)?;
                out.own(text);
            }
            Action::Print(value) => {
                let text = self.eval(value, scope)?.to_text();
                self.pay(text.len() / 8)?;
                self.write(&text, out)?;
            }
            Action::If { branches, otherwise } => {
                for (condition, body) in branches {
                    if self.eval(condition, scope)?.is_true() {
                        return self.block(body, scope, out);
                    }
                }
                return self.block(otherwise, scope, out);
            }
            Action::For(l) => {
                let over = self.eval(&l.over, scope)?;
                self.run_loop(l, over, scope, 0, out)?;
            }
            Action::Set(target, value) => {
                let value = self.eval(value, scope)?;
                self.bind(target, value, scope)?;
            }
            Action::SetBlock(target, filters, body) => {
                let text = self.captured(body, &scope.inner(), filters)?;
                self.bind(target, text, scope)?;
            }
            Action::With(values, body) => {
                let inner = scope.inner();
                for (target, value) in values {
                    self.bind(target, self.eval(value, scope)?, &inner)?;
                }
                return self.block(body, &inner, out);
            }
            Action::Macro(definition) => {
                let value = self.macro_value(definition, scope);
                scope.set(&definition.name, value);
            }
            Action::CallBlock(call, definition) => {
                let caller = self.macro_value(definition, scope);
                let text = self.call_with(call, scope, Some(caller))?.to_text();
                self.write(&text, out)?;
            }
            Action::FilterBlock(filters, body) => {
                let text = self.captured(body, &scope.inner(), filters)?.to_text();
                self.write(&text, out)?;
            }
            Action::Scope(body) => return self.block(body, &scope.inner(), out),
            Action::Break => return Ok(Flow::Break),
            Action::Continue => return Ok(Flow::Continue),
            Action::Elsewhere(name) => {
                let name = self.eval(name, scope)?;
                return fault(format!("no loader for this environment specified: {}", name.to_text().as_str()));
            }
        }
        Ok(Flow::Next)
    }

    fn macro_value(&self, definition: &Arc<MacroDefinition>, scope: &Scope) -> Value {
        self.scopes.borrow_mut().push(scope.clone());
        Value::Macro(Rc::new(Macro { definition: definition.clone(), scope: scope.clone() }))
    }

    /// What a body writes, through filters.
    fn captured(&self, body: &[Statement], scope: &Scope, filters: &[(String, Arguments)]) -> Outcome<Value> {
        let mut text = Builder::default();
        self.block(body, scope, &mut text)?;
        let mut value = self.settle(Value::Str(text.finish()))?;
        for (name, arguments) in filters {
            let given = self.given(arguments, scope)?;
            value = self.settle(filter::apply(self, name, value, given)?)?;
        }
        Ok(value)
    }

    fn bind(&self, target: &Target, value: Value, scope: &Scope) -> Outcome<()> {
        match target {
            Target::Name(name) => scope.set(name, value),
            Target::Attribute(name, attribute) => match scope.get(name) {
                Some(Value::Namespace(n)) => {
                    global::check_name(attribute)?;
                    n.borrow_mut().insert(attribute.clone(), value);
                }
                _ => return fault("cannot assign attribute on non-namespace object"),
            },
            Target::Tuple(targets) => {
                let items = value.items()?;
                let (want, got) = (targets.len(), items.len());
                if want > got {
                    return fault(format!("not enough values to unpack (expected {want}, got {got})"));
                }
                if want < got {
                    return fault(format!("too many values to unpack (expected {want})"));
                }
                for (t, v) in targets.iter().zip(items) {
                    self.bind(t, v, scope)?;
                }
            }
        }
        Ok(())
    }

    fn run_loop(&self, l: &Arc<Loop>, over: Value, scope: &Scope, depth0: usize, out: &mut Builder) -> Outcome<()> {
        let mut items = over.items()?;
        self.pay(items.len())?;
        if let Some(filter) = &l.filter {
            let mut kept = vec![];
            for item in items {
                let inner = scope.inner();
                self.bind(&l.target, item.clone(), &inner)?;
                if self.eval(filter, &inner)?.is_true() {
                    kept.push(item);
                }
            }
            items = kept;
        }
        if items.is_empty() {
            return self.block(&l.otherwise, &scope.inner(), out).map(drop);
        }
        let state = Rc::new(LoopState {
            items,
            index0: Cell::new(0),
            depth0,
            changed: RefCell::default(),
            again: l.recursive.then(|| l.clone()),
            scope: scope.clone(),
        });
        for i in 0..state.items.len() {
            state.index0.set(i);
            let inner = scope.inner();
            self.bind(&l.target, state.items[i].clone(), &inner)?;
            inner.set("loop", Value::Loop(state.clone()));
            if self.block(&l.body, &inner, out)? == Flow::Break {
                break;
            }
        }
        Ok(())
    }

    // ---------------------------------------------------------------- expressions

    pub fn eval(&self, e: &Expr, scope: &Scope) -> Outcome<Value> {
        self.pay(1)?;
        self.deeper(|| self.kind(&e.kind, scope)).map_err(|f| f.at(e.line))
    }

    fn all(&self, list: &[Expr], scope: &Scope) -> Outcome<Vec<Value>> {
        list.iter().map(|e| self.eval(e, scope)).collect()
    }

    fn kind(&self, kind: &Kind, scope: &Scope) -> Outcome<Value> {
        Ok(match kind {
            Kind::None => Value::None,
            Kind::Bool(b) => Value::Bool(*b),
            Kind::Int(i) => Value::Int(*i),
            Kind::Float(x) => Value::Float(*x),
            Kind::Str(s) => Value::own(s.as_str()),
            Kind::Name(name) => scope.get(name).unwrap_or_else(|| Value::undefined(name)),
            Kind::List(items) => return self.settle(Value::list(self.all(items, scope)?)),
            Kind::Tuple(items) => return self.settle(Value::tuple(self.all(items, scope)?)),
            Kind::Dict(entries) => {
                let pairs = entries.iter().map(|(k, v)| Ok((self.eval(k, scope)?, self.eval(v, scope)?)));
                let dict = Dict::of(pairs.collect::<Outcome<Vec<_>>>()?)?;
                return self.settle(Value::Dict(Rc::new(dict)));
            }
            Kind::Attribute(value, name) => operator::attribute(&self.eval(value, scope)?, name)?,
            Kind::Item(value, index) => return self.index(value, index, scope),
            Kind::Slice(..) => return fault("a slice stands in brackets only"),
            Kind::Call(..) => return self.call(kind, scope, None),
            Kind::Filter(value, name, arguments) => {
                let value = self.eval(value, scope)?;
                let given = self.given(arguments, scope)?;
                return self.settle(filter::apply(self, name, value, given)?);
            }
            Kind::Test(value, name, arguments) => {
                let value = self.eval(value, scope)?;
                Value::Bool(check::apply(self, name, &value, &self.given(arguments, scope)?)?)
            }
            Kind::Not(value) => Value::Bool(!self.eval(value, scope)?.is_true()),
            Kind::Negative(value) => operator::signed(&self.eval(value, scope)?, true)?,
            Kind::Positive(value) => operator::signed(&self.eval(value, scope)?, false)?,
            Kind::Binary(op, a, b) => {
                let (a, b) = (self.eval(a, scope)?, self.eval(b, scope)?);
                let made = match (op, &a) {
                    (Operator::Modulo, Value::Str(template)) => {
                        Value::Str(format::percent(self, template, b.defined()?)?)
                    }
                    _ => operator::binary(self, *op, &a, &b)?,
                };
                return self.settle(made);
            }
            Kind::And(a, b) => {
                let a = self.eval(a, scope)?;
                if a.is_true() { self.eval(b, scope)? } else { a }
            }
            Kind::Or(a, b) => {
                let a = self.eval(a, scope)?;
                if a.is_true() { a } else { self.eval(b, scope)? }
            }
            Kind::Compare(first, others) => {
                let mut left = self.eval(first, scope)?;
                for (op, right) in others {
                    let right = self.eval(right, scope)?;
                    if !operator::compare(self, *op, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Value::Bool(true)
            }
            Kind::If { condition, then, otherwise } => match (self.eval(condition, scope)?.is_true(), otherwise) {
                (true, _) => self.eval(then, scope)?,
                (false, Some(e)) => self.eval(e, scope)?,
                (false, None) => Value::Undefined(
                    "the inline if-expression evaluated to false and no else section was defined.".into(),
                ),
            },
        })
    }

    fn index(&self, value: &Expr, index: &Expr, scope: &Scope) -> Outcome<Value> {
        let value = self.eval(value, scope)?;
        if let Kind::Slice(start, stop, step) = &*index.kind {
            let part = |e: &Option<Expr>| e.as_ref().map(|e| self.eval(e, scope)).transpose();
            return self.settle(operator::slice(self, &value, [part(start)?, part(stop)?, part(step)?])?);
        }
        operator::item(self, &value, &self.eval(index, scope)?)
    }

    pub fn given(&self, a: &Arguments, scope: &Scope) -> Outcome<Given> {
        let mut given = Given { positional: self.all(&a.positional, scope)?, named: vec![] };
        if let Some(more) = &a.more {
            given.positional.extend(self.eval(more, scope)?.defined()?.items()?);
        }
        for (name, value) in &a.named {
            given.named.push((name.clone(), self.eval(value, scope)?));
        }
        if let Some(more) = &a.more_named {
            match self.eval(more, scope)? {
                Value::Dict(d) => {
                    for (k, v) in &d.entries {
                        let Value::Str(name) = k else { return fault("keywords must be strings") };
                        given.named.push((name.as_str().to_owned(), v.clone()));
                    }
                }
                other => {
                    return fault(format!("argument after ** must be a mapping, not {}", other.type_name()));
                }
            }
        }
        Ok(given)
    }

    fn call_with(&self, e: &Expr, scope: &Scope, caller: Option<Value>) -> Outcome<Value> {
        self.deeper(|| self.call(&e.kind, scope, caller)).map_err(|f| f.at(e.line))
    }

    fn call(&self, kind: &Kind, scope: &Scope, caller: Option<Value>) -> Outcome<Value> {
        let Kind::Call(function, arguments) = kind else { return fault("expected call") };
        let function = self.eval(function, scope)?;
        let mut given = self.given(arguments, scope)?;
        if let Some(caller) = caller {
            given.named.push(("caller".into(), caller));
        }
        self.settle(self.invoke(&function, given)?)
    }

    /// Calls a value.
    pub fn invoke(&self, function: &Value, given: Given) -> Outcome<Value> {
        match function.defined()? {
            Value::Function(f) => global::call(self, *f, &given),
            Value::Method(value, name) => method::call(self, value, name, given),
            Value::Macro(m) => self.expand(m, given),
            Value::Loop(l) => {
                let Some(again) = &l.again else {
                    return fault("The loop must have the 'recursive' marker to be called recursively.");
                };
                let [over] = &given.positional[..] else { return fault("loop() takes one argument") };
                let mut out = Builder::default();
                self.run_loop(again, over.clone(), &l.scope, l.depth0 + 1, &mut out)?;
                Ok(Value::Str(out.finish()))
            }
            Value::Joiner(j) => {
                let used = j.1.replace(true);
                Ok(Value::Str(if used { j.0.clone() } else { Text::default() }))
            }
            other => fault(format!("'{}' object is not callable", other.type_name())),
        }
    }

    /// The text that a macro makes.
    fn expand(&self, m: &Rc<Macro>, mut given: Given) -> Outcome<Value> {
        let d = &m.definition;
        let scope = m.scope.inner();
        let mut named = std::mem::take(&mut given.named);
        let mut positional = given.positional.into_iter();
        for (name, default) in &d.parameters {
            let by_name = named.iter().position(|n| n.0 == *name).map(|i| named.remove(i).1);
            let value = match (positional.next(), by_name, default) {
                (Some(_), Some(_), _) => return fault(format!("macro '{}' got two values for '{name}'", d.name)),
                (Some(v), None, _) | (None, Some(v), _) => v,
                (None, None, Some(e)) => self.eval(e, &scope)?,
                (None, None, None) => Value::Undefined(format!("parameter '{name}' was not provided").into()),
            };
            scope.set(name, value);
        }
        if d.parameters.iter().all(|p| p.0 != "caller") {
            let caller = named.iter().position(|n| n.0 == "caller").map(|i| named.remove(i).1);
            let none = || Value::Undefined("No caller defined".into());
            scope.set("caller", caller.unwrap_or_else(none));
        }
        if d.takes_varargs {
            scope.set("varargs", Value::tuple(positional.collect()));
        } else if positional.next().is_some() {
            return fault(format!("macro '{}' takes not more than {} argument(s)", d.name, d.parameters.len()));
        }
        if d.takes_kwargs {
            let entries = named.into_iter().map(|(k, v)| (Value::own(k), v));
            scope.set("kwargs", Value::Dict(Rc::new(Dict::of(entries)?)));
        } else if let Some((name, _)) = named.first() {
            return fault(format!("macro '{}' takes no keyword argument '{name}'", d.name));
        }
        let mut out = Builder::default();
        self.block(&d.body, &scope, &mut out)?;
        Ok(Value::Str(out.finish()))
    }
}
