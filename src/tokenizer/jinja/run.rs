//! A run of a template: what it may still spend, and the arguments of its calls.

use super::{
    DateTime, Fault, Outcome, fault,
    nesting::Nesting,
    text::Text,
    value::{Attributes, Scope, Value},
};
use std::cell::{Cell, RefCell};

/// What limits a run: steps, of which long texts cost more than one, and bytes of output.
#[derive(Clone, Copy, Debug)]
pub(in crate::tokenizer) struct Limits {
    pub steps: u64,
    pub output: usize,
}

/// Expressions, statements and macros inside each other while they run.
const DEPTH: usize = 500;

/// Lists inside each other.
const DEEPEST: usize = 200;

/// A run of a template.
pub(super) struct Run {
    steps: Cell<u64>,
    pub output: usize,
    nesting: Nesting,
    pub now: Option<DateTime>,
    /// What refers to itself and is cut apart at the end.
    pub scopes: RefCell<Vec<Scope>>,
    pub namespaces: RefCell<Vec<Attributes>>,
}

/// Evaluated arguments.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    pub positional: Vec<Value>,
    pub named: Vec<(String, Value)>,
}

impl Run {
    /// A run with these limits.
    pub fn new(limits: Limits, now: Option<DateTime>) -> Run {
        Run {
            steps: Cell::new(limits.steps),
            output: limits.output,
            nesting: Nesting::new(DEPTH),
            now,
            scopes: RefCell::default(),
            namespaces: RefCell::default(),
        }
    }

    /// Takes steps.
    pub fn pay(&self, steps: usize) -> Outcome<()> {
        match self.steps.get().checked_sub(steps as u64) {
            Some(left) => {
                self.steps.set(left);
                Ok(())
            }
            None => fault("it takes too many steps"),
        }
    }

    /// A value that was just made: pays for its text, and refuses what could not be written out: a value that is larger than the
    /// whole output may be.
    pub fn settle(&self, value: Value) -> Outcome<Value> {
        let extent = value.extent();
        if extent.depth > DEEPEST || extent.bytes > self.output {
            return fault("a value is too large");
        }
        match &value {
            Value::Str(s) => self.pay(s.len() / 8)?,
            Value::Seq(_, items) => self.pay(items.len())?,
            _ => {}
        }
        Ok(value)
    }

    pub fn deeper<T>(&self, f: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        if !self.nesting.enter() {
            return fault("maximum recursion depth exceeded");
        }
        let result = f();
        self.nesting.leave();
        result
    }
}

impl Given {
    /// The argument at a place or by a name.
    pub fn get(&self, at: usize, name: &str) -> Option<&Value> {
        self.positional.get(at).or_else(|| self.named.iter().find(|n| n.0 == name).map(|n| &n.1))
    }

    /// Refuses arguments beyond `names`.
    pub fn only(&self, of: &str, names: &[&str]) -> Outcome<()> {
        if self.positional.len() > names.len() {
            let (most, got) = (names.len(), self.positional.len());
            return fault(format!("{of}() takes at most {most} arguments ({got} given)"));
        }
        match self.named.iter().find(|n| !names.contains(&n.0.as_str())) {
            Some((name, _)) => fault(format!("{of}() got an unexpected keyword argument '{name}'")),
            None => Ok(()),
        }
    }

    /// A text, where it is given and not none.
    pub fn text(&self, at: usize, name: &str) -> Outcome<Option<Text>> {
        match self.get(at, name) {
            None | Some(Value::None) => Ok(None),
            Some(Value::Str(s)) => Ok(Some(s.clone())),
            Some(other) => {
                other.defined()?;
                fault(format!("'{name}' must be str, not {}", other.type_name()))
            }
        }
    }

    /// A whole number, where it is given and not none.
    pub fn int(&self, at: usize, name: &str) -> Outcome<Option<i128>> {
        match self.get(at, name) {
            None | Some(Value::None) => Ok(None),
            Some(v) => match v.defined()?.int() {
                Some(i) => Ok(Some(i)),
                None => fault(format!("'{}' object cannot be interpreted as an integer", v.type_name())),
            },
        }
    }

    /// The truth of an argument, or `default`.
    pub fn truth(&self, at: usize, name: &str, default: bool) -> bool {
        self.get(at, name).map_or(default, Value::is_true)
    }

    /// An argument that must be there.
    pub fn need(&self, at: usize, name: &str) -> Outcome<&Value> {
        self.get(at, name).ok_or_else(|| Fault::new(format!("missing a required argument: '{name}'")))
    }
}
