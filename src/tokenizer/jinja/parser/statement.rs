//! Statements: what stands between `{%` and `%}`, and the text around it.

use super::Parser;
use crate::tokenizer::jinja::{
    Fault, Outcome,
    ast::{Action, Arguments, Expr, Kind, Loop, MacroDefinition, Statement, Target},
    fault,
    lexer::Token,
};
use std::sync::Arc;

impl Parser {
    /// Statements up to a block that begins with one of `ends`, which is left where it is (behind `{%`).
    pub(super) fn statements(&mut self, ends: &[&str]) -> Outcome<Vec<Statement>> {
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
}
