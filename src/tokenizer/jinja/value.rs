//! Python's values, as far as templates meet them.

use super::{
    Fault, Outcome,
    ast::MacroDefinition,
    fault, number, scope,
    text::{Builder, Text},
};
use std::{cell::RefCell, cmp::Ordering, collections::HashMap, rc::Rc, sync::Arc};

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

/// A loop in progress.
#[derive(Debug)]
pub(in crate::tokenizer) struct LoopState {
    pub items: Vec<Value>,
    pub index0: std::cell::Cell<usize>,
    pub depth0: usize,
    pub changed: RefCell<Option<Vec<Value>>>,
    /// The loop itself, where it may be run again over other items.
    pub again: Option<Arc<super::ast::Loop>>,
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

/// Keys and values in order of insertion. Dicts of conversations are small; larger ones are found by hash.
#[derive(Clone, Debug, Default)]
pub(in crate::tokenizer) struct Dict {
    pub entries: Vec<(Value, Value)>,
    index: HashMap<String, usize>,
    extent: Extent,
}

impl Dict {
    /// Sets a key.
    ///
    /// # Errors
    /// For keys that Python cannot hash.
    pub fn set(&mut self, key: Value, value: Value) -> Outcome<()> {
        let hashed = hash(&key)?;
        match self.index.get(&hashed) {
            Some(i) => self.entries[*i].1 = value,
            None => {
                self.index.insert(hashed, self.entries.len());
                self.entries.push((key, value));
            }
        }
        Ok(())
    }

    /// The value of a key; `None` also for what cannot be one.
    pub fn get(&self, key: &Value) -> Option<&Value> {
        self.index.get(&hash(key).ok()?).map(|i| &self.entries[*i].1)
    }

    pub fn of(entries: impl IntoIterator<Item = (Value, Value)>) -> Outcome<Dict> {
        let mut dict = Dict::default();
        entries.into_iter().try_for_each(|(k, v)| dict.set(k, v))?;
        dict.extent = Extent::of(dict.entries.iter().flat_map(|(k, v)| [k, v]));
        Ok(dict)
    }
}

/// Equal for keys that Python takes for the same.
fn hash(key: &Value) -> Outcome<String> {
    Ok(match key {
        Value::Str(s) => format!("s{}", s.as_str()),
        Value::Bool(b) => format!("n{}", i128::from(*b)),
        Value::Int(i) => format!("n{i}"),
        Value::Float(x) if x.fract() == 0.0 && x.abs() < 1e30 => format!("n{}", *x as i128),
        Value::Float(x) => format!("f{}", x.to_bits()),
        Value::None => "none".into(),
        Value::Seq(SeqKind::Tuple, items) => {
            let parts = items.iter().map(hash).collect::<Outcome<Vec<_>>>()?;
            parts.iter().fold("t".into(), |t: String, p| format!("{t}{}:{p}", p.len()))
        }
        other => return fault(format!("unhashable type: '{}'", other.type_name())),
    })
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

    /// `str()`.
    pub fn to_text(&self) -> Text {
        match self {
            Value::Str(s) => s.clone(),
            Value::Undefined(_) => Text::default(),
            other => other.repr(),
        }
    }

    /// `repr()`.
    pub fn repr(&self) -> Text {
        let mut out = Builder::default();
        self.write_repr(&mut out);
        out.finish()
    }

    fn write_repr(&self, out: &mut Builder) {
        match self {
            Value::None => out.own("None"),
            Value::Undefined(_) => out.own("Undefined"),
            Value::Bool(b) => out.own(if *b { "True" } else { "False" }),
            Value::Int(i) => out.own(&i.to_string()),
            Value::Float(x) => out.own(&number::float(*x)),
            Value::Str(s) => out.push(&s.made(quoted(s.as_str()))),
            Value::Seq(SeqKind::Range { start, stop, step }, _) => {
                let step = if *step == 1 { String::new() } else { format!(", {step}") };
                out.own(&format!("range({start}, {stop}{step})"));
            }
            Value::Seq(kind, items) => {
                let (open, close) = match kind {
                    SeqKind::Tuple => ("(", if items.len() == 1 { ",)" } else { ")" }),
                    SeqKind::Keys => ("dict_keys([", "])"),
                    SeqKind::Values => ("dict_values([", "])"),
                    SeqKind::Items => ("dict_items([", "])"),
                    SeqKind::List | SeqKind::Range { .. } => ("[", "]"),
                };
                out.own(open);
                for (i, item) in items.iter().enumerate() {
                    out.own(if i > 0 { ", " } else { "" });
                    item.write_repr(out);
                }
                out.own(close);
            }
            Value::Dict(d) => {
                out.own("{");
                for (i, (k, v)) in d.entries.iter().enumerate() {
                    out.own(if i > 0 { ", " } else { "" });
                    k.write_repr(out);
                    out.own(": ");
                    v.write_repr(out);
                }
                out.own("}");
            }
            Value::Generator(_) => out.own("<generator object>"),
            Value::Namespace(_) => out.own("<Namespace>"),
            Value::Function(_) => out.own("<function>"),
            Value::Method(_, name) => out.own(&format!("<built-in method {name}>")),
            Value::Macro(m) => out.own(&format!("<Macro '{}'>", m.definition.name)),
            Value::Loop(l) => out.own(&format!("<LoopContext {}/{}>", l.index0.get() + 1, l.items.len())),
            Value::Cycler(_) => out.own("<Cycler>"),
            Value::Joiner(_) => out.own("<Joiner>"),
        }
    }
}

/// Python's quotes and escapes.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            ' ' => out.push(' '),
            c if is_printable(c) => out.push(c),
            c if (c as u32) < 0x100 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if (c as u32) < 0x1_0000 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    out.push(quote);
    out
}

/// Python's `str.isprintable` of a character: no control, format, private or unassigned one, and no blank but the space.
pub(super) fn is_printable(c: char) -> bool {
    use crate::tokenizer::pretok::unicode::{Class, class};
    c == ' ' || !matches!(class(c), Class::Other | Class::Space)
}

impl Fault {
    /// What Python says of operands that do not go together.
    pub(super) fn operands(sign: &str, a: &Value, b: &Value) -> Fault {
        let (a, b) = (a.type_name(), b.type_name());
        Fault::new(format!("unsupported operand type(s) for {sign}: '{a}' and '{b}'"))
    }
}
