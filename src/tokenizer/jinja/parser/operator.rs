//! Expressions with operators between their operands, by rank from the weakest to the strongest.

use super::{EXPRESSION_DEPTH, Parser};
use crate::tokenizer::jinja::{
    Fault, Outcome,
    ast::{Comparison, Expr, Kind, Operator},
    lexer::Token,
};

impl Parser {
    pub(super) fn expr(line: u32, kind: Kind) -> Outcome<Expr> {
        let depth = kind.depth();
        if depth > EXPRESSION_DEPTH {
            return Err(Fault::new("an expression is nested too deeply").at(line));
        }
        Ok(Expr { line, depth, kind: Box::new(kind) })
    }

    /// Expressions with commas between them make a tuple.
    pub(super) fn tuple(&mut self, conditional: bool) -> Outcome<Expr> {
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
    pub(super) fn or_or_if(&mut self) -> Outcome<Expr> {
        self.deeper(Self::or)
    }

    pub(super) fn expression(&mut self) -> Outcome<Expr> {
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
}
