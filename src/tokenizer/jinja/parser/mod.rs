//! From tokens to the tree, by the grammar of Jinja's `parser.py`.

use super::{
    Fault, Outcome,
    ast::Statement,
    lexer::{Token, tokens},
    nesting::Nesting,
};

mod operand;
mod operator;
mod statement;

/// Expressions and statements inside each other; deeper ones would end in the thread's stack.
const DEPTH: usize = 100;

/// The same of finished expressions, in which every operator of a chain is one level.
const EXPRESSION_DEPTH: u32 = 300;

/// Parses a template.
pub(super) fn parse(source: &str) -> Outcome<Vec<Statement>> {
    let mut p = Parser { tokens: tokens(source)?, at: 0, nesting: Nesting::new(DEPTH) };
    p.statements(&[]).map_err(|e| e.at(p.line()))
}

struct Parser {
    tokens: Vec<(Token, u32)>,
    at: usize,
    nesting: Nesting,
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

    /// A name with dots in it.
    fn dotted(&mut self) -> Outcome<String> {
        let mut name = self.name()?;
        while self.take(".") {
            name = format!("{name}.{}", self.name()?);
        }
        Ok(name)
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
        if !self.nesting.enter() {
            return Err(Fault::new("it is nested too deeply").at(self.line()));
        }
        let result = f(self);
        self.nesting.leave();
        result
    }
}
