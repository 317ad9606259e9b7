//! Python's values, as far as templates meet them.

use super::{Fault, Outcome, ast::MacroDefinition, fault, scope, text::Text};
use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

mod compare;
mod dict;
mod loops;
mod repr;

pub(super) use repr::is_printable;
pub(in crate::tokenizer) use {dict::Dict, loops::LoopState};

/// A value. Lists and dicts do not change: the sandbox forbids it.
#[derive(Clone, Debug)]
pub(in crate::tokenizer) enum Value {
    None,
    /// What is not there, and how a message speaks of it.
    Undefined(Rc<str>),
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Text),
    Seq(SeqKind, Rc<Items>),
    Dict(Rc<Dict>),
    /// What can be gone through once: the result of `map`, `select` and their kin.
    Generator(Rc<RefCell<Vec<Value>>>),
    /// `namespace()`.
    Namespace(Attributes),
    /// A function of the environment.
    Function(Function),
    /// `value.name` where the name is one of Python's methods.
    Method(Rc<Value>, Rc<str>),
    Macro(Rc<Macro>),
    /// The variable `loop`.
    Loop(Rc<LoopState>),
    Cycler(Rc<(Vec<Value>, RefCell<usize>)>),
    Joiner(Rc<(Text, RefCell<bool>)>),
}

/// The items of a sequence, with how deep and how large it is when it is written out.
#[derive(Clone, Debug)]
pub(in crate::tokenizer) struct Items {
    items: Vec<Value>,
    extent: Extent,
}

impl std::ops::Deref for Items {
    type Target = Vec<Value>;

    fn deref(&self) -> &Vec<Value> {
        &self.items
    }
}

/// How much there is of a value when everything that it refers to is written out.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::tokenizer) struct Extent {
    /// Sequences and dicts inside each other.
    pub depth: usize,
    /// Bytes, roughly.
    pub bytes: usize,
}

impl Extent {
    fn of<'a>(items: impl IntoIterator<Item = &'a Value>) -> Extent {
        let add = |sum: Extent, v: &Value| {
            let e = v.extent();
            Extent { depth: sum.depth.max(e.depth + 1), bytes: sum.bytes.saturating_add(e.bytes) }
        };
        items.into_iter().fold(Extent { depth: 1, bytes: 16 }, add)
    }
}

/// What a namespace holds: the only values that templates change.
pub(in crate::tokenizer) type Attributes = Rc<RefCell<HashMap<String, Value>>>;

/// Variables.
pub(in crate::tokenizer) type Scope = scope::Scope<Value>;

/// Python's sequences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::tokenizer) enum SeqKind {
    List,
    Tuple,
    Range { start: i128, stop: i128, step: i128 },
    Keys,
    Values,
    Items,
}

/// Functions of the environment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::tokenizer) enum Function {
    Range,
    Dict,
    Namespace,
    Cycler,
    Joiner,
    Lipsum,
    RaiseException,
    StrftimeNow,
}

/// A macro with the scope where it was defined.
#[derive(Debug)]
pub(in crate::tokenizer) struct Macro {
    pub definition: Arc<MacroDefinition>,
    pub scope: Scope,
}

impl Value {
    pub fn own(text: impl Into<Rc<str>>) -> Value {
        Value::Str(Text::own(text))
    }

    pub fn list(items: Vec<Value>) -> Value {
        Value::seq(SeqKind::List, items)
    }

    pub fn tuple(items: Vec<Value>) -> Value {
        Value::seq(SeqKind::Tuple, items)
    }

    pub fn seq(kind: SeqKind, items: Vec<Value>) -> Value {
        let extent = Extent::of(&items);
        Value::Seq(kind, Rc::new(Items { items, extent }))
    }

    /// See [`Extent`].
    pub fn extent(&self) -> Extent {
        match self {
            Value::Str(s) => Extent { depth: 0, bytes: 16 + s.len() },
            Value::Seq(_, items) => items.extent,
            Value::Dict(d) => d.extent,
            _ => Extent { depth: 0, bytes: 16 },
        }
    }

    pub fn generator(items: Vec<Value>) -> Value {
        Value::Generator(Rc::new(RefCell::new(items)))
    }

    /// A value that is missing by this name.
    pub fn undefined(name: &str) -> Value {
        Value::Undefined(format!("'{name}' is undefined").into())
    }

    /// What came in with the conversation.
    pub fn foreign(json: &serde_json::Value) -> Value {
        use serde_json::Value as Json;
        match json {
            Json::Null => Value::None,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => match (n.as_i128(), n.as_f64()) {
                (Some(i), _) => Value::Int(i),
                (None, Some(x)) => Value::Float(x),
                (None, None) => Value::None,
            },
            Json::String(s) => Value::Str(Text::foreign(s.as_str())),
            Json::Array(items) => Value::list(items.iter().map(Value::foreign).collect()),
            Json::Object(entries) => {
                let entries = entries.iter().map(|(k, v)| (Value::Str(Text::foreign(k.as_str())), Value::foreign(v)));
                // Strings are always keys.
                Value::Dict(Rc::new(Dict::of(entries).unwrap_or_default()))
            }
        }
    }

    /// Python's name of its type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::None => "NoneType",
            Value::Undefined(_) => "Undefined",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Str(_) => "str",
            Value::Seq(kind, _) => match kind {
                SeqKind::List => "list",
                SeqKind::Tuple => "tuple",
                SeqKind::Range { .. } => "range",
                SeqKind::Keys => "dict_keys",
                SeqKind::Values => "dict_values",
                SeqKind::Items => "dict_items",
            },
            Value::Dict(_) => "dict",
            Value::Generator(_) => "generator",
            Value::Namespace(_) => "Namespace",
            Value::Function(_) => "function",
            Value::Method(..) => "builtin_function_or_method",
            Value::Macro(_) => "Macro",
            Value::Loop(_) => "LoopContext",
            Value::Cycler(_) => "Cycler",
            Value::Joiner(_) => "Joiner",
        }
    }

    /// An error where the value is undefined.
    pub fn defined(&self) -> Outcome<&Value> {
        match self {
            Value::Undefined(what) => fault(what.to_string()),
            other => Ok(other),
        }
    }

    pub fn is_true(&self) -> bool {
        match self {
            Value::None | Value::Undefined(_) => false,
            Value::Bool(b) => *b,
            Value::Int(i) => *i != 0,
            Value::Float(x) => *x != 0.0,
            Value::Str(s) => s.len() > 0,
            Value::Seq(_, items) => !items.is_empty(),
            Value::Dict(d) => !d.entries.is_empty(),
            Value::Generator(_)
            | Value::Namespace(_)
            | Value::Function(_)
            | Value::Method(..)
            | Value::Macro(_)
            | Value::Cycler(_)
            | Value::Joiner(_) => true,
            Value::Loop(l) => !l.items.is_empty(),
        }
    }

    /// As an integer, where it is one or a bool.
    pub fn int(&self) -> Option<i128> {
        match self {
            Value::Int(i) => Some(*i),
            Value::Bool(b) => Some(i128::from(*b)),
            _ => None,
        }
    }

    /// As a float, where it is a number.
    pub fn float(&self) -> Option<f64> {
        match self {
            Value::Float(x) => Some(*x),
            other => other.int().map(|i| i as f64),
        }
    }

    pub fn text(&self) -> Option<&Text> {
        match self {
            Value::Str(s) => Some(s),
            _ => None,
        }
    }

    /// `len()`.
    pub fn len(&self) -> Outcome<usize> {
        match self {
            Value::Str(s) => Ok(s.as_str().chars().count()),
            Value::Seq(_, items) => Ok(items.len()),
            Value::Dict(d) => Ok(d.entries.len()),
            Value::Loop(l) => Ok(l.items.len()),
            Value::Undefined(_) => Ok(0),
            other => fault(format!("object of type '{}' has no len()", other.type_name())),
        }
    }

    /// What iteration gives.
    pub fn items(&self) -> Outcome<Vec<Value>> {
        match self {
            Value::Seq(_, items) => Ok(items.to_vec()),
            Value::Dict(d) => Ok(d.entries.iter().map(|e| e.0.clone()).collect()),
            Value::Str(s) => {
                let at = s.as_str().char_indices().map(|(i, c)| Value::Str(s.slice(i..i + c.len_utf8())));
                Ok(at.collect())
            }
            Value::Generator(g) => Ok(std::mem::take(&mut *g.borrow_mut())),
            Value::Undefined(_) => Ok(vec![]),
            other => fault(format!("'{}' object is not iterable", other.type_name())),
        }
    }

    /// `str()`.
    pub fn to_text(&self) -> Text {
        match self {
            Value::Str(s) => s.clone(),
            Value::Undefined(_) => Text::default(),
            other => other.repr(),
        }
    }
}

impl Fault {
    /// What Python says of operands that do not go together.
    pub(super) fn operands(sign: &str, a: &Value, b: &Value) -> Fault {
        let (a, b) = (a.type_name(), b.type_name());
        Fault::new(format!("unsupported operand type(s) for {sign}: '{a}' and '{b}'"))
    }
}
