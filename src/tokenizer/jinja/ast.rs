//! The tree of a template.

/// An expression, the line where it begins, and how many are inside each other in it.
#[derive(Clone, Debug)]
pub(in crate::tokenizer) struct Expr {
    pub line: u32,
    pub depth: u32,
    pub kind: Box<Kind>,
}

/// Expressions.
#[derive(Clone, Debug)]
pub(in crate::tokenizer) enum Kind {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(String),
    Name(String),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    /// `value.name`.
    Attribute(Expr, String),
    /// `value[index]`.
    Item(Expr, Expr),
    /// `start:stop:step`, inside an index only.
    Slice(Option<Expr>, Option<Expr>, Option<Expr>),
    Call(Expr, Arguments),
    Filter(Expr, String, Arguments),
    Test(Expr, String, Arguments),
    Not(Expr),
    Negative(Expr),
    Positive(Expr),
    Binary(Operator, Expr, Expr),
    And(Expr, Expr),
    Or(Expr, Expr),
    /// `a < b < c`: the first, then each comparison with its right side.
    Compare(Expr, Vec<(Comparison, Expr)>),
    /// `then if condition else otherwise`.
    If {
        condition: Expr,
        then: Expr,
        otherwise: Option<Expr>,
    },
}

impl Kind {
    /// Expressions inside each other, this one included.
    pub fn depth(&self) -> u32 {
        let most = |list: &[Expr]| list.iter().map(|e| e.depth).max().unwrap_or(0);
        let maybe = |e: &Option<Expr>| e.as_ref().map_or(0, |e| e.depth);
        1 + match self {
            Kind::None | Kind::Bool(_) | Kind::Int(_) | Kind::Float(_) | Kind::Str(_) | Kind::Name(_) => 0,
            Kind::List(items) | Kind::Tuple(items) => most(items),
            Kind::Dict(entries) => entries.iter().map(|(k, v)| k.depth.max(v.depth)).max().unwrap_or(0),
            Kind::Attribute(e, _) | Kind::Not(e) | Kind::Negative(e) | Kind::Positive(e) => e.depth,
            Kind::Item(a, b) | Kind::Binary(_, a, b) | Kind::And(a, b) | Kind::Or(a, b) => a.depth.max(b.depth),
            Kind::Slice(a, b, c) => maybe(a).max(maybe(b)).max(maybe(c)),
            Kind::Call(e, a) | Kind::Filter(e, _, a) | Kind::Test(e, _, a) => e.depth.max(a.depth()),
            Kind::Compare(first, others) => others.iter().map(|o| o.1.depth).fold(first.depth, u32::max),
            Kind::If { condition, then, otherwise } => condition.depth.max(then.depth).max(maybe(otherwise)),
        }
    }
}

/// Arithmetic and `~`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tokenizer) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Modulo,
    Power,
    Concat,
}

impl Operator {
    /// As Python's messages write it.
    pub fn sign(self) -> &'static str {
        match self {
            Operator::Add => "+",
            Operator::Subtract => "-",
            Operator::Multiply => "*",
            Operator::Divide => "/",
            Operator::FloorDivide => "//",
            Operator::Modulo => "%",
            Operator::Power => "** or pow()",
            Operator::Concat => "~",
        }
    }
}

/// Comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tokenizer) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    NotIn,
}

/// What stands between the parentheses of a call.
#[derive(Clone, Debug, Default)]
pub(in crate::tokenizer) struct Arguments {
    pub positional: Vec<Expr>,
    pub named: Vec<(String, Expr)>,
    /// `*value`.
    pub more: Option<Expr>,
    /// `**value`.
    pub more_named: Option<Expr>,
}

impl Arguments {
    fn depth(&self) -> u32 {
        let all =
            self.positional.iter().chain(self.named.iter().map(|n| &n.1)).chain(&self.more).chain(&self.more_named);
        all.map(|e| e.depth).max().unwrap_or(0)
    }
}

/// What an assignment or a loop binds.
#[derive(Clone, Debug)]
pub(in crate::tokenizer) enum Target {
    Name(String),
    /// `namespace.attribute`.
    Attribute(String, String),
    Tuple(Vec<Target>),
}

/// A macro, or the body of `{% call %}`.
#[derive(Clone, Debug)]
pub(in crate::tokenizer) struct MacroDefinition {
    pub name: String,
    /// Parameters with their defaults.
    pub parameters: Vec<(String, Option<Expr>)>,
    pub body: Vec<Statement>,
    /// Whether the body asks for what the parameters do not take.
    pub takes_varargs: bool,
    pub takes_kwargs: bool,
}

/// A statement and its line.
#[derive(Clone, Debug)]
pub(in crate::tokenizer) struct Statement {
    pub line: u32,
    pub kind: Action,
}

/// Statements.
#[derive(Clone, Debug)]
pub(in crate::tokenizer) enum Action {
    /// Text outside of tags.
    Text(String),
    /// `{{ value }}`.
    Print(Expr),
    If {
        branches: Vec<(Expr, Vec<Statement>)>,
        otherwise: Vec<Statement>,
    },
    For(std::sync::Arc<Loop>),
    Set(Target, Expr),
    /// `{% set x %}...{% endset %}`, with the filters behind the name.
    SetBlock(Target, Vec<(String, Arguments)>, Vec<Statement>),
    With(Vec<(Target, Expr)>, Vec<Statement>),
    Macro(std::sync::Arc<MacroDefinition>),
    /// `{% call(parameters) f(...) %}`.
    CallBlock(Expr, std::sync::Arc<MacroDefinition>),
    FilterBlock(Vec<(String, Arguments)>, Vec<Statement>),
    /// Statements with a scope of their own: `{% block %}`, `{% autoescape %}`, `{% generation %}`.
    Scope(Vec<Statement>),
    Break,
    Continue,
    /// `include` and its kin: the template that is asked for.
    Elsewhere(Expr),
}

/// `{% for %}`.
#[derive(Clone, Debug)]
pub(in crate::tokenizer) struct Loop {
    pub target: Target,
    pub over: Expr,
    pub filter: Option<Expr>,
    pub recursive: bool,
    pub body: Vec<Statement>,
    pub otherwise: Vec<Statement>,
}
