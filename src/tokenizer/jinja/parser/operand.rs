//! Operands of operators: literals, names, brackets, and the attributes, indices, calls, filters and tests behind them.

use super::Parser;
use crate::tokenizer::jinja::{
    Outcome,
    ast::{Arguments, Expr, Kind},
    fault,
    lexer::Token,
};

impl Parser {
    pub(super) fn unary(&mut self, with_filters: bool) -> Outcome<Expr> {
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

    pub(super) fn arguments(&mut self) -> Outcome<Arguments> {
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
