//! From tokens to the tree, by the grammar of Jinja's `parser.py`.

use super::{
    Fault, Outcome,
    ast::{Action, Arguments, Comparison, Expr, Kind, Loop, MacroDefinition, Operator, Statement, Target},
    fault,
    lexer::{Token, tokens},
};
use std::sync::Arc;

/// Expressions and statements inside each other; deeper ones would end in the thread's stack.
const DEPTH: usize = 100;

/// The same of finished expressions, in which every operator of a chain is one level.
const EXPRESSION_DEPTH: u32 = 300;

/// Parses a template.
pub(super) fn parse(source: &str) -> Outcome<Vec<Statement>> {
    let mut p = Parser { tokens: tokens(source)?, at: 0, depth: 0 };
    p.statements(&[]).map_err(|e| e.at(p.line()))
}

struct Parser {
    tokens: Vec<(Token, u32)>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn token(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)].0
    }

    fn line(&self) -> u32 {
        self.tokens[self.at.min(self.tokens.len() - 1)].1
    }

    fn next(&mut self) -> Token {
        let token = self.token().clone();
        self.at += 1;
        token
    }

    fn is(&self, op: &str) -> bool {
        matches!(self.token(), Token::Operator(o) if *o == op)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.token(), Token::Name(n) if n == name)
    }

    fn take(&mut self, op: &str) -> bool {
        let found = self.is(op);
        self.at += usize::from(found);
        found
    }

    fn take_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, op: &str) -> Outcome<()> {
        if self.take(op) { Ok(()) } else { self.unexpected(&format!("'{op}'")) }
    }

    fn name(&mut self) -> Outcome<String> {
        match self.next() {
            Token::Name(n) => Ok(n),
            _ => {
                self.at -= 1;
                self.unexpected("a name")
            }
        }
    }

    fn unexpected<T>(&self, wanted: &str) -> Outcome<T> {
        let found = match self.token() {
            Token::Text(_) => "template data".into(),
            Token::VariableBegin => "begin of print statement".into(),
            Token::VariableEnd => "end of print statement".into(),
            Token::BlockBegin => "begin of statement block".into(),
            Token::BlockEnd => "end of statement block".into(),
            Token::Name(n) => format!("'{n}'"),
            Token::Str(_) => "a string".into(),
            Token::Int(_) | Token::Float(_) => "a number".into(),
            Token::Operator(o) => format!("'{o}'"),
            Token::End => "end of template".to_owned(),
        };
        Err(Fault::new(format!("expected {wanted}, got {found}")).at(self.line()))
    }

    /// Runs `f` one level deeper.
    fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Outcome<T>) -> Outcome<T> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(Fault::new("it is nested too deeply").at(self.line()));
        }
        let result = f(self);
        self.depth -= 1;
        result
    }

    // ---------------------------------------------------------------- statements

    /// Statements up to a block that begins with one of `ends`, which is left where it is (behind `{%`).
    fn statements(&mut self, ends: &[&str]) -> Outcome<Vec<Statement>> {
        self.deeper(|p| p.statements_here(ends))
    }

    fn statements_here(&mut self, ends: &[&str]) -> Outcome<Vec<Statement>> {
        let mut out = vec![];
        loop {
            let line = self.line();
            match self.next() {
                Token::Text(text) => out.push(Statement { line, kind: Action::Text(text) }),
                Token::VariableBegin => {
                    let value = self.tuple(true)?;
                    if *self.token() != Token::VariableEnd {
                        return self.unexpected("'end of print statement'");
                    }
                    self.at += 1;
                    out.push(Statement { line, kind: Action::Print(value) });
                }
                Token::BlockBegin => {
                    if ends.iter().any(|e| self.is_name(e)) {
                        return Ok(out);
                    }
                    let kind = self.statement()?;
                    self.block_end()?;
                    out.push(Statement { line, kind });
                }
                Token::End if ends.is_empty() => return Ok(out),
                _ => {
                    self.at -= 1;
                    let wanted = ends.iter().map(|e| format!("'{e}'")).collect::<Vec<_>>().join(" or ");
                    return self.unexpected(if wanted.is_empty() { "text" } else { &wanted });
                }
            }
        }
    }

    fn block_end(&mut self) -> Outcome<()> {
        if *self.token() != Token::BlockEnd {
            return self.unexpected("end of statement block");
        }
        self.at += 1;
        Ok(())
    }

    /// The body of a block behind its head, and its end's name taken.
    fn body(&mut self, end: &str) -> Outcome<Vec<Statement>> {
        self.block_end()?;
        let body = self.statements(&[end])?;
        self.at += 1;
        Ok(body)
    }

    fn statement(&mut self) -> Outcome<Action> {
        let word = self.name()?;
        match word.as_str() {
            "if" => self.if_(),
            "for" => self.for_(),
            "set" => self.set(),
            "with" => self.with(),
            "macro" => {
                let name = self.name()?;
                Ok(Action::Macro(self.definition(name, "endmacro")?))
            }
            "call" => self.call_block(),
            "filter" => {
                let filters = self.filters(true)?;
                Ok(Action::FilterBlock(filters, self.body("endfilter")?))
            }
            "block" => {
                let name = self.name()?;
                while self.take_name("scoped") || self.take_name("required") {}
                let body = self.body("endblock")?;
                self.take_name(&name);
                Ok(Action::Scope(body))
            }
            "autoescape" => {
                self.expression()?;
                Ok(Action::Scope(self.body("endautoescape")?))
            }
            "generation" => Ok(Action::Scope(self.body("endgeneration")?)),
            "break" => Ok(Action::Break),
            "continue" => Ok(Action::Continue),
            "include" | "extends" | "import" | "from" => {
                let other = self.expression()?;
                while *self.token() != Token::BlockEnd && *self.token() != Token::End {
                    self.at += 1;
                }
                Ok(Action::Elsewhere(other))
            }
            "print" => Ok(Action::Print(self.tuple(true)?)),
            other => fault(format!("Encountered unknown tag '{other}'.")),
        }
        .map_err(|e: Fault| e.at(self.line()))
    }

    fn if_(&mut self) -> Outcome<Action> {
        let mut branches = vec![];
        let mut condition = self.tuple(false)?;
        loop {
            self.block_end()?;
            let body = self.statements(&["elif", "else", "endif"])?;
            branches.push((condition, body));
            if self.take_name("elif") {
                condition = self.tuple(false)?;
            } else if self.take_name("else") {
                return Ok(Action::If { branches, otherwise: self.body("endif")? });
            } else {
                self.at += 1;
                return Ok(Action::If { branches, otherwise: vec![] });
            }
        }
    }

    fn for_(&mut self) -> Outcome<Action> {
        let target = self.targets(false)?;
        if !self.take_name("in") {
            return self.unexpected("'in'");
        }
        let over = self.tuple(false)?;
        let filter = if self.take_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.take_name("recursive");
        self.block_end()?;
        let body = self.statements(&["endfor", "else"])?;
        let otherwise = if self.take_name("else") {
            self.body("endfor")?
        } else {
            self.at += 1;
            vec![]
        };
        Ok(Action::For(Arc::new(Loop { target, over, filter, recursive, body, otherwise })))
    }

    fn set(&mut self) -> Outcome<Action> {
        let target = self.targets(true)?;
        if self.take("=") {
            return Ok(Action::Set(target, self.tuple(true)?));
        }
        let filters = self.filters(false)?;
        Ok(Action::SetBlock(target, filters, self.body("endset")?))
    }

    fn with(&mut self) -> Outcome<Action> {
        let mut values = vec![];
        while *self.token() != Token::BlockEnd {
            if !values.is_empty() {
                self.expect(",")?;
            }
            let target = self.target(false)?;
            self.expect("=")?;
            values.push((target, self.expression()?));
        }
        Ok(Action::With(values, self.body("endwith")?))
    }

    fn call_block(&mut self) -> Outcome<Action> {
        let at = self.at;
        let signature = self.is("(");
        if signature {
            // The parameters come before the call; the definition reads them again.
            self.parameters()?;
        }
        let call = self.expression()?;
        let behind = self.at;
        let parameters = if signature {
            self.at = at;
            let p = self.parameters()?;
            self.at = behind;
            p
        } else {
            vec![]
        };
        if !matches!(*call.kind, Kind::Call(..)) {
            return fault("expected call");
        }
        let from = self.at;
        let body = self.body("endcall")?;
        Ok(Action::CallBlock(call, self.macro_of("caller".into(), parameters, body, from)))
    }

    fn definition(&mut self, name: String, end: &str) -> Outcome<Arc<MacroDefinition>> {
        let parameters = self.parameters()?;
        let from = self.at;
        let body = self.body(end)?;
        Ok(self.macro_of(name, parameters, body, from))
    }

    fn macro_of(
        &self,
        name: String,
        parameters: Vec<(String, Option<Expr>)>,
        body: Vec<Statement>,
        from: usize,
    ) -> Arc<MacroDefinition> {
        let said = |word: &str| self.tokens[from..self.at].iter().any(|t| matches!(&t.0, Token::Name(n) if n == word));
        Arc::new(MacroDefinition {
            takes_varargs: said("varargs"),
            takes_kwargs: said("kwargs"),
            name,
            parameters,
            body,
        })
    }

    fn parameters(&mut self) -> Outcome<Vec<(String, Option<Expr>)>> {
        self.expect("(")?;
        let mut out: Vec<(String, Option<Expr>)> = vec![];
        while !self.is(")") {
            if !out.is_empty() {
                self.expect(",")?;
                if self.is(")") {
                    break;
                }
            }
            let name = self.name()?;
            let default = if self.take("=") { Some(self.expression()?) } else { None };
            if default.is_none() && out.last().is_some_and(|l| l.1.is_some()) {
                return fault("non-default argument follows default argument");
            }
            out.push((name, default));
        }
        self.expect(")")?;
        Ok(out)
    }

    /// One target, or several with commas.
    fn targets(&mut self, namespace: bool) -> Outcome<Target> {
        let first = self.target(namespace)?;
        if !self.is(",") {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.take(",") {
            if self.is("=") || self.is_name("in") || *self.token() == Token::BlockEnd {
                break;
            }
            all.push(self.target(namespace)?);
        }
        Ok(Target::Tuple(all))
    }

    fn target(&mut self, namespace: bool) -> Outcome<Target> {
        if self.is("(") || self.is("[") {
            let close = if self.is("(") { ")" } else { "]" };
            self.at += 1;
            return self.deeper(|p| {
                let inner = p.targets(namespace)?;
                p.expect(close)?;
                Ok(match inner {
                    Target::Tuple(t) => Target::Tuple(t),
                    one => one,
                })
            });
        }
        let name = self.name()?;
        if matches!(name.as_str(), "true" | "false" | "none" | "True" | "False" | "None") {
            return fault(format!("can't assign to '{name}'"));
        }
        if namespace && self.take(".") {
            return Ok(Target::Attribute(name, self.name()?));
        }
        Ok(Target::Name(name))
    }

    /// `name(arguments) | name ...`: of a filter block the first without a bar.
    fn filters(&mut self, mut begin: bool) -> Outcome<Vec<(String, Arguments)>> {
        let mut out = vec![];
        while begin || self.take("|") {
            begin = false;
            let name = self.dotted()?;
            let arguments = if self.is("(") { self.arguments()? } else { Arguments::default() };
            out.push((name, arguments));
        }
        Ok(out)
    }

    fn dotted(&mut self) -> Outcome<String> {
        let mut name = self.name()?;
        while self.take(".") {
            name = format!("{name}.{}", self.name()?);
        }
        Ok(name)
    }

    // ---------------------------------------------------------------- expressions

    fn expr(line: u32, kind: Kind) -> Outcome<Expr> {
        let depth = kind.depth();
        if depth > EXPRESSION_DEPTH {
            return Err(Fault::new("an expression is nested too deeply").at(line));
        }
        Ok(Expr { line, depth, kind: Box::new(kind) })
    }

    /// Expressions with commas between them make a tuple.
    fn tuple(&mut self, conditional: bool) -> Outcome<Expr> {
        let line = self.line();
        let one = |p: &mut Self| if conditional { p.expression() } else { p.or_or_if() };
        let first = one(self)?;
        if !self.is(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.take(",") {
            if self.at_tuple_end() {
                break;
            }
            items.push(one(self)?);
        }
        Self::expr(line, Kind::Tuple(items))
    }

    fn at_tuple_end(&self) -> bool {
        matches!(self.token(), Token::VariableEnd | Token::BlockEnd | Token::End)
            || self.is(")")
            || self.is_name("in")
            || self.is_name("recursive")
            || self.is_name("if")
    }

    /// An expression without a condition behind it.
    fn or_or_if(&mut self) -> Outcome<Expr> {
        self.deeper(Self::or)
    }

    fn expression(&mut self) -> Outcome<Expr> {
        self.deeper(|p| {
            let mut value = p.or()?;
            loop {
                let line = p.line();
                if !p.take_name("if") {
                    return Ok(value);
                }
                let condition = p.or()?;
                let otherwise = if p.take_name("else") { Some(p.expression()?) } else { None };
                value = Self::expr(line, Kind::If { condition, then: value, otherwise })?;
            }
        })
    }

    fn or(&mut self) -> Outcome<Expr> {
        let mut left = self.and()?;
        loop {
            let line = self.line();
            if !self.take_name("or") {
                return Ok(left);
            }
            let right = self.and()?;
            left = Self::expr(line, Kind::Or(left, right))?;
        }
    }

    fn and(&mut self) -> Outcome<Expr> {
        let mut left = self.not()?;
        loop {
            let line = self.line();
            if !self.take_name("and") {
                return Ok(left);
            }
            let right = self.not()?;
            left = Self::expr(line, Kind::And(left, right))?;
        }
    }

    fn not(&mut self) -> Outcome<Expr> {
        let line = self.line();
        if self.take_name("not") {
            let value = self.deeper(Self::not)?;
            return Self::expr(line, Kind::Not(value));
        }
        self.compare()
    }

    fn comparison(&mut self) -> Option<Comparison> {
        let found = match self.token() {
            Token::Operator("==") => Comparison::Equal,
            Token::Operator("!=") => Comparison::NotEqual,
            Token::Operator("<") => Comparison::Less,
            Token::Operator("<=") => Comparison::LessEqual,
            Token::Operator(">") => Comparison::Greater,
            Token::Operator(">=") => Comparison::GreaterEqual,
            Token::Name(n) if n == "in" => Comparison::In,
            Token::Name(n) if n == "not" => {
                let next = self.tokens.get(self.at + 1).map(|t| &t.0);
                if !matches!(next, Some(Token::Name(n)) if n == "in") {
                    return None;
                }
                self.at += 1;
                Comparison::NotIn
            }
            _ => return None,
        };
        self.at += 1;
        Some(found)
    }

    fn compare(&mut self) -> Outcome<Expr> {
        let line = self.line();
        let first = self.sum()?;
        let mut others = vec![];
        while let Some(op) = self.comparison() {
            others.push((op, self.sum()?));
        }
        if others.is_empty() { Ok(first) } else { Self::expr(line, Kind::Compare(first, others)) }
    }

    /// A chain of operators of one rank, from the left.
    fn chain(&mut self, operators: &[(&str, Operator)], operand: fn(&mut Self) -> Outcome<Expr>) -> Outcome<Expr> {
        let mut left = operand(self)?;
        loop {
            let line = self.line();
            let Some((_, op)) = operators.iter().find(|(sign, _)| self.is(sign)) else { return Ok(left) };
            self.at += 1;
            let right = operand(self)?;
            left = Self::expr(line, Kind::Binary(*op, left, right))?;
        }
    }

    fn sum(&mut self) -> Outcome<Expr> {
        self.chain(&[("+", Operator::Add), ("-", Operator::Subtract)], Self::concat)
    }

    fn concat(&mut self) -> Outcome<Expr> {
        self.chain(&[("~", Operator::Concat)], Self::product)
    }

    fn product(&mut self) -> Outcome<Expr> {
        let operators = [
            ("*", Operator::Multiply),
            ("/", Operator::Divide),
            ("//", Operator::FloorDivide),
            ("%", Operator::Modulo),
        ];
        self.chain(&operators, Self::power)
    }

    fn power(&mut self) -> Outcome<Expr> {
        self.chain(&[("**", Operator::Power)], |p| p.unary(true))
    }

    fn unary(&mut self, with_filters: bool) -> Outcome<Expr> {
        let line = self.line();
        let value = if self.take("-") {
            let value = self.deeper(|p| p.unary(false))?;
            Self::expr(line, Kind::Negative(value))?
        } else if self.take("+") {
            let value = self.deeper(|p| p.unary(false))?;
            Self::expr(line, Kind::Positive(value))?
        } else {
            self.primary()?
        };
        let value = self.postfix(value)?;
        if with_filters { self.filtered(value) } else { Ok(value) }
    }

    fn primary(&mut self) -> Outcome<Expr> {
        let line = self.line();
        let kind = match self.next() {
            Token::Name(n) => match n.as_str() {
                "true" | "True" => Kind::Bool(true),
                "false" | "False" => Kind::Bool(false),
                "none" | "None" => Kind::None,
                _ => Kind::Name(n),
            },
            Token::Str(mut s) => {
                while let Token::Str(more) = self.token() {
                    s.push_str(more);
                    self.at += 1;
                }
                Kind::Str(s)
            }
            Token::Int(i) => Kind::Int(i),
            Token::Float(f) => Kind::Float(f),
            Token::Operator("(") => return self.deeper(|p| p.parenthesis(line)),
            Token::Operator("[") => Kind::List(self.deeper(|p| p.items("]"))?),
            Token::Operator("{") => Kind::Dict(self.deeper(Self::entries)?),
            _ => {
                self.at -= 1;
                return self.unexpected("an expression");
            }
        };
        Self::expr(line, kind)
    }

    fn parenthesis(&mut self, line: u32) -> Outcome<Expr> {
        if self.take(")") {
            return Self::expr(line, Kind::Tuple(vec![]));
        }
        let value = self.tuple(true)?;
        self.expect(")")?;
        Ok(value)
    }

    fn items(&mut self, close: &str) -> Outcome<Vec<Expr>> {
        let mut items = vec![];
        while !self.is(close) {
            if !items.is_empty() {
                self.expect(",")?;
                if self.is(close) {
                    break;
                }
            }
            items.push(self.expression()?);
        }
        self.expect(close)?;
        Ok(items)
    }

    fn entries(&mut self) -> Outcome<Vec<(Expr, Expr)>> {
        let mut entries = vec![];
        while !self.is("}") {
            if !entries.is_empty() {
                self.expect(",")?;
                if self.is("}") {
                    break;
                }
            }
            let key = self.expression()?;
            self.expect(":")?;
            entries.push((key, self.expression()?));
        }
        self.expect("}")?;
        Ok(entries)
    }

    /// Attributes, indices and calls behind a value.
    fn postfix(&mut self, mut value: Expr) -> Outcome<Expr> {
        loop {
            let line = self.line();
            let kind = if self.take(".") {
                match self.next() {
                    Token::Name(n) => Kind::Attribute(value, n),
                    Token::Int(i) => Kind::Item(value, Self::expr(line, Kind::Int(i))?),
                    _ => {
                        self.at -= 1;
                        return self.unexpected("name or number");
                    }
                }
            } else if self.take("[") {
                Kind::Item(value, self.deeper(Self::index)?)
            } else if self.is("(") {
                Kind::Call(value, self.arguments()?)
            } else {
                return Ok(value);
            };
            value = Self::expr(line, kind)?;
        }
    }

    fn index(&mut self) -> Outcome<Expr> {
        let line = self.line();
        let mut items = vec![];
        while !self.is("]") {
            if !items.is_empty() {
                self.expect(",")?;
            }
            items.push(self.subscript()?);
        }
        self.expect("]")?;
        match items.pop() {
            None => fault("expected subscript expression"),
            Some(one) if items.is_empty() => Ok(one),
            Some(last) => {
                items.push(last);
                Self::expr(line, Kind::Tuple(items))
            }
        }
    }

    fn subscript(&mut self) -> Outcome<Expr> {
        let line = self.line();
        let start = if self.is(":") { None } else { Some(self.expression()?) };
        if !self.take(":") {
            return start.map_or_else(|| self.unexpected("an index"), Ok);
        }
        let ends = |p: &Self| p.is(":") || p.is("]") || p.is(",");
        let stop = if ends(self) { None } else { Some(self.expression()?) };
        let step = if self.take(":") && !ends(self) { Some(self.expression()?) } else { None };
        Self::expr(line, Kind::Slice(start, stop, step))
    }

    /// Filters, tests and calls behind a value.
    fn filtered(&mut self, mut value: Expr) -> Outcome<Expr> {
        loop {
            let line = self.line();
            value = if self.take("|") {
                let name = self.dotted()?;
                let arguments = if self.is("(") { self.arguments()? } else { Arguments::default() };
                Self::expr(line, Kind::Filter(value, name, arguments))?
            } else if self.take_name("is") {
                self.test(value, line)?
            } else if self.is("(") {
                let arguments = self.arguments()?;
                Self::expr(line, Kind::Call(value, arguments))?
            } else {
                return Ok(value);
            };
        }
    }

    fn test(&mut self, value: Expr, line: u32) -> Outcome<Expr> {
        let negated = self.take_name("not");
        let name = self.dotted()?;
        let has_argument = matches!(self.token(), Token::Name(_) | Token::Str(_) | Token::Int(_) | Token::Float(_))
            || self.is("[")
            || self.is("{");
        let arguments = if self.is("(") {
            self.arguments()?
        } else if has_argument && !["else", "or", "and", "if"].iter().any(|n| self.is_name(n)) {
            if self.is_name("is") {
                return fault("You cannot chain multiple tests with is");
            }
            let one = self.primary()?;
            let one = self.postfix(one)?;
            Arguments { positional: vec![one], ..Arguments::default() }
        } else {
            Arguments::default()
        };
        let test = Self::expr(line, Kind::Test(value, name, arguments))?;
        if negated { Self::expr(line, Kind::Not(test)) } else { Ok(test) }
    }

    fn arguments(&mut self) -> Outcome<Arguments> {
        self.expect("(")?;
        self.deeper(|p| {
            let mut out = Arguments::default();
            let mut first = true;
            while !p.is(")") {
                if !first {
                    p.expect(",")?;
                    if p.is(")") {
                        break;
                    }
                }
                first = false;
                p.argument(&mut out)?;
            }
            p.expect(")")?;
            Ok(out)
        })
    }

    fn argument(&mut self, out: &mut Arguments) -> Outcome<()> {
        if self.take("*") {
            out.more = Some(self.expression()?);
            return Ok(());
        }
        if self.take("**") {
            out.more_named = Some(self.expression()?);
            return Ok(());
        }
        let assigns = matches!(self.tokens.get(self.at + 1), Some((Token::Operator("="), _)));
        if let (Token::Name(name), true) = (self.token().clone(), assigns) {
            self.at += 2;
            out.named.push((name, self.expression()?));
        } else if out.named.is_empty() {
            out.positional.push(self.expression()?);
        } else {
            return fault("positional argument follows keyword argument");
        }
        Ok(())
    }
}
